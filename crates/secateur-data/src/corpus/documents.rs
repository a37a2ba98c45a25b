//! A corpus file → its documents.

use serde_json::Value;

use super::error::CorpusError;
use super::source::CorpusSource;
use super::text_file::read_text;
use super::token_row::TokenRow;

/// The label of a token whose prediction does not count, as in PyTorch and Transformers.
const IGNORED_LABEL: i64 = -100;

/// A document as the file contains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CorpusDocument {
    Text(String),
    TokenIds(TokenRow),
}

/// Reads all documents of a corpus. Token ids are below `vocabulary_size`.
///
/// # Errors
/// If the file cannot be read, a line is invalid, or there is no document.
pub(crate) fn read_documents(
    source: &CorpusSource,
    vocabulary_size: usize,
) -> Result<Vec<CorpusDocument>, CorpusError> {
    let text = read_text(&source.path)?;
    let documents = if source.is_jsonl() {
        parse_jsonl(&text, source, vocabulary_size)?
    } else {
        split_text(&text, source)
    };
    if documents.is_empty() {
        return Err(CorpusError::Empty(source.path.clone()));
    }
    Ok(documents)
}

/// Divides a text at the separator. Blank parts are not documents.
fn split_text(text: &str, source: &CorpusSource) -> Vec<CorpusDocument> {
    let parts: Vec<&str> = match &source.separator {
        Some(separator) if !separator.is_empty() => {
            if !text.contains(separator.as_str()) {
                tracing::warn!(
                    path = %source.path.display(),
                    separator,
                    "the separator does not occur: the file is one document"
                );
            }
            text.split(separator.as_str()).collect()
        }
        _ => vec![text],
    };
    parts
        .into_iter()
        .filter(|part| !part.trim().is_empty())
        .map(|part| CorpusDocument::Text(part.to_owned()))
        .collect()
}

/// Reads one document from each line. Blank lines are skipped.
fn parse_jsonl(
    text: &str,
    source: &CorpusSource,
    vocabulary_size: usize,
) -> Result<Vec<CorpusDocument>, CorpusError> {
    let text_field = source.field.as_deref().unwrap_or("text");
    let mut documents = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let document = parse_jsonl_line(line, text_field, vocabulary_size).map_err(|message| {
            CorpusError::InvalidLine {
                path: source.path.clone(),
                line: i + 1,
                message,
            }
        })?;
        documents.push(document);
    }
    Ok(documents)
}

/// Parses a line: `{"ids": [...]}`, with `"labels": [...]` where a loss mask matters, or an object
/// with a field of text.
fn parse_jsonl_line(
    line: &str,
    text_field: &str,
    vocabulary_size: usize,
) -> Result<CorpusDocument, String> {
    let value: Value =
        serde_json::from_str(line).map_err(|error| format!("it is not valid JSON: {error}"))?;
    let Value::Object(object) = value else {
        return Err("it is not a JSON object".to_owned());
    };
    let Some(id_list) = object.get("ids") else {
        return match object.get(text_field) {
            Some(Value::String(text)) => Ok(CorpusDocument::Text(text.clone())),
            Some(other) => Err(format!("`{text_field}` is {other}, not a text")),
            None => Err(format!("it has neither `{text_field}` nor `ids`")),
        };
    };
    let ids: Vec<u32> = serde_json::from_value(id_list.clone())
        .map_err(|error| format!("`ids` is not a list of token ids: {error}"))?;
    if ids.is_empty() {
        return Err("`ids` is empty".to_owned());
    }
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary_size) {
        return Err(format!(
            "the token id {id} lies outside the vocabulary of {vocabulary_size} entries"
        ));
    }
    let loss_mask = match object.get("labels") {
        None => vec![true; ids.len()],
        Some(labels) => parse_loss_mask(&ids, labels)?,
    };
    Ok(CorpusDocument::TokenIds(TokenRow { ids, loss_mask }))
}

/// Converts labels to a loss mask: a label of -100 does not count; every other label must repeat
/// its token id, because the model is trained to predict the row itself.
fn parse_loss_mask(ids: &[u32], labels: &Value) -> Result<Vec<bool>, String> {
    let labels: Vec<i64> = serde_json::from_value(labels.clone())
        .map_err(|error| format!("`labels` is not a list of numbers: {error}"))?;
    if labels.len() != ids.len() {
        return Err(format!(
            "`labels` has {} entries, `ids` has {}",
            labels.len(),
            ids.len()
        ));
    }
    let mut loss_mask = Vec::with_capacity(ids.len());
    for (&id, &label) in ids.iter().zip(&labels) {
        if label != IGNORED_LABEL && label != i64::from(id) {
            return Err(format!(
                "the label {label} is neither {IGNORED_LABEL} nor its token id {id}"
            ));
        }
        loss_mask.push(label != IGNORED_LABEL);
    }
    Ok(loss_mask)
}
