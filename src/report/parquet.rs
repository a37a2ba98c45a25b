//! The tables of a report: their names, and how they are read and written as polars data frames.

use std::fs::File;
use std::path::Path;

use polars::prelude::*;

use super::error::ReportError;
use secateur_base::files::write_atomic;
use secateur_store::tables::{ColumnValues, Table};

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

/// Writes a table atomically, with the plain types and the writer of the tables of a variant: polars
/// would write texts as string views, which older readers refuse. The bytes depend on the frame
/// alone.
pub(crate) fn write_parquet(path: &Path, frame: &DataFrame) -> Result<(), ReportError> {
    let mut columns = Vec::with_capacity(frame.width());
    for column in frame.columns() {
        columns.push((column.name().to_string(), column_values(column)?));
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let table = Table::from_columns(&name, columns)?;
    Ok(write_atomic(path, &table.to_parquet()?)?)
}

fn column_values(column: &Column) -> Result<ColumnValues, PolarsError> {
    Ok(match column.dtype() {
        DataType::String => {
            let texts = column.str()?.iter();
            ColumnValues::Text(texts.map(|text| text.map(str::to_owned)).collect())
        }
        DataType::UInt32 => ColumnValues::U32(column.u32()?.iter().collect()),
        DataType::UInt64 => ColumnValues::U64(column.u64()?.iter().collect()),
        DataType::Int64 => ColumnValues::I64(column.i64()?.iter().collect()),
        DataType::Float64 => ColumnValues::F64(column.f64()?.iter().collect()),
        DataType::Boolean => ColumnValues::Bool(column.bool()?.iter().collect()),
        other => {
            let message = format!("column `{}` has the type {other}", column.name());
            return Err(PolarsError::SchemaMismatch(message.into()));
        }
    })
}
