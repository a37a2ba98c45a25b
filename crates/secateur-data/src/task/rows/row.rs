//! A row of a task, and the file that contains it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::value::Serde;
use serde_json::{Map, Value};

use crate::InputFile;
use crate::task::error::TaskError;

/// A file of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RowsFile {
    OnDisk(PathBuf),
    /// A file that is built into the program: its name and its content.
    BuiltIn(String, &'static str),
}

impl RowsFile {
    /// The path on disk, or the name of a built-in file.
    pub(crate) fn path(&self) -> &Path {
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
}

/// A row, and where it was read.
#[derive(Clone, Debug)]
pub(crate) struct TaskRow {
    pub(crate) fields: Map<String, Value>,
    pub(crate) location: RowLocation,
}

impl TaskRow {
    /// The row as templates see it: its fields are their variables.
    pub(crate) fn to_template_value(&self) -> minijinja::Value {
        minijinja::Value::from(Serde(&self.fields))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct RowLocation {
    pub(crate) path: Arc<Path>,
    /// What `number` counts: `line` or `row`.
    pub(crate) unit: &'static str,
    /// The number in the file, from 1.
    pub(crate) number: usize,
}

impl RowLocation {
    pub(crate) fn to_error(&self, message: impl Into<String>) -> TaskError {
        TaskError::InvalidRow {
            path: self.path.to_path_buf(),
            unit: self.unit,
            number: self.number,
            message: message.into(),
            location: None,
        }
    }
}
