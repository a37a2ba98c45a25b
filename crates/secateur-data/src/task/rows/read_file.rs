//! Reading the rows of one file.

use std::borrow::Cow;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value};

use super::row::{RowLocation, RowsFile, TaskRow};
use crate::byte_order_mark::strip_byte_order_mark;
use crate::task::error::TaskError;

/// Rows of a Parquet file that are decoded at a time.
const PARQUET_BATCH_ROWS: usize = 1024;

/// How a text file is split into rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct TextSplitting {
    /// Separates or ends rows. `None`: the file is one row.
    pub(crate) separator: Option<String>,
    /// What the text after the last separator is. `true`: a separator ends a row, so it is not a
    /// row. `false`: a separator stands between two rows, so it is a row, even if empty. `None`: it
    /// is a row unless it is empty.
    pub(crate) separator_ends_row: Option<bool>,
}

/// Appends the rows of a file to `rows` until there are `limit`.
pub(crate) fn append_rows(
    file: &RowsFile,
    splitting: &TextSplitting,
    limit: usize,
    rows: &mut Vec<TaskRow>,
) -> Result<(), TaskError> {
    let path: Arc<Path> = file.path().into();
    let extension = path
        .extension()
        .map(|extension| extension.to_ascii_lowercase())
        .unwrap_or_default();
    if extension == "parquet" {
        return append_parquet(&path, limit, rows);
    }
    let text = read_text(file)?;
    if extension == "jsonl" {
        append_jsonl(&text, &path, limit, rows)
    } else {
        append_text(&text, &path, splitting, limit, rows);
        Ok(())
    }
}

fn read_text(file: &RowsFile) -> Result<Cow<'static, str>, TaskError> {
    match file {
        RowsFile::BuiltIn(_, content) => Ok(Cow::Borrowed(content)),
        RowsFile::OnDisk(path) => {
            let text = std::fs::read_to_string(path).map_err(|source| TaskError::Read {
                path: path.clone(),
                source,
            })?;
            Ok(Cow::Owned(strip_byte_order_mark(text)))
        }
    }
}

fn append_jsonl(
    text: &str,
    path: &Arc<Path>,
    limit: usize,
    rows: &mut Vec<TaskRow>,
) -> Result<(), TaskError> {
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    for (i, line) in lines.take(limit - rows.len()) {
        let location = RowLocation {
            path: path.clone(),
            unit: "line",
            number: i + 1,
        };
        let fields = serde_json::from_str(line)
            .map_err(|error| location.to_error(format!("it is not a JSON object: {error}")))?;
        rows.push(TaskRow { fields, location });
    }
    Ok(())
}

/// Appends the parts of a text as rows with one field, `text`.
fn append_text(
    text: &str,
    path: &Arc<Path>,
    splitting: &TextSplitting,
    limit: usize,
    rows: &mut Vec<TaskRow>,
) {
    let mut parts: Vec<&str> = match &splitting.separator {
        Some(separator) => text.split(separator.as_str()).collect(),
        None => vec![text],
    };
    let last_part_is_empty = parts.last().is_some_and(|part| part.is_empty());
    if splitting.separator_ends_row.unwrap_or(last_part_is_empty) {
        parts.pop();
    }
    parts.truncate(limit - rows.len());
    for (i, part) in parts.into_iter().enumerate() {
        rows.push(TaskRow {
            fields: Map::from_iter([("text".to_owned(), Value::from(part))]),
            location: RowLocation {
                path: path.clone(),
                unit: "row",
                number: i + 1,
            },
        });
    }
}

fn append_parquet(
    path: &Arc<Path>,
    limit: usize,
    rows: &mut Vec<TaskRow>,
) -> Result<(), TaskError> {
    let file = File::open(path).map_err(|source| TaskError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    let unreadable = |message: String| TaskError::Unreadable {
        path: path.to_path_buf(),
        message: explain_parquet_error(message),
    };
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .map_err(|error| unreadable(error.to_string()))?
        .with_batch_size(PARQUET_BATCH_ROWS)
        .with_limit(limit - rows.len())
        .build()
        .map_err(|error| unreadable(error.to_string()))?;
    let mut number = 0;
    for batch in reader {
        let batch = batch.map_err(|error| unreadable(error.to_string()))?;
        for fields in decode_batch(&batch).map_err(&unreadable)? {
            number += 1;
            rows.push(TaskRow {
                fields,
                location: RowLocation {
                    path: path.clone(),
                    unit: "row",
                    number,
                },
            });
        }
    }
    Ok(())
}

/// Decodes a batch to the rows that a JSONL file would contain. Columns with binary data, such as
/// images, are left out: no template can use them.
fn decode_batch(batch: &RecordBatch) -> Result<Vec<Map<String, Value>>, String> {
    let fields = batch.schema_ref().fields();
    let text_columns: Vec<usize> = (0..fields.len())
        .filter(|&column| !contains_binary(fields[column].data_type()))
        .collect();
    let text_batch = batch
        .project(&text_columns)
        .map_err(|error| error.to_string())?;
    serde_arrow::from_record_batch(&text_batch).map_err(|error| error.message().to_owned())
}

/// Whether a column of this type contains binary data, at any depth.
fn contains_binary(data_type: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, FixedSizeBinary, FixedSizeList, LargeBinary, LargeList, List, Struct,
    };
    match data_type {
        Binary | BinaryView | FixedSizeBinary(_) | LargeBinary => true,
        List(item) | LargeList(item) | FixedSizeList(item, _) => contains_binary(item.data_type()),
        Struct(fields) => fields
            .iter()
            .any(|field| contains_binary(field.data_type())),
        _ => false,
    }
}

/// Explains the Parquet library's error for a compression that this program is built without.
fn explain_parquet_error(message: String) -> String {
    if message.contains("Disabled feature") {
        format!(
            "its compression is not supported; write it with Snappy or Zstandard, or without \
             ({message})"
        )
    } else {
        message
    }
}
