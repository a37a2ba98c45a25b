//! The tables of a report: their names, and how they are read and written as polars data frames.

use std::fs::File;
use std::path::Path;

use polars::prelude::*;

use super::error::ReportError;
use secateur_base::files::write_atomic;

/// The table of the variants, in the results folder of a pipeline.
pub(crate) const VARIANTS_FILE: &str = "variants.parquet";

/// The table of the generated texts, in the results folder of a pipeline.
pub(crate) const GENERATIONS_FILE: &str = "generations.parquet";

/// Reads a table, or only the named columns of it.
pub(crate) fn read_parquet(
    path: &Path,
    columns: Option<&[&str]>,
) -> Result<DataFrame, ReportError> {
    let unreadable = |message: String| ReportError::Unreadable {
        path: path.to_owned(),
        message,
    };
    let file = File::open(path).map_err(|error| unreadable(error.to_string()))?;
    let columns = columns.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
    ParquetReader::new(file)
        .with_columns(columns)
        .finish()
        .map_err(|error| unreadable(error.to_string()))
}

/// Reads a whole table; `None` where the file does not exist.
pub(crate) fn read_parquet_if_exists(path: &Path) -> Result<Option<DataFrame>, ReportError> {
    if path.exists() {
        read_parquet(path, None).map(Some)
    } else {
        Ok(None)
    }
}

/// Writes a table atomically. The bytes depend on the frame alone.
pub(crate) fn write_parquet(path: &Path, frame: &mut DataFrame) -> Result<(), ReportError> {
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes)
        .with_compression(ParquetCompression::Snappy)
        .finish(frame)?;
    Ok(write_atomic(path, &bytes)?)
}
