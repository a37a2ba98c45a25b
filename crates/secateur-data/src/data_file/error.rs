//! What can be wrong with a data file.

use std::path::Path;

/// A data file that cannot be read, or has none of the formats. Its text names the file, and the
/// row if one is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DataFileError {
    message: String,
    help: String,
}

impl DataFileError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: String::new(),
        }
    }

    /// The same, with what to do about it.
    pub(crate) fn with_help(self, help: impl Into<String>) -> Self {
        Self {
            help: help.into(),
            ..self
        }
    }

    pub(crate) fn cannot_read(path: &Path, cause: &dyn std::fmt::Display) -> Self {
        Self::new(format!("cannot read `{}`: {cause}", path.display()))
    }

    /// What to do about it. Empty where the message says it.
    pub fn help(&self) -> &str {
        &self.help
    }
}
