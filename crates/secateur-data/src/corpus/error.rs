//! What can be wrong with a corpus.

use std::path::PathBuf;

use secateur_model::tokenizer::TokenizerError;

/// A corpus that is missing, damaged, or too small.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    #[error("cannot read `{}`: {source}", .path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("`{}` is not UTF-8 text from byte {offset} on", .path.display())]
    NotUtf8 { path: PathBuf, offset: usize },
    #[error("`{}`, line {line}: {message}", .path.display())]
    InvalidLine {
        path: PathBuf,
        /// From 1.
        line: usize,
        message: String,
    },
    #[error("`{}` holds no document", .0.display())]
    Empty(PathBuf),
    #[error(
        "`{}` is text, and the model's folder has no tokenizer.json; give rows of token ids \
         instead",
        .0.display()
    )]
    NoTokenizer(PathBuf),
    #[error("`{}` holds token ids, and text is needed", .0.display())]
    NotText(PathBuf),
    #[error(
        "`{}`, document {row}: its {tokens} tokens are more than the model's {positions} \
         positions; write sample = \"random\", or cut it",
        .path.display()
    )]
    DocumentTooLong {
        path: PathBuf,
        /// The document's number in the file, from 1.
        row: usize,
        tokens: usize,
        positions: usize,
    },
    #[error(
        "`{}` has nothing to predict: every row has one token, or none that counts",
        .0.display()
    )]
    NothingToPredict(PathBuf),
    #[error("`{}`, document {row}: {error}", .path.display())]
    Encode {
        path: PathBuf,
        /// The document's number in the file, from 1.
        row: usize,
        error: TokenizerError,
    },
    #[error(
        "`{}` has {found} different windows of {length} tokens in documents longer than that, \
         {requested} are asked for",
        .path.display()
    )]
    TooFewWindows {
        path: PathBuf,
        found: usize,
        requested: usize,
        length: usize,
    },
}
