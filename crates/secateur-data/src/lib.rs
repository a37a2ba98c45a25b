//! Data: corpora for calibration, training and perplexity, and tasks for evaluation.

use std::path::PathBuf;

pub mod corpus;
pub mod feed;
pub mod task;

/// Something that a stage reads, known by its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputFile {
    OnDisk(PathBuf),
    /// Built into the program.
    BuiltIn {
        name: String,
        content: &'static str,
    },
}

impl InputFile {
    /// The file's path as it was given, or the name of what is built in.
    pub fn name(&self) -> String {
        match self {
            Self::OnDisk(path) => path.display().to_string(),
            Self::BuiltIn { name, .. } => name.clone(),
        }
    }
}
