//! Perplexity: how rows become documents, and documents what the model reads.

use std::ops::Range;

use minijinja::value::Serde;
use minijinja::{Environment, Value, context};
use regex::Regex;

use super::error::RenderError;
use super::rows::TaskRow;
use super::template::{Template, TemplateError, TemplateSource};

/// The `[text]` of a task file.
#[derive(Clone, Debug)]
pub struct TextTemplates {
    /// A row's text.
    pub row_template: TemplateSource,
    /// A document begins at each row that matches.
    pub document_start: Option<Regex>,
    /// Joins rows into documents. None: every row is a document.
    pub row_joiner: Option<String>,
    /// What the model reads of a document.
    pub document_template: TemplateSource,
}

/// A text whose perplexity is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextDocument {
    /// Number of the document, from 0.
    pub index: u64,
    /// What the model reads.
    pub text: String,
    /// Words of the document as it was joined: pieces of a split at runs of white space, empty ones at the ends included.
    pub word_count: u64,
    /// Bytes of the document as it was joined, in UTF-8.
    pub byte_count: u64,
}

impl TextTemplates {
    /// The first `limit` documents.
    pub fn render_documents(
        &self,
        rows: &[TaskRow],
        limit: Option<usize>,
    ) -> Result<Vec<TextDocument>, RenderError> {
        let engine = super::template::template_engine();
        let (row, document) = self.compile(&engine)?;
        let rendered = rows.iter().map(|from| {
            row.render(&from.to_template_value())
                .map_err(|unfit| RenderError::for_row(unfit, from))
        });
        let documents = match &self.row_joiner {
            None => rendered
                .take(limit.unwrap_or(usize::MAX))
                .collect::<Result<Vec<_>, _>>()?,
            Some(join) => {
                let rendered = rendered.collect::<Result<Vec<_>, _>>()?;
                let ranges = self
                    .document_ranges(&rendered)
                    .into_iter()
                    .take(limit.unwrap_or(usize::MAX));
                ranges.map(|range| rendered[range].join(join)).collect()
            }
        };
        let read = |(doc, joined): (usize, String)| {
            let text = document.render(&context! { text => &joined })?;
            Ok(TextDocument {
                index: doc as u64,
                text,
                word_count: count_words(&joined),
                byte_count: joined.len() as u64,
            })
        };
        documents.into_iter().enumerate().map(read).collect()
    }

    /// The templates, compiled: of a row, and of a document.
    pub fn compile<'e>(
        &'e self,
        engine: &'e Environment<'e>,
    ) -> Result<(Template<'e>, Template<'e>), TemplateError> {
        Ok((
            self.row_template.compile_template(engine)?,
            self.document_template.compile_template(engine)?,
        ))
    }

    /// The rows of each document. What stands before the first beginning is one of its own, unless it is blank.
    fn document_ranges(&self, rows: &[String]) -> Vec<Range<usize>> {
        let begins = |row: &String| {
            self.document_start
                .as_ref()
                .is_some_and(|begins| begins.is_match(row))
        };
        let mut starts: Vec<usize> = (0..rows.len()).filter(|&i| begins(&rows[i])).collect();
        let first = starts.first().copied().unwrap_or(rows.len());
        if starts.is_empty() || rows[..first].iter().any(|row| !row.trim().is_empty()) {
            starts.retain(|&start| start > 0);
            starts.insert(0, 0);
        }
        let ends: Vec<usize> = starts.iter().skip(1).copied().chain([rows.len()]).collect();
        starts
            .into_iter()
            .zip(ends)
            .map(|(start, end)| start..end)
            .collect()
    }
}

/// Python's `len(re.split(r"\s+", text))`.
fn count_words(text: &str) -> u64 {
    // Python takes the four separators of ASCII for white space, Unicode's property does not.
    let white = |c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c);
    let mut white_before = false;
    let runs = text.chars().map(white).filter(|&white| {
        let begins = white && !white_before;
        white_before = white;
        begins
    });
    runs.count() as u64 + 1
}

impl TaskRow {
    /// The row as templates see it.
    pub fn to_template_value(&self) -> Value {
        Value::from(Serde(&self.fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_pieces_of_a_split() {
        for (text, pieces) in [
            ("", 1),
            ("a", 1),
            ("a b", 2),
            (" a  b\n", 4),
            ("a\u{a0}\t b\x1cc", 3),
            ("  ", 2),
        ] {
            assert_eq!(count_words(text), pieces, "{text:?}");
        }
    }
}
