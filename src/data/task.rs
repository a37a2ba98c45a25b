//! Tasks as files: `datasets/<task>.toml` says where the rows are and how a row becomes a question with choices, or a text
//! whose perplexity is measured (after lm-evaluation-harness, whose templates the published sets follow).

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Input;
use crate::spelling::closest;

mod built_in;
mod error;
mod few_shot;
mod locate;
mod place;
mod python_random;
mod question;
mod rows;
mod template;
mod text;
mod written;

pub use error::TaskError;
use error::Unfitted;
use few_shot::{Examples, ExamplesAt};
use locate::{Surroundings, Wrong};
pub use place::Place;
use question::{Asked, Question};
use rows::{Row, Rows, RowsFile};
pub use text::Text;
use text::TextForm;
use written::{Mistake, TaskFile};

/// A task, found and read, its rows not yet.
#[derive(Clone, Debug)]
pub struct Task {
    pub name: String,
    pub split: String,
    pub metrics: Vec<Metric>,
    /// The metric that stands in LLM-Pruner's tables.
    pub paper_metric: Option<Metric>,
    kind: Kind,
    rows: Rows,
    examples: ExamplesAt,
    /// The task file.
    written: Input,
    /// Its content.
    content: String,
}

/// What a row becomes.
#[derive(Clone, Debug)]
enum Kind {
    Question(Question),
    Text(TextForm),
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The choice with the largest log likelihood is right.
    Acc,
    /// The same, each log likelihood divided by the number of characters of its choice.
    AccNorm,
    /// Of a token, in windows.
    Perplexity,
    /// Of a word, each document whole.
    WordPerplexity,
    /// Of a byte, each document whole.
    BytePerplexity,
    /// The logarithm of the byte perplexity, to base 2.
    BitsPerByte,
}

impl Metric {
    pub fn name(self) -> &'static str {
        match self {
            Self::Acc => "acc",
            Self::AccNorm => "acc_norm",
            Self::Perplexity => "perplexity",
            Self::WordPerplexity => "word_perplexity",
            Self::BytePerplexity => "byte_perplexity",
            Self::BitsPerByte => "bits_per_byte",
        }
    }

    fn is_of_text(self) -> bool {
        !matches!(self, Self::Acc | Self::AccNorm)
    }
}

/// Few-shot: how many examples stand before a question, and the seed of their draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shots {
    pub count: usize,
    pub seed: u32,
}

/// A question: one request for each choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Row of the file, from 0.
    pub doc: u64,
    pub requests: Vec<Request>,
    /// Index of the right choice.
    pub gold: usize,
}

/// How likely is this continuation of this context?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub context: String,
    /// Begins with the space that joins it to the context.
    pub continuation: String,
    /// Characters of the choice, the joining space not counted.
    pub chars: u32,
}

impl Task {
    /// Finds a task: a path of a task file (with a `/`, or ending in `.toml`), a name in `datasets/` of the working
    /// directory, or a name built into the program. `data` is `run.data`.
    pub fn find(name: &str, data: Option<&Path>) -> Result<Self, TaskError> {
        let local = if name.contains('/') || name.ends_with(".toml") {
            PathBuf::from(name)
        } else {
            Path::new("datasets").join(format!("{name}.toml"))
        };
        if local.exists() || local == Path::new(name) {
            let content = std::fs::read_to_string(&local).map_err(|source| TaskError::Read { path: local.clone(), source })?;
            return Self::read(content, Input::File(local), data, None);
        }
        match built_in::ALL.iter().find(|task| task.name == name) {
            Some(task) => Self::read(task.text().to_owned(), task.input(), data, task.rows),
            None => {
                let close = closest(name, Self::built_in()).map(str::to_owned);
                Err(TaskError::Unknown { name: name.to_owned(), close })
            }
        }
    }

    /// The names built into the program.
    pub fn built_in() -> impl Iterator<Item = &'static str> {
        built_in::ALL.iter().map(|task| task.name)
    }

    /// `beside`: the rows of a task that is built in with them.
    fn read(content: String, written: Input, data: Option<&Path>, beside: Option<&'static str>) -> Result<Self, TaskError> {
        let named = |wrong: Wrong| match wrong {
            Wrong::Mistake((message, span)) => {
                let place = Place { file: written.name(), text: content.clone(), span };
                TaskError::Mistake { message, place: Box::new(place) }
            }
            Wrong::Elsewhere(error) => error,
        };
        let mistake = |mistake: Mistake| named(mistake.into());
        let file = TaskFile::read(&content).map_err(mistake)?;
        let kind = file.kind().map_err(mistake)?;
        let (metrics, paper_metric) = file.metrics(&kind).map_err(mistake)?;
        let around = Surroundings { written: &written, data, beside };
        let rows = file.rows(&around).map_err(named)?;
        let examples = file.examples(&around, &rows).map_err(named)?;
        Ok(Self { name: file.name, split: file.split, metrics, paper_metric, kind, rows, examples, written, content })
    }

    /// Whether texts are measured, not questions.
    pub fn is_text(&self) -> bool {
        matches!(self.kind, Kind::Text(_))
    }

    /// What the task is made of: its file, its rows, and, if they are asked for, examples that lie elsewhere.
    pub fn inputs(&self, with_examples: bool) -> Vec<Input> {
        let inputs = |files: Vec<RowsFile>| files.iter().map(RowsFile::input).collect::<Vec<_>>();
        let mut all = vec![self.written.clone()];
        match self.rows.files() {
            Ok(files) => all.extend(inputs(files)),
            // What is not there yet is looked for by its first name.
            Err(_) => all.extend(self.rows.expected().map(Input::File)),
        }
        // Examples that are not there are missed only by those who ask for some.
        if with_examples && let Some(Ok(files)) = self.examples.rows.as_ref().map(Rows::files) {
            let others: Vec<Input> = inputs(files).into_iter().filter(|input| !all.contains(input)).collect();
            all.extend(others);
        }
        all
    }

    /// The questions of the first `limit` rows, each behind its examples.
    pub fn documents(&self, limit: Option<usize>, shots: Option<Shots>) -> Result<Vec<Document>, TaskError> {
        let Kind::Question(question) = &self.kind else { return Err(TaskError::NoQuestions(self.name.clone())) };
        let engine = template::engine();
        let compiled = question.compile(&engine).map_err(|unfit| self.refused(unfit.into()))?;
        let rows = self.rows.read(limit)?;
        let shots = shots.filter(|shots| shots.count > 0);
        let mut examples = shots.map(|shots| Examples::read(&self.examples, &self.rows, shots)).transpose()?;
        let document = |(doc, row): (usize, &Row)| {
            let before = match &mut examples {
                Some(examples) => examples.before(row, &compiled).map_err(|unfitted| self.refused(unfitted))?,
                None => String::new(),
            };
            let Asked { requests, gold } = compiled.ask(&row.value()).map_err(|unfit| self.refused(Unfitted::row(unfit, row)))?;
            let requests = requests.into_iter().map(|(context, choice)| Request {
                context: format!("{before}{context}"),
                chars: choice.chars().count() as u32,
                continuation: format!(" {choice}"),
            });
            Ok(Document { doc: doc as u64, requests: requests.collect(), gold })
        };
        rows.iter().enumerate().map(document).collect()
    }

    /// The first `limit` texts.
    pub fn texts(&self, limit: Option<usize>) -> Result<Vec<Text>, TaskError> {
        let Kind::Text(form) = &self.kind else { return Err(TaskError::NoText(self.name.clone())) };
        // Where rows are joined, only the last of them tells how many documents there are.
        let rows = self.rows.read(limit.filter(|_| form.join.is_none()))?;
        form.texts(&rows, limit).map_err(|unfitted| self.refused(unfitted))
    }

    /// What a template refused, with its place in the task file.
    fn refused(&self, unfitted: Unfitted) -> TaskError {
        unfitted.located(|span| Place { file: self.written.name(), text: self.content.clone(), span })
    }
}

#[cfg(test)]
mod tests;
