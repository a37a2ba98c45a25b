//! A task file as it is written: its keys, and what is wrong with them at their places.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use toml::Spanned;

use super::question::{ChoiceLabels, ChoiceTemplates, QuestionTemplates};
use super::template::{TemplateError, TemplateSource, template_engine};
use super::text::TextTemplates;
use super::{Metric, TaskKind};

/// A task file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskFile {
    pub name: String,
    /// Raised whenever templates or rows change what is measured.
    #[expect(
        dead_code,
        reason = "for readers; the file and its rows are what is hashed and compared"
    )]
    version: u32,
    pub split: String,
    metrics: Spanned<Vec<Spanned<Metric>>>,
    /// The metric that stands in the tables of the paper.
    paper_metric: Option<Spanned<Metric>>,
    pub rows: Spanned<RowsSection>,
    /// Multiple choice.
    question: Option<Spanned<QuestionSection>>,
    /// Where few-shot examples are.
    pub examples: Option<Spanned<ExamplesSection>>,
    /// Perplexity.
    text: Option<Spanned<TextSection>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowsSection {
    /// A file in the folder of the task file.
    pub beside: Option<String>,
    /// Folders under `run.data`; the first that holds the split counts.
    pub published: Option<Vec<String>>,
    /// A text file in these folders, looked for before the split.
    pub file: Option<Spanned<String>>,
    /// Cuts a text file into rows.
    pub separator: Option<Spanned<String>>,
    /// Whether what stands after the last separator is no row, even if it is not empty; or is one, even if it is.
    pub terminated: Option<Spanned<bool>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuestionSection {
    /// A template, or one for each choice.
    context: Spanned<OneOrMany>,
    /// A template for each choice, or an expression that gives the list of them.
    choices: Spanned<OneOrMany>,
    /// An expression: the index of the right choice, or its label.
    gold: Spanned<String>,
    /// The choices' labels: a list, or an expression that gives one.
    labels: Option<Spanned<OneOrMany>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExamplesSection {
    pub beside: Option<String>,
    pub published: Option<Vec<String>>,
    pub split: Option<String>,
    /// Stands between examples, and before the question.
    pub delimiter: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TextSection {
    /// A template: the text of a row.
    row: Option<Spanned<String>>,
    /// A regular expression: a document begins at each row that matches.
    begins: Option<Spanned<String>>,
    /// Joins rows into documents.
    join: Option<String>,
    /// A template: what the model reads of a document.
    document: Option<Spanned<String>>,
}

/// One text or a list of them.
#[derive(Debug)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
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
                let mut many = Vec::new();
                while let Some(item) = items.next_element()? {
                    many.push(item);
                }
                Ok(OneOrMany::Many(many))
            }
        }
        deserializer.deserialize_any(OneOrManyVisitor)
    }
}

/// What is wrong, and where in the file.
pub type SpannedMessage = (String, Range<usize>);

/// A mistake at a key's value.
pub fn error_at<T, V>(value: &Spanned<V>, message: impl Into<String>) -> Result<T, SpannedMessage> {
    Err((message.into(), value.span()))
}

impl TaskFile {
    pub fn parse(text: &str) -> Result<Self, SpannedMessage> {
        toml::from_str(text).map_err(|e| (e.message().to_owned(), e.span().unwrap_or(0..0)))
    }

    /// What a row becomes; every template is compiled once to see whether it can be.
    pub fn kind(&self) -> Result<TaskKind, SpannedMessage> {
        let wrong = |unfit: TemplateError| (unfit.message, unfit.span);
        match (&self.question, &self.text) {
            (Some(question), None) => {
                let question = question.get_ref().to_templates()?;
                question.compile(&template_engine()).map_err(wrong)?;
                Ok(TaskKind::Question(question))
            }
            (None, Some(text)) => {
                if let Some(examples) = &self.examples {
                    return error_at(
                        examples,
                        "a text has no questions, so it has no examples of them",
                    );
                }
                let form = text.get_ref().to_templates(&text.span())?;
                form.compile(&template_engine()).map_err(wrong)?;
                Ok(TaskKind::Text(form))
            }
            (Some(question), Some(_)) => error_at(
                question,
                "a task has a [question] or a [text], and this one has both",
            ),
            (None, None) => error_at(
                &self.rows,
                "a task has a [question] or a [text], and this one has neither",
            ),
        }
    }

    /// The metrics, and the paper's among them.
    pub fn metrics(
        &self,
        kind: &TaskKind,
    ) -> Result<(Vec<Metric>, Option<Metric>), SpannedMessage> {
        let written = self.metrics.get_ref();
        if written.is_empty() {
            return error_at(&self.metrics, "`metrics` is empty: nothing is measured");
        }
        let (what, fits): (_, fn(Metric) -> bool) = match kind {
            TaskKind::Question(_) => ("[question]", |metric| !metric.is_text_metric()),
            TaskKind::Text(_) => ("[text]", Metric::is_text_metric),
        };
        let metrics: Vec<Metric> = written.iter().map(|metric| *metric.get_ref()).collect();
        for (i, metric) in written.iter().enumerate() {
            let name = metric.get_ref().name();
            if !fits(*metric.get_ref()) {
                return error_at(metric, format!("`{name}` is not a metric of a {what}"));
            }
            if metrics[..i].contains(metric.get_ref()) {
                return error_at(metric, format!("`{name}` is measured twice"));
            }
        }
        match &self.paper_metric {
            Some(paper) if !metrics.contains(paper.get_ref()) => {
                error_at(paper, "`paper_metric` is not among `metrics`")
            }
            paper => Ok((metrics, paper.as_ref().map(|paper| *paper.get_ref()))),
        }
    }
}

fn template_source(key: &str, value: &Spanned<String>) -> TemplateSource {
    TemplateSource {
        key: key.to_owned(),
        text: value.get_ref().clone(),
        span: value.span(),
    }
}

/// A list's templates, each with its number.
fn template_sources(key: &str, list: &[String], span: &Range<usize>) -> Vec<TemplateSource> {
    let one = |(i, text): (usize, &String)| TemplateSource {
        key: format!("{key}[{i}]"),
        text: text.clone(),
        span: span.clone(),
    };
    list.iter().enumerate().map(one).collect()
}

impl QuestionSection {
    fn to_templates(&self) -> Result<QuestionTemplates, SpannedMessage> {
        let one = |key: &str, text: &String, span| TemplateSource {
            key: key.to_owned(),
            text: text.clone(),
            span,
        };
        let choices = match self.choices.get_ref() {
            OneOrMany::One(text) => {
                ChoiceTemplates::ListExpression(one("choices", text, self.choices.span()))
            }
            OneOrMany::Many(list) if list.len() < 2 => {
                return error_at(
                    &self.choices,
                    format!("there is nothing to choose from {} choice", list.len()),
                );
            }
            OneOrMany::Many(list) => {
                ChoiceTemplates::PerChoice(template_sources("choices", list, &self.choices.span()))
            }
        };
        let contexts = match self.context.get_ref() {
            OneOrMany::One(text) => vec![one("context", text, self.context.span())],
            OneOrMany::Many(list) if list.len() < 2 => {
                return error_at(
                    &self.context,
                    "a list of contexts has one for each choice, and this one is shorter than 2",
                );
            }
            OneOrMany::Many(list) => template_sources("context", list, &self.context.span()),
        };
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
            OneOrMany::One(text) => {
                ChoiceLabels::ListExpression(one("labels", text, labels.span()))
            }
            OneOrMany::Many(list) => ChoiceLabels::Fixed(list.clone()),
        });
        Ok(QuestionTemplates {
            contexts,
            choices,
            gold: template_source("gold", &self.gold),
            labels,
        })
    }
}

impl TextSection {
    /// `whole`: where the table stands, for what is not written in it.
    fn to_templates(&self, whole: &Range<usize>) -> Result<TextTemplates, SpannedMessage> {
        // The default of both templates: the text as it is.
        let template = |key: &str, given: &Option<Spanned<String>>| match given {
            Some(given) => template_source(key, given),
            None => TemplateSource {
                key: key.to_owned(),
                text: "{{ text }}".to_owned(),
                span: whole.clone(),
            },
        };
        let begins = match &self.begins {
            Some(begins) if self.join.is_none() => {
                return error_at(
                    begins,
                    "without `join` every row is a document of its own: nothing begins one",
                );
            }
            Some(begins) => match regex::Regex::new(begins.get_ref()) {
                Ok(regex) => Some(regex),
                Err(e) => {
                    return error_at(begins, format!("`begins` is not a regular expression: {e}"));
                }
            },
            None => None,
        };
        Ok(TextTemplates {
            row_template: template("row", &self.row),
            document_start: begins,
            row_joiner: self.join.clone(),
            document_template: template("document", &self.document),
        })
    }
}
