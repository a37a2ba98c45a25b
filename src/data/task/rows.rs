//! The rows of a task: JSON Lines, Parquet, or a text that is cut; and the files that hold them, in the Hub's layouts too.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Input, TaskError};

mod find;
mod read;

/// Where rows are, and how a text is cut into them.
#[derive(Clone, Debug)]
pub struct Rows {
    pub at: RowsAt,
    /// What separates the rows of a text file. None: the file is one row.
    pub separator: Option<String>,
    /// Whether a separator ends a row: then what stands after the last one is none. None: it is one unless it is empty.
    pub terminated: Option<bool>,
}

#[derive(Clone, Debug)]
pub enum RowsAt {
    /// One file.
    File(PathBuf),
    /// Built into the program: the file's name, and its content.
    BuiltIn(String, &'static str),
    /// A split in one of several folders.
    Published(Published),
}

/// A published set: the first folder that holds the split counts.
#[derive(Clone, Debug)]
pub struct Published {
    /// `run.data`.
    pub data: PathBuf,
    pub folders: Vec<String>,
    /// A text file in a folder, looked for before the split.
    pub file: Option<String>,
    pub split: String,
}

/// A file of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowsFile {
    File(PathBuf),
    BuiltIn(String, &'static str),
}

/// A row, and where it was read.
#[derive(Clone, Debug)]
pub struct Row {
    pub fields: Map<String, Value>,
    pub at: RowPlace,
}

#[derive(Clone, Debug)]
pub struct RowPlace {
    pub path: Arc<Path>,
    /// `line` or `row`.
    pub unit: &'static str,
    /// In the file, from 1.
    pub number: usize,
}

impl RowPlace {
    pub fn refuse(&self, message: impl Into<String>) -> TaskError {
        TaskError::Row {
            path: self.path.to_path_buf(),
            unit: self.unit,
            number: self.number,
            message: message.into(),
            place: None,
        }
    }
}

impl RowsFile {
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::BuiltIn(name, _) => Path::new(name),
        }
    }

    pub fn input(&self) -> Input {
        match self {
            Self::File(path) => Input::File(path.clone()),
            Self::BuiltIn(name, content) => Input::BuiltIn { name: name.clone(), content },
        }
    }
}

impl Rows {
    /// The files that hold the rows, in order.
    pub fn files(&self) -> Result<Vec<RowsFile>, TaskError> {
        match &self.at {
            RowsAt::File(path) => Ok(vec![RowsFile::File(path.clone())]),
            RowsAt::BuiltIn(name, rows) => Ok(vec![RowsFile::BuiltIn(name.clone(), rows)]),
            RowsAt::Published(published) => Ok(find::split(published)?.into_iter().map(RowsFile::File).collect()),
        }
    }

    /// The published file that is looked for first.
    pub fn expected(&self) -> Option<PathBuf> {
        match &self.at {
            RowsAt::Published(published) => Some(published.data.join(published.expected())),
            _ => None,
        }
    }

    /// The first `limit` rows.
    pub fn read(&self, limit: Option<usize>) -> Result<Vec<Row>, TaskError> {
        let files = self.files()?;
        let limit = limit.unwrap_or(usize::MAX);
        let mut rows = Vec::new();
        for file in &files {
            if rows.len() == limit {
                break;
            }
            read::append(file, self, limit, &mut rows)?;
        }
        match (rows.is_empty(), files.first()) {
            (true, Some(file)) => Err(TaskError::Empty(file.path().to_owned())),
            _ => Ok(rows),
        }
    }
}

impl Published {
    /// The file that is looked for first.
    pub fn expected(&self) -> PathBuf {
        let name = self.file.clone().unwrap_or_else(|| format!("{}.jsonl", self.split));
        Path::new(self.folders.first().map_or("", String::as_str)).join(name)
    }
}
