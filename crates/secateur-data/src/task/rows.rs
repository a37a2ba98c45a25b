//! The rows of a task: rows of a data file, or a text that is split into rows.
//!
//! | file | content |
//! |---|---|
//! | `published` | finding the files of a split of a published data set |
//! | `text_rows` | splitting a text into rows |

use std::path::{Path, PathBuf};

use super::error::TaskError;
use crate::InputFile;
use crate::data_file::{Columns, DataFile, DataFileError, DataRow};

mod published;
mod text_rows;

pub(crate) use published::PublishedDataset;
pub(crate) use text_rows::TextSplitting;

/// Where the rows of a task are, and how a text file is split into rows.
#[derive(Clone, Debug)]
pub(crate) struct RowSource {
    pub(crate) location: RowSourceLocation,
    pub(crate) splitting: TextSplitting,
}

#[derive(Clone, Debug)]
pub(crate) enum RowSourceLocation {
    /// A single file.
    File(RowsFile),
    /// A split of a published data set, in one or more files.
    Published(PublishedDataset),
}

/// A file of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RowsFile {
    OnDisk(PathBuf),
    /// A file that is built into the program: its name and its content.
    BuiltIn(String, &'static str),
}

impl RowsFile {
    /// The path on disk, or the name of a built-in file.
    fn path(&self) -> &Path {
        match self {
            Self::OnDisk(path) => path,
            Self::BuiltIn(name, _) => Path::new(name),
        }
    }

    pub(crate) fn to_input_file(&self) -> InputFile {
        match self {
            Self::OnDisk(path) => InputFile::OnDisk(path.clone()),
            Self::BuiltIn(name, content) => InputFile::BuiltIn {
                name: name.clone(),
                content,
            },
        }
    }

    pub(crate) fn open(&self) -> Result<DataFile, DataFileError> {
        match self {
            Self::OnDisk(path) => DataFile::open(path),
            Self::BuiltIn(name, content) => Ok(DataFile::built_in(name, content)),
        }
    }
}

impl RowSource {
    /// The files that contain the rows, in order.
    pub(crate) fn list_files(&self) -> Result<Vec<RowsFile>, TaskError> {
        match &self.location {
            RowSourceLocation::File(file) => Ok(vec![file.clone()]),
            RowSourceLocation::Published(dataset) => {
                let paths = dataset.find_files()?;
                Ok(paths.into_iter().map(RowsFile::OnDisk).collect())
            }
        }
    }

    /// The file that `separator` splits: the one beside the task file, or the file that `file`
    /// names, if it is there. (A published split has rows.)
    pub(crate) fn text_file(&self) -> Option<RowsFile> {
        match &self.location {
            RowSourceLocation::File(file) => Some(file.clone()),
            RowSourceLocation::Published(dataset) => dataset.find_text_file().map(RowsFile::OnDisk),
        }
    }

    /// The published file that is looked for first.
    pub(crate) fn expected_file(&self) -> Option<PathBuf> {
        match &self.location {
            RowSourceLocation::Published(dataset) => {
                Some(dataset.data_folder.join(dataset.expected_file()))
            }
            RowSourceLocation::File(_) => None,
        }
    }

    /// Reads the fields `columns` of the first `limit` rows, or of all of them.
    pub(crate) fn read(
        &self,
        limit: Option<usize>,
        columns: &Columns,
    ) -> Result<Vec<DataRow>, TaskError> {
        let files = self.list_files()?;
        let limit = limit.unwrap_or(usize::MAX);
        let mut rows = Vec::new();
        for rows_file in &files {
            let missing = limit - rows.len();
            if missing == 0 {
                break;
            }
            let file = rows_file.open()?;
            if file.format().has_fields() {
                for row in file.rows(columns.clone())?.take(missing) {
                    rows.push(row?);
                }
            } else {
                let text = file.read_text()?;
                let text_rows = self.splitting.split(&text, rows_file.path());
                rows.extend(text_rows.into_iter().take(missing));
            }
        }
        match files.first() {
            Some(file) if rows.is_empty() => Err(TaskError::NoRows(file.path().to_owned())),
            _ => Ok(rows),
        }
    }
}
