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
    /// `harness` or `llm-pruner`, and options that change the measurement: `harness, 2 shots`,
    /// `harness, no BOS`. A perplexity of windows is LLM-Pruner's, one of whole documents the
    /// harness's.
    pub protocol: String,
    /// The accuracy of guessing: the mean of 1 / choices. Null for a perplexity.
    pub chance: Option<f64>,
    /// The accuracy of always giving the most frequent right answer: its share among the scored
    /// documents. Null for a perplexity, and where the choices differ from document to document.
    pub majority: Option<f64>,
    /// Documents with a request that was cut on the left.
    pub truncated: u64,
    /// Documents with a choice that is longer than a request may be: only its last tokens that fit
    /// are scored.
    pub oversized: u64,
}

/// One row of `evaluate_samples.parquet`: a choice of a document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleRow {
    pub task: String,
    /// Row of the file, from 0.
    pub doc: u64,
    /// Index of the choice, in the order of the harness: for BoolQ no, yes.
    pub choice: u32,
    /// Log likelihood, summed over the choice's tokens, in nats.
    pub loglikelihood: f64,
    /// Tokens that were scored.
    pub tokens: u32,
    /// Characters of the choice, its joining space not counted.
    pub chars: u32,
    /// Whether every token is the most likely one.
    pub greedy: bool,
    /// Whether this is the right choice.
    pub gold: bool,
    /// Tokens of context and choice that did not fit.
    pub cut: u32,
    /// Of these, tokens of the choice.
    pub cut_choice: u32,
}

/// One row of `evaluate_documents.parquet`: the share of a document, or of a window of text, in a
/// metric, which is the mean of the shares: 0 or 1 in an accuracy, the linearised share in a
/// perplexity (the delta method to first order). With it two models are compared on the same
/// documents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DocumentRow {
    pub task: String,
    pub metric: String,
    /// Row of the file, document, or window, from 0.
    pub doc: u64,
    pub value: f64,
}
