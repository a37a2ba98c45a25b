//! The documents of a corpus as rows of token ids, or as texts.

use std::path::Path;

use super::documents::{CorpusDocument, read_documents};
use super::error::CorpusError;
use super::source::CorpusSource;
use super::token_row::TokenRow;
use crate::data_file::DataFile;
use crate::python;
use secateur_model::tokenizer::Tokenizer;

/// Reads every document as one row, in file order. Text is encoded by the tokenizer, with its
/// special tokens if the source says so; every token of a text counts in the loss.
///
/// # Errors
/// If the corpus cannot be read, or is text and there is no tokenizer.
pub fn read_rows(
    source: &CorpusSource,
    tokenizer: Option<&Tokenizer>,
    vocabulary_size: usize,
) -> Result<Vec<TokenRow>, CorpusError> {
    let mut rows = Vec::new();
    for (document, row) in read_documents(source, vocabulary_size)?
        .into_iter()
        .zip(1..)
    {
        rows.push(match document {
            CorpusDocument::TokenIds(row) => row,
            CorpusDocument::Text(text) => encode_text(&text, row, source, tokenizer)?,
        });
    }
    Ok(rows)
}

/// `row`: the document's number in the file, from 1.
fn encode_text(
    text: &str,
    row: usize,
    source: &CorpusSource,
    tokenizer: Option<&Tokenizer>,
) -> Result<TokenRow, CorpusError> {
    let tokenizer = tokenizer.ok_or_else(|| CorpusError::NoTokenizer(source.path.clone()))?;
    let ids = tokenizer
        .encode(text, source.adds_special_tokens)
        .map_err(|error| CorpusError::Encode {
            path: source.path.clone(),
            row,
            error,
        })?;
    Ok(TokenRow {
        loss_mask: vec![true; ids.len()],
        ids,
    })
}

/// Checks rows that are used whole.
///
/// # Errors
/// If a row has more tokens than the model has positions.
pub fn check_row_lengths(
    source: &CorpusSource,
    rows: &[TokenRow],
    positions: usize,
) -> Result<(), CorpusError> {
    match rows.iter().position(|row| row.ids.len() > positions) {
        None => Ok(()),
        Some(index) => Err(CorpusError::DocumentTooLong {
            path: source.path.clone(),
            row: index + 1,
            tokens: rows[index].ids.len(),
            positions,
        }),
    }
}

/// Reads the documents of a corpus of text.
///
/// # Errors
/// If the corpus cannot be read, or contains token ids.
pub fn read_text_documents(source: &CorpusSource) -> Result<Vec<String>, CorpusError> {
    let mut texts = Vec::new();
    // With this vocabulary size no token id is invalid, so a corpus of ids gets the error `NotText`
    // below and not one about a single id.
    for document in read_documents(source, usize::MAX)? {
        match document {
            CorpusDocument::Text(text) => texts.push(text),
            CorpusDocument::TokenIds(_) => return Err(CorpusError::NotText(source.path.clone())),
        }
    }
    Ok(texts)
}

/// Reads prompts: the rows of a file with fields, or the lines of a text that are not blank.
///
/// # Errors
/// If the file cannot be read, contains token ids, or has no prompt.
pub fn read_prompts(path: &Path) -> Result<Vec<String>, CorpusError> {
    let source = CorpusSource::from_path(path);
    let file = DataFile::open(path)?;
    if file.format().has_fields() {
        return read_text_documents(&source);
    }
    let text = file.read_text()?;
    let lines = text.lines().filter(|line| !python::is_blank(line));
    let prompts: Vec<String> = lines.map(str::to_owned).collect();
    if prompts.is_empty() {
        return Err(CorpusError::Empty(source.path));
    }
    Ok(prompts)
}
