//! Perplexity: how rows become documents, and documents the texts that the model reads.

use std::ops::Range;

use minijinja::{Environment, context};
use regex::Regex;

use super::render_error::RenderError;
use super::template::{Template, TemplateSource};
use super::template_engine::{row_variables, template_engine};
use super::template_error::TemplateError;
use crate::data_file::{Columns, DataRow};
use crate::python;

/// The section `[text]` of a task file.
#[derive(Clone, Debug)]
pub(crate) struct TextTemplates {
    /// Renders a row.
    pub(crate) row_template: TemplateSource,
    /// A document begins at each rendered row that this expression matches.
    pub(crate) document_start: Option<Regex>,
    /// Joins the rendered rows of a document. `None`: every row is a document.
    pub(crate) row_joiner: Option<String>,
    /// Renders what the model reads of a document.
    pub(crate) document_template: TemplateSource,
}

/// A text whose perplexity is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextDocument {
    /// The number of the document, from 0.
    pub index: u64,
    /// What the model reads.
    pub text: String,
    /// Words of the joined document, before `document_template`: the pieces of a split at runs of
    /// white space, including empty pieces at the ends.
    pub word_count: u64,
    /// Bytes of the joined document in UTF-8, before `document_template`.
    pub byte_count: u64,
}

impl TextTemplates {
    /// The fields that the template of a row reads.
    pub(crate) fn columns(&self) -> Result<Columns, TemplateError> {
        let engine = template_engine();
        let fields = self.row_template.compile_template(&engine)?.fields();
        Ok(Columns::Only(fields.into_iter().collect()))
    }

    /// Renders the first `limit` documents.
    pub(crate) fn render_documents(
        &self,
        rows: &[DataRow],
        limit: Option<usize>,
    ) -> Result<Vec<TextDocument>, RenderError> {
        let engine = template_engine();
        let (row_template, document_template) = self.compile(&engine)?;
        let limit = limit.unwrap_or(usize::MAX);
        let rendered_rows = rows.iter().map(|row| {
            row_template
                .render(&row_variables(row))
                .map_err(|error| RenderError::for_row(error, row))
        });
        let joined_documents: Vec<String> = match &self.row_joiner {
            None => rendered_rows.take(limit).collect::<Result<_, _>>()?,
            Some(joiner) => {
                let rendered_rows = rendered_rows.collect::<Result<Vec<_>, _>>()?;
                self.document_ranges(&rendered_rows)
                    .into_iter()
                    .take(limit)
                    .map(|range| rendered_rows[range].join(joiner))
                    .collect()
            }
        };
        let mut documents = Vec::with_capacity(joined_documents.len());
        for (index, joined) in joined_documents.iter().enumerate() {
            documents.push(TextDocument {
                index: index as u64,
                text: document_template.render(&context! { text => joined })?,
                word_count: count_words(joined),
                byte_count: joined.len() as u64,
            });
        }
        Ok(documents)
    }

    /// Compiles the template of a row and the template of a document.
    pub(crate) fn compile<'e>(
        &'e self,
        engine: &'e Environment<'e>,
    ) -> Result<(Template<'e>, Template<'e>), TemplateError> {
        Ok((
            self.row_template.compile_template(engine)?,
            self.document_template.compile_template(engine)?,
        ))
    }

    /// The range of rows of each document. The rows before the first match of `document_start` are
    /// a document of their own, unless they are all blank.
    fn document_ranges(&self, rendered_rows: &[String]) -> Vec<Range<usize>> {
        let begins_document = |index: &usize| {
            self.document_start
                .as_ref()
                .is_some_and(|pattern| pattern.is_match(&rendered_rows[*index]))
        };
        let mut starts: Vec<usize> = (0..rendered_rows.len()).filter(begins_document).collect();
        let leading_rows = match starts.first() {
            Some(&first_start) => &rendered_rows[..first_start],
            None => rendered_rows,
        };
        let has_leading_text = leading_rows.iter().any(|row| !python::is_blank(row));
        // Without any match, all rows are one document, even if they are blank.
        if starts.is_empty() || has_leading_text {
            starts.insert(0, 0);
        }
        // A document ends where the next one begins.
        let ends = starts.iter().skip(1).copied().chain([rendered_rows.len()]);
        starts
            .iter()
            .zip(ends)
            .map(|(&start, end)| start..end)
            .collect()
    }
}

/// The number of words as lm-evaluation-harness counts them: Python's `len(re.split(r"\s+",
/// text))`, which is the number of runs of white space, plus one.
fn count_words(text: &str) -> u64 {
    let mut run_count = 0;
    let mut is_in_run = false;
    for c in text.chars() {
        let is_white = python::is_white_space(c);
        if is_white && !is_in_run {
            run_count += 1;
        }
        is_in_run = is_white;
    }
    run_count + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_pieces_of_a_split_at_white_space() {
        for (text, expected_count) in [
            ("", 1),
            ("a", 1),
            ("a b", 2),
            (" a  b\n", 4),
            ("a\u{a0}\t b\x1cc", 3),
            ("  ", 2),
        ] {
            assert_eq!(count_words(text), expected_count, "{text:?}");
        }
    }
}
