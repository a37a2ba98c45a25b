//! A task file as it is written: its keys, and what is wrong with them at their places.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use toml::Spanned;

use super::question::{Choices, Labels, Question};
use super::template::{Unfit, Written, engine};
use super::text::TextForm;
use super::{Kind, Metric};

/// A task file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskFile {
    pub name: String,
    /// Raised whenever templates or rows change what is measured.
    #[expect(dead_code, reason = "for readers; the file and its rows are what is hashed and compared")]
    version: u32,
    pub split: String,
    metrics: Spanned<Vec<Spanned<Metric>>>,
    /// The metric that stands in the tables of the paper.
    paper_metric: Option<Spanned<Metric>>,
    pub rows: Spanned<WrittenRows>,
    /// Multiple choice.
    question: Option<Spanned<WrittenQuestion>>,
    /// Where few-shot examples are.
    pub examples: Option<Spanned<WrittenExamples>>,
    /// Perplexity.
    text: Option<Spanned<WrittenText>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenRows {
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
struct WrittenQuestion {
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
pub struct WrittenExamples {
    pub beside: Option<String>,
    pub published: Option<Vec<String>>,
    pub split: Option<String>,
    /// Stands between examples, and before the question.
    pub delimiter: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenText {
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
        struct Either;
        impl<'de> Visitor<'de> for Either {
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
        deserializer.deserialize_any(Either)
    }
}

/// What is wrong, and where in the file.
pub type Mistake = (String, Range<usize>);

/// A mistake at a key's value.
pub fn at<T, V>(value: &Spanned<V>, message: impl Into<String>) -> Result<T, Mistake> {
    Err((message.into(), value.span()))
}

impl TaskFile {
    pub fn read(text: &str) -> Result<Self, Mistake> {
        toml::from_str(text).map_err(|e| (e.message().to_owned(), e.span().unwrap_or(0..0)))
    }

    /// What a row becomes; every template is compiled once to see whether it can be.
    pub fn kind(&self) -> Result<Kind, Mistake> {
        let wrong = |unfit: Unfit| (unfit.message, unfit.span);
        match (&self.question, &self.text) {
            (Some(question), None) => {
                let question = question.get_ref().form()?;
                question.compile(&engine()).map_err(wrong)?;
                Ok(Kind::Question(question))
            }
            (None, Some(text)) => {
                if let Some(examples) = &self.examples {
                    return at(examples, "a text has no questions, so it has no examples of them");
                }
                let form = text.get_ref().form(&text.span())?;
                form.compile(&engine()).map_err(wrong)?;
                Ok(Kind::Text(form))
            }
            (Some(question), Some(_)) => at(question, "a task has a [question] or a [text], and this one has both"),
            (None, None) => at(&self.rows, "a task has a [question] or a [text], and this one has neither"),
        }
    }

    /// The metrics, and the paper's among them.
    pub fn metrics(&self, kind: &Kind) -> Result<(Vec<Metric>, Option<Metric>), Mistake> {
        let written = self.metrics.get_ref();
        if written.is_empty() {
            return at(&self.metrics, "`metrics` is empty: nothing is measured");
        }
        let (what, fits): (_, fn(Metric) -> bool) = match kind {
            Kind::Question(_) => ("[question]", |metric| !metric.is_of_text()),
            Kind::Text(_) => ("[text]", Metric::is_of_text),
        };
        let metrics: Vec<Metric> = written.iter().map(|metric| *metric.get_ref()).collect();
        for (i, metric) in written.iter().enumerate() {
            let name = metric.get_ref().name();
            if !fits(*metric.get_ref()) {
                return at(metric, format!("`{name}` is not a metric of a {what}"));
            }
            if metrics[..i].contains(metric.get_ref()) {
                return at(metric, format!("`{name}` is measured twice"));
            }
        }
        match &self.paper_metric {
            Some(paper) if !metrics.contains(paper.get_ref()) => at(paper, "`paper_metric` is not among `metrics`"),
            paper => Ok((metrics, paper.as_ref().map(|paper| *paper.get_ref()))),
        }
    }
}

fn written(key: &str, value: &Spanned<String>) -> Written {
    Written { key: key.to_owned(), text: value.get_ref().clone(), span: value.span() }
}

/// A list's templates, each with its number.
fn many(key: &str, list: &[String], span: &Range<usize>) -> Vec<Written> {
    let one = |(i, text): (usize, &String)| Written { key: format!("{key}[{i}]"), text: text.clone(), span: span.clone() };
    list.iter().enumerate().map(one).collect()
}

impl WrittenQuestion {
    fn form(&self) -> Result<Question, Mistake> {
        let one = |key: &str, text: &String, span| Written { key: key.to_owned(), text: text.clone(), span };
        let choices = match self.choices.get_ref() {
            OneOrMany::One(text) => Choices::OfRow(one("choices", text, self.choices.span())),
            OneOrMany::Many(list) if list.len() < 2 => {
                return at(&self.choices, format!("there is nothing to choose from {} choice", list.len()));
            }
            OneOrMany::Many(list) => Choices::Given(many("choices", list, &self.choices.span())),
        };
        let contexts = match self.context.get_ref() {
            OneOrMany::One(text) => vec![one("context", text, self.context.span())],
            OneOrMany::Many(list) if list.len() < 2 => {
                return at(&self.context, "a list of contexts has one for each choice, and this one is shorter than 2");
            }
            OneOrMany::Many(list) => many("context", list, &self.context.span()),
        };
        if let Choices::Given(choices) = &choices
            && contexts.len() > 1
            && contexts.len() != choices.len()
        {
            return at(&self.context, format!("there are {} contexts for {} choices", contexts.len(), choices.len()));
        }
        let labels = self.labels.as_ref().map(|labels| match labels.get_ref() {
            OneOrMany::One(text) => Labels::OfRow(one("labels", text, labels.span())),
            OneOrMany::Many(list) => Labels::Given(list.clone()),
        });
        Ok(Question { contexts, choices, gold: written("gold", &self.gold), labels })
    }
}

impl WrittenText {
    /// `whole`: where the table stands, for what is not written in it.
    fn form(&self, whole: &Range<usize>) -> Result<TextForm, Mistake> {
        // The default of both templates: the text as it is.
        let template = |key: &str, given: &Option<Spanned<String>>| match given {
            Some(given) => written(key, given),
            None => Written { key: key.to_owned(), text: "{{ text }}".to_owned(), span: whole.clone() },
        };
        let begins = match &self.begins {
            Some(begins) if self.join.is_none() => {
                return at(begins, "without `join` every row is a document of its own: nothing begins one");
            }
            Some(begins) => match regex::Regex::new(begins.get_ref()) {
                Ok(regex) => Some(regex),
                Err(e) => return at(begins, format!("`begins` is not a regular expression: {e}")),
            },
            None => None,
        };
        Ok(TextForm {
            row: template("row", &self.row),
            begins,
            join: self.join.clone(),
            document: template("document", &self.document),
        })
    }
}
