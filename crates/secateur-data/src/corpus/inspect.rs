//! What the check of a pipeline looks at in a corpus.

use super::documents::{CorpusDocument, is_whole_file, open_documents};
use super::error::CorpusError;
use super::source::CorpusSource;
use crate::data_file::{DataFile, DataFormat};

/// The bytes up to which a file is read for the sizes of its documents.
const MAX_SURVEYED_BYTES: u64 = 4 << 20;

/// What the beginning of a corpus shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CorpusContent {
    pub format: DataFormat,
    /// Whether the first document is a row of token ids, not a text.
    pub is_token_ids: bool,
}

impl CorpusSource {
    /// Bytes of the file.
    fn size(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(u64::MAX, |metadata| metadata.len())
    }

    /// The largest number of tokens that each document can have: a token has at least one byte,
    /// and a tokenizer may add a space and a special token at each end. `None` for a file that is
    /// too large to be read for this alone.
    ///
    /// # Errors
    /// If the file cannot be read or a row is invalid.
    pub fn max_tokens(&self) -> Result<Option<Vec<usize>>, CorpusError> {
        if self.size() > MAX_SURVEYED_BYTES {
            return Ok(None);
        }
        let file = DataFile::open(&self.path)?;
        let mut max_tokens = Vec::new();
        for document in open_documents(&file, self, usize::MAX)? {
            max_tokens.push(match document? {
                CorpusDocument::Text(text) => text.len() + 3,
                CorpusDocument::TokenIds(row) => row.ids.len(),
            });
        }
        Ok(Some(max_tokens))
    }

    /// Whether there is a separator, and it does not occur in the text. False for a file that is
    /// too large to be read for this alone.
    pub fn lacks_separator(&self) -> bool {
        if self.separator.is_none() || self.size() > MAX_SURVEYED_BYTES {
            return false;
        }
        let first_document = || {
            let file = DataFile::open(&self.path).ok()?;
            open_documents(&file, self, usize::MAX).ok()?.next()?.ok()
        };
        matches!(first_document(), Some(CorpusDocument::Text(text)) if is_whole_file(self, &text))
    }

    /// Decides the format of the file and reads its first document. An option that does not fit
    /// the format is not looked at.
    ///
    /// # Errors
    /// If the file cannot be read, has no document, or its first row is invalid.
    pub fn inspect(&self) -> Result<CorpusContent, CorpusError> {
        let file = DataFile::open(&self.path)?;
        if !file.format().has_fields() && self.size() > MAX_SURVEYED_BYTES {
            // Whether it is all white space shows when it is read.
            return Ok(CorpusContent {
                format: file.format(),
                is_token_ids: false,
            });
        }
        // With this vocabulary size no token id is invalid: the model may not be known.
        let first_document = open_documents(&file, self, usize::MAX)?.next();
        match first_document.transpose()? {
            None => Err(CorpusError::Empty(self.path.clone())),
            Some(document) => Ok(CorpusContent {
                format: file.format(),
                is_token_ids: matches!(document, CorpusDocument::TokenIds(_)),
            }),
        }
    }
}
