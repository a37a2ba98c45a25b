//! The rows of the tables.

use serde::{Deserialize, Serialize};

/// One row of `evaluate.parquet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluateRow {
    /// The task's name, or the stem of a corpus; `average` is the mean of LLM-Pruner's tables.
    pub task: String,
    /// Empty for a corpus.
    pub split: String,
    /// `acc`, `acc_norm`, `perplexity`, `word_perplexity`, `byte_perplexity`, `bits_per_byte`.
    pub metric: String,
    pub value: f64,
    /// √(sample variance / n); null for a perplexity.
    pub stderr: Option<f64>,
    /// Documents; for a perplexity, predicted tokens.
    pub n: u64,
    /// `harness` or `llm-pruner`, and what of it was asked otherwise: `harness, 2 shots`, `harness, no BOS`. A perplexity of
    /// windows is LLM-Pruner's, one of whole documents the harness's.
    pub protocol: String,
    /// The accuracy of guessing: the mean of 1 / choices. Null for a perplexity.
    pub chance: Option<f64>,
    /// Documents with a request whose left was cut away.
    pub truncated: u64,
    /// Documents with a choice that is longer than a request may be: its last tokens are scored, as many as fit.
    pub oversized: u64,
}

/// One row of `evaluate_samples.parquet`: a choice of a document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleRow {
    pub task: String,
    /// Row of the file, from 0.
    pub doc: u64,
    /// In the harness's order: BoolQ is no, yes.
    pub choice: u32,
    /// Summed over the choice's tokens, in nats.
    pub loglikelihood: f64,
    /// Tokens that were scored.
    pub tokens: u32,
    /// Characters of the choice, its joining space not counted.
    pub chars: u32,
    /// Whether every token is the model's first choice.
    pub greedy: bool,
    /// Whether this is the right choice.
    pub gold: bool,
    /// Tokens of context and choice that did not fit.
    pub cut: u32,
    /// Of these, tokens of the choice.
    pub cut_choice: u32,
}

/// One row of `evaluate_documents.parquet`: what a document, or a window of text, contributes to a metric, which is the mean of
/// these: 0 or 1 to an accuracy; to a perplexity its linearised share (the first order of the delta method). So two models
/// are compared on the same documents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DocumentRow {
    pub task: String,
    pub metric: String,
    /// Row of the file, document, or window, from 0.
    pub doc: u64,
    pub value: f64,
}
