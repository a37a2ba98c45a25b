//! The error type of the module `files`.

use std::fmt;
use std::path::{Path, PathBuf};

/// A file or folder that could not be read, written, removed or locked, with the cause that the
/// system gave.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{}`: {source}", .path.display())]
pub struct FileError {
    pub action: FileAction,
    pub path: PathBuf,
    pub source: std::io::Error,
}

/// What was tried with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileAction {
    Read,
    Write,
    Remove,
    Lock,
}

impl fmt::Display for FileAction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Remove => "remove",
            Self::Lock => "lock",
        })
    }
}

impl FileError {
    /// The error of a file that cannot be read.
    pub fn read(path: &Path, source: impl Into<std::io::Error>) -> Self {
        Self::new(FileAction::Read, path, source)
    }

    /// The error of a file that cannot be written.
    pub fn write(path: &Path, source: impl Into<std::io::Error>) -> Self {
        Self::new(FileAction::Write, path, source)
    }

    /// The error of a file or folder that cannot be removed.
    pub fn remove(path: &Path, source: impl Into<std::io::Error>) -> Self {
        Self::new(FileAction::Remove, path, source)
    }

    pub(crate) fn lock(path: &Path, source: impl Into<std::io::Error>) -> Self {
        Self::new(FileAction::Lock, path, source)
    }

    fn new(action: FileAction, path: &Path, source: impl Into<std::io::Error>) -> Self {
        Self {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }
}
