//! The sections of a task file, and their conversion to templates.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use toml::Spanned;

use super::question::{ChoiceLabels, ChoiceTemplates, QuestionTemplates, too_few_choices};
use super::spanned_message::{SpannedMessage, error_at};
use super::template::TemplateSource;
use super::template_engine::python_pattern;
use super::text::TextTemplates;

/// `[rows]`: where the rows are.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RowsSection {
    /// A file in the folder of the task file.
    pub(crate) beside: Option<Spanned<String>>,
    /// Folders in `run.data`. The first that contains the split is used.
    pub(crate) published: Option<Vec<String>>,
    /// A text file in these folders, which is looked for before the split.
    pub(crate) file: Option<Spanned<String>>,
    /// Splits a text file into rows.
    pub(crate) separator: Option<Spanned<String>>,
    /// Whether the text after the last separator is never a row (`true`) or always one (`false`).
    /// Without this key it is a row unless it is empty.
    pub(crate) terminated: Option<Spanned<bool>>,
}

/// `[question]`: multiple choice.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QuestionSection {
    /// A template, or one for each choice.
    context: Spanned<OneOrMany>,
    /// A template for each choice, or an expression that gives the list of choices.
    choices: Spanned<OneOrMany>,
    /// An expression: the index of the right choice, or with `labels` its label.
    gold: Spanned<String>,
    /// The labels of the choices, or an expression that gives the list of labels.
    labels: Option<Spanned<OneOrMany>>,
}

/// `[examples]`: where the few-shot examples are.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExamplesSection {
    /// A file in the folder of the task file. Excludes `published` and `split`.
    pub(crate) beside: Option<Spanned<String>>,
    /// Folders in `run.data`. Default: those of `[rows]`.
    pub(crate) published: Option<Vec<String>>,
    /// Default: the split of the task. Without `split` and `published` the examples are drawn from
    /// the task's own rows.
    pub(crate) split: Option<String>,
    /// Follows each example.
    pub(crate) delimiter: Option<String>,
}

/// `[text]`: texts whose perplexity is measured.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextSection {
    /// A template that renders a row.
    row: Option<Spanned<String>>,
    /// A regular expression. A document begins at each row that it matches.
    begins: Option<Spanned<String>>,
    /// Joins rows into documents.
    join: Option<String>,
    /// A template that renders what the model reads of a document.
    document: Option<Spanned<String>>,
}

/// A string or a list of strings.
///
/// The `Deserialize` implementation is written by hand: a derived untagged enum reports neither
/// what was expected nor where.
#[derive(Debug)]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrManyVisitor)
    }
}

struct OneOrManyVisitor;

impl<'de> Visitor<'de> for OneOrManyVisitor {
    type Value = OneOrMany;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany, E> {
        Ok(OneOrMany::One(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<OneOrMany, A::Error> {
        let mut strings = Vec::new();
        while let Some(string) = items.next_element()? {
            strings.push(string);
        }
        Ok(OneOrMany::Many(strings))
    }
}

impl RowsSection {
    /// Checks keys that exclude or require each other.
    pub(crate) fn check_keys(&self) -> Result<(), SpannedMessage> {
        if let (Some(file), Some(_)) = (&self.file, &self.beside) {
            return error_at(
                file,
                "`file` is a file in the published folders, and these rows are `beside` the task \
                 file",
            );
        }
        match (&self.separator, &self.terminated) {
            (Some(separator), _) if separator.get_ref().is_empty() => {
                error_at(separator, "`separator` is empty")
            }
            (Some(separator), _) if self.beside.is_none() && self.file.is_none() => error_at(
                separator,
                "`separator` is for a text file, and neither `beside` nor `file` names one",
            ),
            (None, Some(terminated)) => error_at(terminated, "`terminated` needs a `separator`"),
            _ => Ok(()),
        }
    }
}

impl QuestionSection {
    pub(crate) fn to_templates(&self) -> Result<QuestionTemplates, SpannedMessage> {
        let contexts = self.context_templates()?;
        let choices = self.choice_templates()?;
        if let ChoiceTemplates::PerChoice(choices) = &choices
            && contexts.len() > 1
            && contexts.len() != choices.len()
        {
            return error_at(
                &self.context,
                format!(
                    "there are {} contexts for {} choices",
                    contexts.len(),
                    choices.len()
                ),
            );
        }
        let labels = self.labels.as_ref().map(|labels| match labels.get_ref() {
            OneOrMany::One(expression) => {
                ChoiceLabels::ListExpression(single_source("labels", expression, labels.span()))
            }
            OneOrMany::Many(list) => ChoiceLabels::Fixed(list.clone()),
        });
        Ok(QuestionTemplates {
            contexts,
            choices,
            gold: single_source("gold", self.gold.get_ref(), self.gold.span()),
            labels,
        })
    }

    fn context_templates(&self) -> Result<Vec<TemplateSource>, SpannedMessage> {
        let span = self.context.span();
        match self.context.get_ref() {
            OneOrMany::One(template) => Ok(vec![single_source("context", template, span)]),
            OneOrMany::Many(list) if list.len() < 2 => error_at(
                &self.context,
                "a list of contexts has one for each choice, and this one is shorter than 2",
            ),
            OneOrMany::Many(list) => Ok(list_sources("context", list, &span)),
        }
    }

    fn choice_templates(&self) -> Result<ChoiceTemplates, SpannedMessage> {
        let span = self.choices.span();
        match self.choices.get_ref() {
            OneOrMany::One(expression) => Ok(ChoiceTemplates::ListExpression(single_source(
                "choices", expression, span,
            ))),
            OneOrMany::Many(list) if list.len() < 2 => {
                error_at(&self.choices, too_few_choices(list.len()))
            }
            OneOrMany::Many(list) => Ok(ChoiceTemplates::PerChoice(list_sources(
                "choices", list, &span,
            ))),
        }
    }
}

impl TextSection {
    /// `section_span` is the place of a template that is not written: the whole section.
    pub(crate) fn to_templates(
        &self,
        section_span: &Range<usize>,
    ) -> Result<TextTemplates, SpannedMessage> {
        let template_or_default = |key: &str, template: &Option<Spanned<String>>| match template {
            Some(template) => single_source(key, template.get_ref(), template.span()),
            // The text unchanged: of a row its field `text`, of a document the joined rows.
            None => single_source(key, "{{ text }}", section_span.clone()),
        };
        Ok(TextTemplates {
            row_template: template_or_default("row", &self.row),
            document_start: self.document_start()?,
            row_joiner: self.join.clone(),
            document_template: template_or_default("document", &self.document),
        })
    }

    fn document_start(&self) -> Result<Option<regex::Regex>, SpannedMessage> {
        let Some(begins) = &self.begins else {
            return Ok(None);
        };
        if self.join.is_none() {
            return error_at(
                begins,
                "`begins` needs `join`: without it every row is a document of its own",
            );
        }
        match regex::Regex::new(&python_pattern(begins.get_ref())) {
            Ok(pattern) => Ok(Some(pattern)),
            Err(error) => error_at(
                begins,
                format!("`begins` is not a regular expression: {error}"),
            ),
        }
    }
}

fn single_source(key: &str, text: &str, span: Range<usize>) -> TemplateSource {
    TemplateSource {
        key: key.to_owned(),
        text: text.to_owned(),
        span,
    }
}

/// The templates of a list, with keys `key[0]`, `key[1]`, … and the span of the list.
fn list_sources(key: &str, list: &[String], span: &Range<usize>) -> Vec<TemplateSource> {
    list.iter()
        .enumerate()
        .map(|(i, text)| single_source(&format!("{key}[{i}]"), text, span.clone()))
        .collect()
}
