//! The error of a report.

use std::path::PathBuf;

use polars::prelude::PolarsError;

use secateur_base::files::FileError;
use secateur_store::tables::TableError;

/// Why a report could not be written or printed.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("`{}` holds no results: it has no variants.parquet", .0.display())]
    NoResults(PathBuf),
    #[error("`{}` cannot be read: {message}", .path.display())]
    Unreadable { path: PathBuf, message: String },
    #[error("the table of the variants cannot be built: {0}")]
    Polars(#[from] PolarsError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    File(#[from] FileError),
}
