//! Corpora: text, JSONL with a text field, or JSONL rows of token ids → rows of ids.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a corpus is and how it is cut into documents.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CorpusSource {
    pub path: PathBuf,
    /// What separates the documents of a text file. None: the file is one document.
    pub separator: Option<String>,
    /// The field of a JSONL row that holds its text. None: `text`.
    pub field: Option<String>,
}

/// Which part of a corpus is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Sample {
    /// Random windows of documents longer than `length` tokens, none twice, as the reference draws them.
    #[default]
    Random,
    /// Every row whole, in file order.
    File,
}

/// One row of token ids, and which of them count in a loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub ids: Vec<u32>,
    /// Whether the prediction of `ids[i]` counts; `counts[0]` is never used. Same length as `ids`.
    pub counts: Vec<bool>,
}

#[derive(Debug, thiserror::Error)]
pub enum CorpusError {}
use crate::model::tokenizer::Tokenizer;
pub fn rows(_: &CorpusSource, _: Option<&Tokenizer>, _: usize) -> Result<Vec<Row>, CorpusError> {
    unimplemented!()
}
pub fn windows(
    _: &CorpusSource,
    _: Option<&Tokenizer>,
    _: usize,
    _samples: usize,
    _length: usize,
    _: &mut impl rand::Rng,
) -> Result<Vec<Row>, CorpusError> {
    unimplemented!()
}
pub fn documents(_: &CorpusSource) -> Result<Vec<String>, CorpusError> {
    unimplemented!()
}
