//! The rows of a task: JSON Lines, Parquet, or a text that is cut; and the files that hold them, in the Hub's layouts too.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{InputFile, TaskError};

mod find;
mod read;

/// Where rows are, and how a text is cut into them.
#[derive(Clone, Debug)]
pub struct RowSource {
    pub location: RowSourceLocation,
    /// What separates the rows of a text file. None: the file is one row.
    pub separator: Option<String>,
    /// Whether a separator ends a row: then what stands after the last one is none. None: it is one unless it is empty.
    pub separator_ends_row: Option<bool>,
}

#[derive(Clone, Debug)]
pub enum RowSourceLocation {
    /// One file.
    File(PathBuf),
    /// Built into the program: the file's name, and its content.
    BuiltIn(String, &'static str),
    /// A split in one of several folders.
    Published(PublishedDataset),
}

/// A published set: the first folder that holds the split counts.
#[derive(Clone, Debug)]
pub struct PublishedDataset {
    /// `run.data`.
    pub data_folder: PathBuf,
    pub folders: Vec<String>,
    /// A text file in a folder, looked for before the split.
    pub text_file: Option<String>,
    pub split: String,
}

/// A file of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowsFile {
    OnDisk(PathBuf),
    BuiltIn(String, &'static str),
}

/// A row, and where it was read.
#[derive(Clone, Debug)]
pub struct TaskRow {
    pub fields: Map<String, Value>,
    pub location: RowLocation,
}

#[derive(Clone, Debug)]
pub struct RowLocation {
    pub path: Arc<Path>,
    /// `line` or `row`.
    pub unit: &'static str,
    /// In the file, from 1.
    pub number: usize,
}

impl RowLocation {
    pub fn to_error(&self, message: impl Into<String>) -> TaskError {
        TaskError::InvalidRow {
            path: self.path.to_path_buf(),
            unit: self.unit,
            number: self.number,
            message: message.into(),
            location: None,
        }
    }
}

impl RowsFile {
    pub fn path(&self) -> &Path {
        match self {
            Self::OnDisk(path) => path,
            Self::BuiltIn(name, _) => Path::new(name),
        }
    }

    pub fn to_input_file(&self) -> InputFile {
        match self {
            Self::OnDisk(path) => InputFile::OnDisk(path.clone()),
            Self::BuiltIn(name, content) => InputFile::BuiltIn {
                name: name.clone(),
                content,
            },
        }
    }
}

impl RowSource {
    /// The files that hold the rows, in order.
    pub fn list_files(&self) -> Result<Vec<RowsFile>, TaskError> {
        match &self.location {
            RowSourceLocation::File(path) => Ok(vec![RowsFile::OnDisk(path.clone())]),
            RowSourceLocation::BuiltIn(name, rows) => {
                Ok(vec![RowsFile::BuiltIn(name.clone(), rows)])
            }
            RowSourceLocation::Published(published) => Ok(find::find_split(published)?
                .into_iter()
                .map(RowsFile::OnDisk)
                .collect()),
        }
    }

    /// The published file that is looked for first.
    pub fn expected_file(&self) -> Option<PathBuf> {
        match &self.location {
            RowSourceLocation::Published(published) => {
                Some(published.data_folder.join(published.expected_file()))
            }
            _ => None,
        }
    }

    /// The first `limit` rows.
    pub fn read(&self, limit: Option<usize>) -> Result<Vec<TaskRow>, TaskError> {
        let files = self.list_files()?;
        let limit = limit.unwrap_or(usize::MAX);
        let mut rows = Vec::new();
        for file in &files {
            if rows.len() == limit {
                break;
            }
            read::append_rows(file, self, limit, &mut rows)?;
        }
        match (rows.is_empty(), files.first()) {
            (true, Some(file)) => Err(TaskError::NoRows(file.path().to_owned())),
            _ => Ok(rows),
        }
    }
}

impl PublishedDataset {
    /// The file that is looked for first.
    pub fn expected_file(&self) -> PathBuf {
        let name = self
            .text_file
            .clone()
            .unwrap_or_else(|| format!("{}.jsonl", self.split));
        Path::new(self.folders.first().map_or("", String::as_str)).join(name)
    }
}
