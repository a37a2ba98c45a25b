//! What can be wrong with a corpus.

use std::path::PathBuf;

use crate::data_file::DataFileError;
use secateur_model::tokenizer::TokenizerError;

impl CorpusError {
    /// What to do about it. Empty where the message says it.
    pub fn help(&self) -> &str {
        match self {
            Self::File(error) => error.help(),
            _ => "",
        }
    }
}

/// A corpus that is missing, damaged, or too small.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    #[error(transparent)]
    File(#[from] DataFileError),
    #[error("`{}` holds no document: it has no row, or only white space", .0.display())]
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
