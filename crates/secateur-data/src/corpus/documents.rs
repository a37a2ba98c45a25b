//! A corpus file → its documents.

use super::error::CorpusError;
use super::source::CorpusSource;
use super::token_row::TokenRow;
use crate::data_file::{Columns, DataFile, DataFileError, DataRow, FieldValue};
use crate::python;

/// The label of a token whose prediction does not count, as in PyTorch and Transformers.
const IGNORED_LABEL: i128 = -100;

/// The field of a row that contains its text, if the source does not name one.
const DEFAULT_TEXT_FIELD: &str = "text";

/// A document as the file contains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CorpusDocument {
    Text(String),
    TokenIds(TokenRow),
}

/// The documents of a corpus, in order.
type Documents<'s> = Box<dyn Iterator<Item = Result<CorpusDocument, CorpusError>> + 's>;

/// Reads all documents of a corpus. Token ids are below `vocabulary_size`.
///
/// # Errors
/// If the file cannot be read, a row is invalid, or there is no document.
pub(crate) fn read_documents(
    source: &CorpusSource,
    vocabulary_size: usize,
) -> Result<Vec<CorpusDocument>, CorpusError> {
    let file = DataFile::open(&source.path)?;
    let documents: Vec<CorpusDocument> =
        open_documents(&file, source, vocabulary_size)?.collect::<Result<_, _>>()?;
    if documents.is_empty() {
        return Err(CorpusError::Empty(source.path.clone()));
    }
    warn_of_missing_separator(source, &documents);
    Ok(documents)
}

/// Warns if the separator of a text does not occur in it.
fn warn_of_missing_separator(source: &CorpusSource, documents: &[CorpusDocument]) {
    if let (Some(separator), [CorpusDocument::Text(text)]) = (&source.separator, documents)
        && is_whole_file(source, text)
    {
        tracing::warn!(
            path = %source.path.display(),
            separator,
            "the separator does not occur: the file is one document"
        );
    }
}

/// Whether a document is its file: no separator divides it.
pub(super) fn is_whole_file(source: &CorpusSource, text: &str) -> bool {
    let size = std::fs::metadata(&source.path).map_or(0, |metadata| metadata.len());
    size == text.len() as u64
}

/// Opens the documents of a corpus: the parts of a text, or one for each row.
pub(crate) fn open_documents<'s>(
    file: &DataFile,
    source: &'s CorpusSource,
    vocabulary_size: usize,
) -> Result<Documents<'s>, CorpusError> {
    if !file.format().has_fields() {
        let documents = split_text(&file.read_text()?, source);
        return Ok(Box::new(documents.into_iter().map(Ok)));
    }
    let reader = RowReader {
        file: file.clone(),
        text_field: source.field.as_deref(),
        vocabulary_size,
    };
    let rows = file.rows(reader.columns())?;
    Ok(Box::new(rows.map(move |row| {
        let row = row?;
        let document = reader.to_document(&row);
        Ok(document.map_err(|message| row.location.to_error(message))?)
    })))
}

/// Divides a text at the separator. Blank parts are not documents.
fn split_text(text: &str, source: &CorpusSource) -> Vec<CorpusDocument> {
    let parts: Vec<&str> = match &source.separator {
        Some(separator) if !separator.is_empty() => text.split(separator.as_str()).collect(),
        _ => vec![text],
    };
    parts
        .into_iter()
        .filter(|part| !python::is_blank(part))
        .map(|part| CorpusDocument::Text(part.to_owned()))
        .collect()
}

/// Turns rows into documents.
struct RowReader<'s> {
    file: DataFile,
    /// The field with the text, if the source names it. Then rows of token ids are not looked for.
    text_field: Option<&'s str>,
    vocabulary_size: usize,
}

impl RowReader<'_> {
    fn columns(&self) -> Columns {
        let names = match self.text_field {
            Some(field) => vec![field],
            None => vec!["ids", "labels", DEFAULT_TEXT_FIELD],
        };
        Columns::Only(names.into_iter().map(str::to_owned).collect())
    }

    /// A row is a text, or `{"ids": [...]}`, with `"labels": [...]` where a loss mask matters.
    fn to_document(&self, row: &DataRow) -> Result<CorpusDocument, String> {
        let text_field = self.text_field.unwrap_or(DEFAULT_TEXT_FIELD);
        if self.text_field.is_none()
            && let Some(ids) = row.field("ids")
        {
            return self.token_row(ids, row.field("labels"));
        }
        match row.field(text_field) {
            Some(FieldValue::Text(text)) => Ok(CorpusDocument::Text(text.clone())),
            Some(other) => Err(format!("`{text_field}` is {}, not a text", other.kind())),
            None => Err(self.missing_field(text_field)),
        }
    }

    fn missing_field(&self, text_field: &str) -> String {
        let message = match self.text_field {
            Some(_) => format!("it has no field `{text_field}`"),
            None => format!("it has neither `{text_field}` nor `ids`"),
        };
        match first_row_fields(&self.file) {
            Ok(names) if !names.is_empty() => {
                format!("{message}; the first row has {}", names.join(", "))
            }
            _ => message,
        }
    }

    fn token_row(
        &self,
        ids: &FieldValue,
        labels: Option<&FieldValue>,
    ) -> Result<CorpusDocument, String> {
        let to_id = |value: &i128| u32::try_from(*value).ok();
        let integers = integer_list("ids", "token ids", ids)?;
        let ids: Vec<u32> = integers.iter().filter_map(to_id).collect();
        if let Some(number) = integers.iter().find(|number| to_id(number).is_none()) {
            return Err(format!(
                "`ids` is not a list of token ids: it holds {number}"
            ));
        }
        if ids.is_empty() {
            return Err("`ids` is empty".to_owned());
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocabulary_size) {
            return Err(format!(
                "the token id {id} lies outside the vocabulary of {} entries",
                self.vocabulary_size
            ));
        }
        let loss_mask = match labels {
            None | Some(FieldValue::Null) => vec![true; ids.len()],
            Some(labels) => parse_loss_mask(&ids, labels)?,
        };
        Ok(CorpusDocument::TokenIds(TokenRow { ids, loss_mask }))
    }
}

/// The names of the fields of the first row, in backquotes.
fn first_row_fields(file: &DataFile) -> Result<Vec<String>, DataFileError> {
    let Some(row) = file.rows(Columns::All)?.next() else {
        return Ok(Vec::new());
    };
    let names = row?.fields.into_iter().map(|(name, _)| format!("`{name}`"));
    Ok(names.collect())
}

/// The integers of a list. `content`: what the list should hold.
fn integer_list(field: &str, content: &str, list: &FieldValue) -> Result<Vec<i128>, String> {
    let FieldValue::List(items) = list else {
        return Err(format!(
            "`{field}` is {}, not a list of {content}",
            list.kind()
        ));
    };
    let to_integer = |item: &FieldValue| match item {
        FieldValue::Integer(number) => Ok(*number),
        other => Err(format!(
            "`{field}` is not a list of {content}: it holds {}",
            other.kind()
        )),
    };
    items.iter().map(to_integer).collect()
}

/// Converts labels to a loss mask: a label of -100 does not count; every other label must repeat
/// its token id, because the model is trained to predict the row itself.
fn parse_loss_mask(ids: &[u32], labels: &FieldValue) -> Result<Vec<bool>, String> {
    let labels = integer_list("labels", "numbers", labels)?;
    if labels.len() != ids.len() {
        return Err(format!(
            "`labels` has {} entries, `ids` has {}",
            labels.len(),
            ids.len()
        ));
    }
    let mut loss_mask = Vec::with_capacity(ids.len());
    for (&id, &label) in ids.iter().zip(&labels) {
        if label != IGNORED_LABEL && label != i128::from(id) {
            return Err(format!(
                "the label {label} is neither {IGNORED_LABEL} nor its token id {id}"
            ));
        }
        loss_mask.push(label != IGNORED_LABEL);
    }
    Ok(loss_mask)
}
