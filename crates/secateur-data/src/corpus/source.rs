//! Where a corpus is and how it is read.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A corpus file and how it is divided into documents.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CorpusSource {
    pub path: PathBuf,
    /// Separates the documents of a text file. `None`: the file is one document.
    pub separator: Option<String>,
    /// The field of a JSONL row that contains its text. `None`: `text`.
    pub field: Option<String>,
    /// Whether the tokenizer adds its special tokens (usually BOS at the start) to every document.
    pub adds_special_tokens: bool,
}

impl CorpusSource {
    /// A file with the default options: a text file is one document, JSONL has the field `text`.
    pub fn from_path(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            separator: None,
            field: None,
            adds_special_tokens: true,
        }
    }

    /// Whether reading the corpus needs a tokenizer: whether its first row is text, not token ids.
    /// False for a file that cannot be read; reading it reports the error.
    pub fn needs_tokenizer(&self) -> bool {
        let Ok(file) = File::open(&self.path) else {
            return false;
        };
        if !self.is_jsonl() {
            return true;
        }
        let first_row = BufReader::new(file)
            .lines()
            .map_while(Result::ok)
            .find(|line| !line.trim().is_empty());
        // The row is not parsed here; a mistake in it is reported when the corpus is read.
        !first_row.is_some_and(|row| row.contains("\"ids\""))
    }

    /// Whether the file is JSON Lines, by its extension. Any other file is text.
    pub fn is_jsonl(&self) -> bool {
        self.path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl"))
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
