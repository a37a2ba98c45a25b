//! The error type of the module `files`.

use std::path::{Path, PathBuf};

/// A file or folder that could not be written, with the cause that the system gave.
#[derive(Debug, thiserror::Error)]
#[error("cannot write `{}`: {source}", .path.display())]
pub struct FileError {
    pub path: PathBuf,
    pub source: std::io::Error,
}

impl FileError {
    /// Returns a function for `map_err` that adds `path` to an IO error.
    pub(crate) fn with_path(path: &Path) -> impl Fn(std::io::Error) -> Self + '_ {
        move |source| Self {
            path: path.to_owned(),
            source,
        }
    }
}
