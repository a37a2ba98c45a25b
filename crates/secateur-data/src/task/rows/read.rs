//! Rows out of one file.

use std::borrow::Cow;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value};

use super::{RowLocation, RowSource, RowsFile, TaskRow};
use crate::corpus::strip_byte_order_mark;
use crate::task::TaskError;

/// Rows that are decoded together.
const PARQUET_BATCH_ROWS: usize = 1024;

/// Appends the rows of a file until there are `limit`.
pub fn append_rows(
    file: &RowsFile,
    how: &RowSource,
    limit: usize,
    rows: &mut Vec<TaskRow>,
) -> Result<(), TaskError> {
    let path: Arc<Path> = file.path().into();
    let ending = path
        .extension()
        .map(|ending| ending.to_ascii_lowercase())
        .unwrap_or_default();
    if ending == "parquet" {
        return append_parquet(&path, limit, rows);
    }
    let text = match file {
        RowsFile::BuiltIn(_, text) => Cow::Borrowed(*text),
        RowsFile::OnDisk(path) => {
            let read = std::fs::read_to_string(path);
            Cow::Owned(strip_byte_order_mark(read.map_err(|source| {
                TaskError::Read {
                    path: path.clone(),
                    source,
                }
            })?))
        }
    };
    if ending == "jsonl" {
        append_jsonl(&text, &path, limit, rows)
    } else {
        append_text(&text, &path, how, limit, rows)
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
        let at = RowLocation {
            path: path.clone(),
            unit: "line",
            number: i + 1,
        };
        let fields = serde_json::from_str(line)
            .map_err(|e| at.to_error(format!("it is not a JSON object: {e}")))?;
        rows.push(TaskRow {
            fields,
            location: at,
        });
    }
    Ok(())
}

/// A text as rows with one field, `text`.
fn append_text(
    text: &str,
    path: &Arc<Path>,
    how: &RowSource,
    limit: usize,
    rows: &mut Vec<TaskRow>,
) -> Result<(), TaskError> {
    let mut pieces: Vec<&str> = match &how.separator {
        Some(separator) => text.split(separator.as_str()).collect(),
        None => vec![text],
    };
    // What stands after the last separator, even where it is nothing, is a row only if the task says so.
    if how
        .separator_ends_row
        .unwrap_or(pieces.last().is_some_and(|last| last.is_empty()))
    {
        pieces.pop();
    }
    let row = |(i, piece): (usize, &str)| TaskRow {
        fields: Map::from_iter([("text".to_owned(), Value::from(piece))]),
        location: RowLocation {
            path: path.clone(),
            unit: "row",
            number: i + 1,
        },
    };
    rows.extend(
        pieces
            .into_iter()
            .enumerate()
            .take(limit - rows.len())
            .map(row),
    );
    Ok(())
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
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| unreadable(e.to_string()))?;
    let reader = reader
        .with_batch_size(PARQUET_BATCH_ROWS)
        .with_limit(limit - rows.len());
    let before = rows.len();
    for batch in reader.build().map_err(|e| unreadable(e.to_string()))? {
        let batch = batch.map_err(|e| unreadable(e.to_string()))?;
        for fields in decode_batch(&batch).map_err(&unreadable)? {
            let number = rows.len() - before + 1;
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

/// A batch as the rows that JSON Lines would have held; pictures and other bytes, which no template can use, are left out.
fn decode_batch(batch: &RecordBatch) -> Result<Vec<Map<String, Value>>, String> {
    let fields = batch.schema_ref().fields();
    let of_text: Vec<usize> = (0..fields.len())
        .filter(|&i| !is_binary(fields[i].data_type()))
        .collect();
    let batch = batch.project(&of_text).map_err(|e| e.to_string())?;
    serde_arrow::from_record_batch(&batch).map_err(|e| e.message().to_owned())
}

fn is_binary(kind: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, FixedSizeBinary, FixedSizeList, LargeBinary, LargeList, List, Struct,
    };
    match kind {
        Binary | BinaryView | FixedSizeBinary(_) | LargeBinary => true,
        List(item) | LargeList(item) | FixedSizeList(item, _) => is_binary(item.data_type()),
        Struct(fields) => fields.iter().any(|field| is_binary(field.data_type())),
        _ => false,
    }
}

/// A reader's refusal, said in the words of who gave the file.
fn explain_parquet_error(message: String) -> String {
    match message.contains("Disabled feature") {
        true => format!(
            "it is compressed in a way that is not read here; Snappy and Zstandard are ({message})"
        ),
        false => message,
    }
}
