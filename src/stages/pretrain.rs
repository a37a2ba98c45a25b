//! `pretrain`: text → a small LLaMA trained from scratch, with a tokenizer of its own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fault, World};
use crate::data::corpus::CorpusSource;

/// Trains a LLaMA from scratch on text.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Training text: a text file, or JSONL with a text field.
    pub corpus: String,
    /// What separates the documents of a text file. Default: the file is one document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// The field of a JSONL row that holds its text. Default `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Entries of the byte-level BPE vocabulary that is learned from the corpus, at least 259. Default 512.
    #[serde(default = "vocabulary")]
    pub vocabulary: usize,
    /// Width of the residual stream. Default 128.
    #[serde(default = "hidden")]
    pub hidden: usize,
    /// Number of blocks. Default 6.
    #[serde(default = "blocks")]
    pub blocks: usize,
    /// Query heads. Default 8.
    #[serde(default = "heads")]
    pub heads: usize,
    /// Key/value heads; divides `heads`. Default: as many as query heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// Width of a head, even. Default: hidden / heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Width of the MLP. Default 344.
    #[serde(default = "mlp")]
    pub mlp: usize,
    /// Tokens of a training window; documents are packed one after another. At least 2. Default 128.
    #[serde(default = "hidden")]
    pub length: usize,
    /// Windows per update. Default 32.
    #[serde(default = "batch")]
    pub batch: usize,
    /// Steps of the optimiser. Default 1000.
    #[serde(default = "updates")]
    pub updates: usize,
    /// Peak learning rate. Default 2e-3.
    #[serde(default = "learning_rate")]
    pub learning_rate: f64,
    /// Updates of linear warm-up; after it the rate falls along a cosine to a tenth of the peak. Default 100.
    #[serde(default = "warmup")]
    pub warmup: usize,
    /// Decoupled weight decay of the matrices. Default 0.1.
    #[serde(default = "weight_decay")]
    pub weight_decay: f64,
}

fn vocabulary() -> usize {
    512
}
fn hidden() -> usize {
    128
}
fn blocks() -> usize {
    6
}
fn heads() -> usize {
    8
}
fn mlp() -> usize {
    344
}
fn batch() -> usize {
    32
}
fn updates() -> usize {
    1000
}
fn learning_rate() -> f64 {
    2e-3
}
fn warmup() -> usize {
    100
}
fn weight_decay() -> f64 {
    0.1
}

impl Options {
    /// Where the training text is read from.
    pub fn source(&self) -> CorpusSource {
        CorpusSource { path: (&self.corpus).into(), separator: self.separator.clone(), field: self.field.clone() }
    }

    pub fn faults(&self) -> Vec<Fault> {
        Vec::new()
    }

    pub fn world(&self, world: &mut World) -> Vec<Fault> {
        world.corpus("corpus", &self.source())
    }
}
