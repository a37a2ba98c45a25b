//! Rows of CSV. The first line has the names of the columns; every field is a text.

use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;

use csv::{ReaderBuilder, StringRecord};

use super::error::DataFileError;
use super::row::{DataRow, FieldValue, RowLocation, insert_field};
use super::{Columns, Rows};

pub(super) fn rows(
    reader: Box<dyn BufRead>,
    delimiter: u8,
    path: Arc<Path>,
    columns: Columns,
) -> Result<Rows, DataFileError> {
    let mut reader = ReaderBuilder::new()
        .delimiter(delimiter)
        .from_reader(reader);
    let names = reader
        .headers()
        .map_err(|error| row_error(&error, &path, 1))?
        .clone();
    let mut records = reader.into_records();
    Ok(Box::new(std::iter::from_fn(move || {
        let line_before = records.reader().position().line() as usize;
        let record = match records.next()? {
            Ok(record) => record,
            Err(error) => return Some(Err(row_error(&error, &path, line_before))),
        };
        let line = record
            .position()
            .map_or(line_before as u64, csv::Position::line);
        Some(Ok(DataRow {
            fields: named_fields(&names, &record, &columns),
            location: RowLocation {
                path: path.clone(),
                unit: "line",
                number: line as usize,
            },
        }))
    })))
}

fn named_fields(
    names: &StringRecord,
    record: &StringRecord,
    columns: &Columns,
) -> Vec<(String, FieldValue)> {
    let mut fields = Vec::new();
    for (name, value) in names.iter().zip(record) {
        if columns.contains(name) {
            insert_field(
                &mut fields,
                name.to_owned(),
                FieldValue::Text(value.to_owned()),
            );
        }
    }
    fields
}

/// `line`: where the record begins if the error does not say it.
fn row_error(error: &csv::Error, path: &Arc<Path>, line: usize) -> DataFileError {
    let line = error
        .position()
        .map_or(line, |position| position.line() as usize);
    let location = RowLocation {
        path: path.clone(),
        unit: "line",
        number: line,
    };
    match error.kind() {
        csv::ErrorKind::Io(error) => DataFileError::cannot_read(path, error),
        csv::ErrorKind::Utf8 { .. } => location.to_error("it is not UTF-8 text"),
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => location
            .to_error(format!(
                "it has {len} fields, and the first line names {expected_len}"
            ))
            .with_help("a field with a comma, a quote or a newline in it is written in quotes"),
        _ => location.to_error(format!("it is not valid CSV: {error}")),
    }
}
