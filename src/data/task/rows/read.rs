//! Rows out of one file.

use std::borrow::Cow;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value};

use super::{Row, RowPlace, Rows, RowsFile};
use crate::data::corpus::unmarked;
use crate::data::task::TaskError;

/// Rows that are decoded together.
const BATCH: usize = 1024;

/// Appends the rows of a file until there are `limit`.
pub fn append(file: &RowsFile, how: &Rows, limit: usize, rows: &mut Vec<Row>) -> Result<(), TaskError> {
    let path: Arc<Path> = file.path().into();
    let ending = path.extension().map(|ending| ending.to_ascii_lowercase()).unwrap_or_default();
    if ending == "parquet" {
        return parquet(&path, limit, rows);
    }
    let text = match file {
        RowsFile::BuiltIn(_, text) => Cow::Borrowed(*text),
        RowsFile::File(path) => {
            let read = std::fs::read_to_string(path);
            Cow::Owned(unmarked(read.map_err(|source| TaskError::Read { path: path.clone(), source })?))
        }
    };
    if ending == "jsonl" { jsonl(&text, &path, limit, rows) } else { pieces(&text, &path, how, limit, rows) }
}

fn jsonl(text: &str, path: &Arc<Path>, limit: usize, rows: &mut Vec<Row>) -> Result<(), TaskError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    for (i, line) in lines.take(limit - rows.len()) {
        let at = RowPlace { path: path.clone(), unit: "line", number: i + 1 };
        let fields = serde_json::from_str(line).map_err(|e| at.refuse(format!("it is not a JSON object: {e}")))?;
        rows.push(Row { fields, at });
    }
    Ok(())
}

/// A text as rows with one field, `text`.
fn pieces(text: &str, path: &Arc<Path>, how: &Rows, limit: usize, rows: &mut Vec<Row>) -> Result<(), TaskError> {
    let mut pieces: Vec<&str> = match &how.separator {
        Some(separator) => text.split(separator.as_str()).collect(),
        None => vec![text],
    };
    // What stands after the last separator, even where it is nothing, is a row only if the task says so.
    if how.terminated.unwrap_or(pieces.last().is_some_and(|last| last.is_empty())) {
        pieces.pop();
    }
    let row = |(i, piece): (usize, &str)| Row {
        fields: Map::from_iter([("text".to_owned(), Value::from(piece))]),
        at: RowPlace { path: path.clone(), unit: "row", number: i + 1 },
    };
    rows.extend(pieces.into_iter().enumerate().take(limit - rows.len()).map(row));
    Ok(())
}

fn parquet(path: &Arc<Path>, limit: usize, rows: &mut Vec<Row>) -> Result<(), TaskError> {
    let file = File::open(path).map_err(|source| TaskError::Read { path: path.to_path_buf(), source })?;
    let unreadable = |message: String| TaskError::Unreadable { path: path.to_path_buf(), message: told(message) };
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| unreadable(e.to_string()))?;
    let reader = reader.with_batch_size(BATCH).with_limit(limit - rows.len());
    let before = rows.len();
    for batch in reader.build().map_err(|e| unreadable(e.to_string()))? {
        let batch = batch.map_err(|e| unreadable(e.to_string()))?;
        for fields in decode(&batch).map_err(&unreadable)? {
            let number = rows.len() - before + 1;
            rows.push(Row { fields, at: RowPlace { path: path.clone(), unit: "row", number } });
        }
    }
    Ok(())
}

/// A batch as the rows that JSON Lines would have held; pictures and other bytes, which no template can use, are left out.
fn decode(batch: &RecordBatch) -> Result<Vec<Map<String, Value>>, String> {
    let fields = batch.schema_ref().fields();
    let of_text: Vec<usize> = (0..fields.len()).filter(|&i| !holds_bytes(fields[i].data_type())).collect();
    let batch = batch.project(&of_text).map_err(|e| e.to_string())?;
    serde_arrow::from_record_batch(&batch).map_err(|e| e.message().to_owned())
}

fn holds_bytes(kind: &DataType) -> bool {
    use DataType::{Binary, BinaryView, FixedSizeBinary, FixedSizeList, LargeBinary, LargeList, List, Struct};
    match kind {
        Binary | BinaryView | FixedSizeBinary(_) | LargeBinary => true,
        List(item) | LargeList(item) | FixedSizeList(item, _) => holds_bytes(item.data_type()),
        Struct(fields) => fields.iter().any(|field| holds_bytes(field.data_type())),
        _ => false,
    }
}

/// A reader's refusal, said in the words of who gave the file.
fn told(message: String) -> String {
    match message.contains("Disabled feature") {
        true => format!("it is compressed in a way that is not read here; Snappy and Zstandard are ({message})"),
        false => message,
    }
}
