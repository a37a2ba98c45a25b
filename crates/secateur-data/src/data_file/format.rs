//! Which format a data file has. The content decides where it can; the extension decides between
//! CSV and text, and whether a file that should be JSON is none.

use std::path::Path;

use secateur_base::git_lfs::{GIT_LFS_HELP, is_git_lfs_pointer};
use serde_json::value::RawValue;

use super::error::DataFileError;
use super::text::{BYTE_ORDER_MARK, not_utf8};
use super::{Head, python_numbers};

/// The format of a data file, after decompression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFormat {
    /// UTF-8 text.
    Text,
    /// A JSON object in each line.
    JsonLines,
    /// A JSON array of objects, an object with such an array under `data`, or objects one after
    /// the other.
    JsonDocument,
    /// CSV whose first line has the names of the columns.
    Csv {
        /// `,`, `;` or a tab.
        delimiter: u8,
    },
    Parquet,
}

/// The first bytes of files that are neither text nor rows.
const BINARY_FORMATS: [(&[u8], &str); 8] = [
    (b"ARROW1", "an Arrow file"),
    (b"\xff\xff\xff\xff", "an Arrow stream"),
    (b"ORC", "an ORC file"),
    (b"Obj\x01", "an Avro file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x80\x04\x95", "a pickle"),
    (b"%PDF-", "a PDF"),
];

impl DataFormat {
    /// Whether the file has rows with fields. Otherwise it is a text.
    pub fn has_fields(self) -> bool {
        self != Self::Text
    }

    /// The name for messages: "JSON Lines", "a text".
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::JsonLines => "JSON Lines",
            Self::JsonDocument => "JSON",
            Self::Csv { .. } => "CSV",
            Self::Parquet => "Parquet",
        }
    }

    /// `extension` is in lower case, without that of a compression.
    pub(super) fn detect(head: &Head, extension: &str, path: &Path) -> Result<Self, DataFileError> {
        let name = path.display();
        let bytes = &head.bytes[..];
        if bytes.starts_with(b"PAR1") {
            return Ok(Self::Parquet);
        }
        if is_git_lfs_pointer(bytes) {
            let message = format!("`{name}` is not the file but a pointer of Git LFS to it");
            return Err(DataFileError::new(message).with_help(GIT_LFS_HELP));
        }
        if let Some((_, kind)) = BINARY_FORMATS
            .iter()
            .find(|(magic, _)| bytes.starts_with(magic))
        {
            let message = format!("`{name}` is {kind}, which is not supported");
            return Err(DataFileError::new(message).with_help(SUPPORTED_FORMATS));
        }
        if extension == "parquet" {
            let message = format!("`{name}` is not a Parquet file, as its name says");
            return Err(DataFileError::new(message));
        }
        let start = &*python_numbers::to_json(decode_text(head, path)?.trim_start());
        match extension {
            "csv" => Ok(Self::Csv {
                delimiter: comma_or_semicolon(start),
            }),
            "tsv" | "tab" => Ok(Self::Csv { delimiter: b'\t' }),
            "jsonl" | "ndjson" | "jsonlines" | "json" => {
                // A file of white space has no row, which is reported when it is read.
                if start.is_empty() || start.starts_with(['{', '[']) {
                    let may_be_document = extension == "json";
                    return Ok(json_format(start, head.is_whole_file, may_be_document));
                }
                let message = format!(
                    "`{name}` is not JSON, as its name says: it does not begin with {{ or ["
                );
                Err(DataFileError::new(message)
                    .with_help("give a text file a name that ends in .txt"))
            }
            _ if begins_with_json_rows(start, head.is_whole_file) => {
                Ok(json_format(start, head.is_whole_file, true))
            }
            _ => Ok(Self::Text),
        }
    }
}

const SUPPORTED_FORMATS: &str = "write JSON Lines, a JSON array, CSV, Parquet, or UTF-8 text";

/// The head as text. Refuses what does not look like text.
fn decode_text<'h>(head: &'h Head, path: &Path) -> Result<&'h str, DataFileError> {
    let name = path.display();
    let bytes = &head.bytes[..];
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        let message = format!("`{name}` is UTF-16 text, and UTF-8 is needed");
        return Err(DataFileError::new(message)
            .with_help("convert it, for example with `iconv -f UTF-16 -t UTF-8`"));
    }
    if let Some(offset) = bytes.iter().position(|&byte| byte == 0) {
        let message = format!("`{name}` is neither text nor Parquet: its byte {offset} is 0");
        return Err(DataFileError::new(message).with_help(SUPPORTED_FORMATS));
    }
    let without_mark = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    let mark_length = bytes.len() - without_mark.len();
    match std::str::from_utf8(without_mark) {
        Ok(text) => Ok(text),
        // The head may end inside a character.
        Err(error) if error.error_len().is_none() && !head.is_whole_file => {
            let valid = &without_mark[..error.valid_up_to()];
            Ok(std::str::from_utf8(valid).unwrap_or_default())
        }
        Err(error) => Err(not_utf8(path, mark_length + error.valid_up_to())),
    }
}

/// The format of a file that begins with a JSON value. `may_be_document`: whether a line with the
/// array `data` may be a document, because the name does not say JSON Lines.
fn json_format(start: &str, is_whole_file: bool, may_be_document: bool) -> DataFormat {
    if start.starts_with('[') {
        return DataFormat::JsonDocument;
    }
    let first_line = start.lines().next().unwrap_or_default();
    let is_only_line = is_whole_file && start.trim_end() == first_line.trim_end();
    match serde_json::from_str::<&RawValue>(first_line) {
        Ok(_) if may_be_document && is_only_line && super::json::has_data_array(first_line) => {
            DataFormat::JsonDocument
        }
        Ok(_) => DataFormat::JsonLines,
        // An object over several lines: its first line is no whole value, but its lines are.
        Err(error) if error.is_eof() && !is_only_line => {
            let mut values = serde_json::Deserializer::from_str(start).into_iter::<&RawValue>();
            match values.next() {
                Some(Ok(_)) => DataFormat::JsonDocument,
                // Longer than the head, and over several lines.
                Some(Err(error)) if error.is_eof() && !is_whole_file && start.contains('\n') => {
                    DataFormat::JsonDocument
                }
                _ => DataFormat::JsonLines,
            }
        }
        Err(_) => DataFormat::JsonLines,
    }
}

/// Whether a file whose name does not say so has JSON rows: it begins with an object, or an array
/// whose first element is an object.
fn begins_with_json_rows(start: &str, is_whole_file: bool) -> bool {
    let first_row = start.strip_prefix('[').unwrap_or(start).trim_start();
    if !first_row.starts_with('{') {
        return false;
    }
    let mut values = serde_json::Deserializer::from_str(first_row).into_iter::<&RawValue>();
    match values.next() {
        Some(Ok(_)) => true,
        Some(Err(error)) => error.is_eof() && !is_whole_file,
        None => false,
    }
}

/// The delimiter of a CSV file, by the names of its columns.
fn comma_or_semicolon(start: &str) -> u8 {
    let header = start.lines().next().unwrap_or_default();
    if header.contains(';') && !header.contains(',') {
        b';'
    } else {
        b','
    }
}
