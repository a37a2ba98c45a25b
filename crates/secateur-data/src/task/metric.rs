//! The metrics of tasks.

use serde::Deserialize;

/// What a task measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The share of questions for which the choice with the largest log likelihood is right.
    Acc,
    /// As `Acc`, after dividing each log likelihood by the number of characters of its choice.
    AccNorm,
    /// Perplexity per token, in windows of a fixed length.
    Perplexity,
    /// Perplexity per word, each document whole.
    WordPerplexity,
    /// Perplexity per byte, each document whole.
    BytePerplexity,
    /// The logarithm of the byte perplexity, to base 2.
    BitsPerByte,
}

impl Metric {
    /// The metric's name in task files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Acc => "acc",
            Self::AccNorm => "acc_norm",
            Self::Perplexity => "perplexity",
            Self::WordPerplexity => "word_perplexity",
            Self::BytePerplexity => "byte_perplexity",
            Self::BitsPerByte => "bits_per_byte",
        }
    }

    /// Whether the metric is measured on texts, not on multiple-choice questions.
    pub(crate) fn is_text_metric(self) -> bool {
        !matches!(self, Self::Acc | Self::AccNorm)
    }
}
