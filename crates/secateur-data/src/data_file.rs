//! Data files: corpora, rows of tasks, and prompts. One place decides which format a file has, and
//! one reader gives its rows.
//!
//! | file | content |
//! |---|---|
//! | `open` | opening a file that must be a regular file |
//! | `compression` | gzip and Zstandard |
//! | `format` | which format a file has, by its content and its name |
//! | `text` | a file of text |
//! | `json` | rows of JSON Lines and of JSON documents |
//! | `python_numbers` | `NaN` and `Infinity` in JSON that Python wrote |
//! | `csv_rows` | rows of CSV |
//! | `parquet_rows` | rows of Parquet |
//! | `row` | a row, its fields, and where it was read |
//! | `error` | the error type |

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod compression;
mod csv_rows;
mod error;
mod format;
mod json;
mod open;
mod parquet_rows;
mod python_numbers;
mod row;
#[cfg(test)]
mod tests;
mod text;

pub use error::DataFileError;
pub use format::DataFormat;
pub use open::open_regular_file;
pub(crate) use row::{DataRow, FieldValue, RowLocation};

use compression::Compression;

/// The bytes at the beginning of a file that decide its format.
const HEAD_BYTES: u64 = 1 << 16;

/// A data file whose format is known.
#[derive(Clone, Debug)]
pub(crate) struct DataFile {
    path: Arc<Path>,
    content: Content,
    format: DataFormat,
}

#[derive(Clone, Debug)]
enum Content {
    OnDisk(Compression),
    /// Built into the program.
    BuiltIn(&'static str),
}

/// The rows of a file, in order.
pub(crate) type Rows = Box<dyn Iterator<Item = Result<DataRow, DataFileError>>>;

/// The fields of a row that are read. The others are skipped, whatever they contain.
#[derive(Clone, Debug)]
pub(crate) enum Columns {
    All,
    Only(BTreeSet<String>),
}

impl Columns {
    pub(crate) fn contains(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(name),
        }
    }
}

/// The beginning of a file, after decompression.
struct Head {
    bytes: Vec<u8>,
    /// Whether it is the whole file.
    is_whole_file: bool,
}

impl DataFile {
    /// Opens a file and decides its format.
    ///
    /// # Errors
    /// If the file cannot be read, is empty, or has none of the formats.
    pub(crate) fn open(path: &Path) -> Result<Self, DataFileError> {
        let file = open_regular_file(path)?;
        let first_bytes = read_head(file, path)?.bytes;
        let compression = Compression::detect(&first_bytes, path)?;
        let head = read_head(
            compression.decompress(open_regular_file(path)?, path)?,
            path,
        )?;
        if head.bytes.is_empty() {
            return Err(DataFileError::new(format!("`{}` is empty", path.display())));
        }
        let extension = compression.inner_extension(path);
        Ok(Self {
            path: path.into(),
            content: Content::OnDisk(compression),
            format: DataFormat::detect(&head, &extension, path)?,
        })
    }

    /// A file of JSON Lines that is built into the program.
    pub(crate) fn built_in(name: &str, content: &'static str) -> Self {
        Self {
            path: Path::new(name).into(),
            content: Content::BuiltIn(content),
            format: DataFormat::JsonLines,
        }
    }

    pub(crate) fn format(&self) -> DataFormat {
        self.format
    }

    /// Reads a file of text.
    ///
    /// # Errors
    /// If the file cannot be read or is not UTF-8.
    pub(crate) fn read_text(&self) -> Result<String, DataFileError> {
        text::read_text(self.reader()?, &self.path)
    }

    /// Opens the rows of a file that has a format with fields.
    ///
    /// # Errors
    /// If the file cannot be read. Each row can be an error too.
    pub(crate) fn rows(&self, columns: Columns) -> Result<Rows, DataFileError> {
        let path = self.path.clone();
        Ok(match self.format {
            DataFormat::Text => {
                let message = format!("`{}` is a text, which has no fields", path.display());
                return Err(DataFileError::new(message));
            }
            DataFormat::JsonLines => json::line_rows(self.reader()?, path, columns),
            DataFormat::JsonDocument => json::document_rows(self.read_text()?, path, &columns)?,
            DataFormat::Csv { delimiter } => {
                csv_rows::rows(self.reader()?, delimiter, path, columns)?
            }
            DataFormat::Parquet => parquet_rows::rows(self.seekable()?, path, &columns)?,
        })
    }

    /// The decompressed bytes, without a byte-order mark.
    fn reader(&self) -> Result<Box<dyn BufRead>, DataFileError> {
        match &self.content {
            Content::BuiltIn(content) => Ok(Box::new(Cursor::new(content.as_bytes()))),
            Content::OnDisk(compression) => {
                let bytes = compression.decompress(open_regular_file(&self.path)?, &self.path)?;
                text::without_byte_order_mark(bytes, &self.path)
            }
        }
    }

    /// The file on disk, decompressed to a temporary file if it is compressed.
    fn seekable(&self) -> Result<File, DataFileError> {
        let file = open_regular_file(&self.path)?;
        let compression = match &self.content {
            Content::BuiltIn(_) | Content::OnDisk(Compression::None) => return Ok(file),
            Content::OnDisk(compression) => compression,
        };
        let mut bytes = compression.decompress(file, &self.path)?;
        let cannot_read = |error| DataFileError::cannot_read(&self.path, &error);
        let mut decompressed = tempfile::tempfile().map_err(cannot_read)?;
        std::io::copy(&mut bytes, &mut decompressed).map_err(cannot_read)?;
        decompressed.rewind().map_err(cannot_read)?;
        Ok(decompressed)
    }
}

/// Reads a file of UTF-8, whatever its name and its content are.
pub(crate) fn read_utf8(path: &Path) -> Result<String, DataFileError> {
    text::read_text(
        text::without_byte_order_mark(open_regular_file(path)?, path)?,
        path,
    )
}

fn read_head(file: impl Read, path: &Path) -> Result<Head, DataFileError> {
    let mut bytes = Vec::new();
    BufReader::new(file)
        .take(HEAD_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|error| DataFileError::cannot_read(path, &error))?;
    Ok(Head {
        is_whole_file: (bytes.len() as u64) < HEAD_BYTES,
        bytes,
    })
}

/// The name of a file without the extension of a compression, and without that of its format:
/// `c4-train` of `c4-train.json.gz`.
pub fn file_stem(path: &Path) -> String {
    let mut path = PathBuf::from(path.file_name().unwrap_or_default());
    let is_compressed = path
        .extension()
        .is_some_and(compression::is_compression_extension);
    if is_compressed {
        path.set_extension("");
    }
    let stem = path.file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}
