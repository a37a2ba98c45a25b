//! Why an evaluation fails.

use secateur_model::tokenizer::TokenizerError;

/// The evaluation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("tasks are text, and the model's folder has no tokenizer.json")]
    NoTokenizer,
    #[error(
        "{task}, document {doc}: a {what} has no token: it is empty, and the tokenizer names \
         neither a BOS nor an EOS token"
    )]
    NoToken {
        task: String,
        doc: u64,
        what: &'static str,
    },
    #[error("{task}, document {doc}: {error}")]
    Tokenizer {
        task: String,
        doc: u64,
        error: TokenizerError,
    },
    #[error("`{0}` has nothing to predict: every document has one token, or none")]
    NothingToPredict(String),
    #[error("`{task}` has nothing to measure: every text of `{rows}` is blank")]
    BlankTexts { task: String, rows: String },
    #[error(
        "`{task}`: the {metric} of {nats:.0} nats is too large for a number. A word is what stands \
         between white space: if the texts have none, measure byte_perplexity or bits_per_byte"
    )]
    PerplexityTooLarge {
        task: String,
        metric: &'static str,
        nats: f64,
    },
    #[error(
        "{what}: the result is {value}: the weights of the model, or of an adapter in it, hold or \
         give numbers that are not finite"
    )]
    NotFinite { what: String, value: f64 },
}
