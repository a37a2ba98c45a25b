//! A file that a stage reads.

use std::path::PathBuf;

/// A file that a stage reads. A product's key contains the hash of its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputFile {
    OnDisk(PathBuf),
    /// A file that is built into the program.
    BuiltIn {
        name: String,
        content: &'static str,
    },
}

impl InputFile {
    /// The path of the file as the user wrote it, or the name of a built-in file.
    pub fn name(&self) -> String {
        match self {
            Self::OnDisk(path) => path.display().to_string(),
            Self::BuiltIn { name, .. } => name.clone(),
        }
    }
}
