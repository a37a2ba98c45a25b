//! The error of a report.

use std::path::PathBuf;

use polars::prelude::PolarsError;

use secateur_base::files::FileError;
use secateur_store::tables::TableError;

/// Why a report could not be written or printed.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("there is no `{}`", .0.display())]
    Missing(PathBuf),
    #[error("`{}` is a file; a report is made of a folder of results", .0.display())]
    NoFolder(PathBuf),
    #[error(
        "`{}` holds no results: neither it nor a folder in it has variants.parquet, which a run \
         writes when it ends",
        .0.display()
    )]
    NoResults(PathBuf),
    #[error("`{}` holds no results: the table beside it has no row for a variant of this name", .0.display())]
    NoRow(PathBuf),
    #[error("`{}` cannot be read: {message}", .path.display())]
    Unreadable { path: PathBuf, message: String },
    #[error("the table of the variants cannot be built: {0}")]
    Polars(#[from] PolarsError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    File(#[from] FileError),
}
