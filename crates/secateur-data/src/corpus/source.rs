//! Where a corpus is and how it is read.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A corpus file and how it is divided into documents.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CorpusSource {
    pub path: PathBuf,
    /// Separates the documents of a text file. `None`: the file is one document.
    pub separator: Option<String>,
    /// The field of a row that contains its text. `None`: `text`.
    pub field: Option<String>,
    /// Whether the tokenizer adds its special tokens (usually BOS at the start) to every document.
    pub adds_special_tokens: bool,
}

impl CorpusSource {
    /// A file with the default options: a text file is one document, rows have the field `text`.
    pub fn from_path(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            separator: None,
            field: None,
            adds_special_tokens: true,
        }
    }
}

/// Which part of a corpus is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Sample {
    /// Random windows of documents longer than `length` tokens, none twice, as LLM-Pruner draws
    /// them.
    #[default]
    Random,
    /// Every row whole, in file order.
    File,
}
