//! Tasks as files: `datasets/<task>.toml` says where the rows are and how a row becomes a question with choices, or a text
//! whose perplexity is measured (after lm-evaluation-harness, whose templates the published sets follow).

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::InputFile;
use secateur_base::spelling::closest;

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

use error::RenderError;
pub use error::TaskError;
use few_shot::{ExampleSampler, ExampleSource};
use locate::{LocateError, TaskFileContext};
pub use place::FileLocation;
use question::{QuestionTemplates, RenderedQuestion};
use rows::{RowSource, RowsFile, TaskRow};
pub use text::TextDocument;
use text::TextTemplates;
use written::{SpannedMessage, TaskFile};

/// A task, found and read, its rows not yet.
#[derive(Clone, Debug)]
pub struct Task {
    pub name: String,
    pub split: String,
    pub metrics: Vec<Metric>,
    /// The metric that stands in LLM-Pruner's tables.
    pub paper_metric: Option<Metric>,
    kind: TaskKind,
    rows: RowSource,
    examples: ExampleSource,
    /// The task file.
    task_file: InputFile,
    /// Its content.
    task_file_text: String,
}

/// What a row becomes.
#[derive(Clone, Debug)]
enum TaskKind {
    Question(QuestionTemplates),
    Text(TextTemplates),
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

    fn is_text_metric(self) -> bool {
        !matches!(self, Self::Acc | Self::AccNorm)
    }
}

/// Few-shot: how many examples stand before a question, and the seed of their draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FewShot {
    pub count: usize,
    pub seed: u32,
}

/// A question: one request for each choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChoiceQuestion {
    /// Row of the file, from 0.
    pub index: u64,
    pub requests: Vec<LikelihoodRequest>,
    /// Index of the right choice.
    pub gold: usize,
}

/// How likely is this continuation of this context?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LikelihoodRequest {
    pub context: String,
    /// Begins with the space that joins it to the context.
    pub continuation: String,
    /// Characters of the choice, the joining space not counted.
    pub choice_chars: u32,
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
            let content = std::fs::read_to_string(&local).map_err(|source| TaskError::Read {
                path: local.clone(),
                source,
            })?;
            return Self::parse(content, InputFile::OnDisk(local), data, None);
        }
        match built_in::BUILT_IN_TASKS
            .iter()
            .find(|task| task.name == name)
        {
            Some(task) => Self::parse(
                task.text().to_owned(),
                task.to_input_file(),
                data,
                task.rows,
            ),
            None => {
                let close = closest(name, Self::built_in_names()).map(str::to_owned);
                Err(TaskError::Unknown {
                    name: name.to_owned(),
                    suggestion: close,
                })
            }
        }
    }

    /// The names built into the program.
    pub fn built_in_names() -> impl Iterator<Item = &'static str> {
        built_in::BUILT_IN_TASKS.iter().map(|task| task.name)
    }

    /// `beside`: the rows of a task that is built in with them.
    fn parse(
        content: String,
        written: InputFile,
        data: Option<&Path>,
        beside: Option<&'static str>,
    ) -> Result<Self, TaskError> {
        let named = |wrong: LocateError| match wrong {
            LocateError::InvalidTaskFile((message, span)) => {
                let place = FileLocation {
                    file: written.name(),
                    file_text: content.clone(),
                    span,
                };
                TaskError::InvalidTaskFile {
                    message,
                    location: Box::new(place),
                }
            }
            LocateError::Task(error) => error,
        };
        let mistake = |mistake: SpannedMessage| named(mistake.into());
        let file = TaskFile::parse(&content).map_err(mistake)?;
        let kind = file.kind().map_err(mistake)?;
        let (metrics, paper_metric) = file.metrics(&kind).map_err(mistake)?;
        let around = TaskFileContext {
            task_file: &written,
            data_folder: data,
            built_in_rows: beside,
        };
        let rows = file.locate_rows(&around).map_err(named)?;
        let examples = file.locate_examples(&around, &rows).map_err(named)?;
        Ok(Self {
            name: file.name,
            split: file.split,
            metrics,
            paper_metric,
            kind,
            rows,
            examples,
            task_file: written,
            task_file_text: content,
        })
    }

    /// Whether texts are measured, not questions.
    pub fn is_text(&self) -> bool {
        matches!(self.kind, TaskKind::Text(_))
    }

    /// What the task is made of: its file, its rows, and, if they are asked for, examples that lie elsewhere.
    pub fn input_files(&self, with_examples: bool) -> Vec<InputFile> {
        let inputs = |files: Vec<RowsFile>| {
            files
                .iter()
                .map(RowsFile::to_input_file)
                .collect::<Vec<_>>()
        };
        let mut all = vec![self.task_file.clone()];
        match self.rows.list_files() {
            Ok(files) => all.extend(inputs(files)),
            // What is not there yet is looked for by its first name.
            Err(_) => all.extend(self.rows.expected_file().map(InputFile::OnDisk)),
        }
        // Examples that are not there are missed only by those who ask for some.
        if with_examples
            && let Some(Ok(files)) = self.examples.rows.as_ref().map(RowSource::list_files)
        {
            let others: Vec<InputFile> = inputs(files)
                .into_iter()
                .filter(|input| !all.contains(input))
                .collect();
            all.extend(others);
        }
        all
    }

    /// The questions of the first `limit` rows, each behind its examples.
    pub fn questions(
        &self,
        limit: Option<usize>,
        shots: Option<FewShot>,
    ) -> Result<Vec<ChoiceQuestion>, TaskError> {
        let TaskKind::Question(question) = &self.kind else {
            return Err(TaskError::NoQuestions(self.name.clone()));
        };
        let engine = template::template_engine();
        let compiled = question
            .compile(&engine)
            .map_err(|unfit| self.task_error(unfit.into()))?;
        let rows = self.rows.read(limit)?;
        let shots = shots.filter(|shots| shots.count > 0);
        let mut examples = shots
            .map(|shots| ExampleSampler::load(&self.examples, &self.rows, shots))
            .transpose()?;
        let document = |(doc, row): (usize, &TaskRow)| {
            let before = match &mut examples {
                Some(examples) => examples
                    .prompt_prefix(row, &compiled)
                    .map_err(|unfitted| self.task_error(unfitted))?,
                None => String::new(),
            };
            let RenderedQuestion { requests, gold } = compiled
                .render(&row.to_template_value())
                .map_err(|unfit| self.task_error(RenderError::for_row(unfit, row)))?;
            let requests = requests
                .into_iter()
                .map(|(context, choice)| LikelihoodRequest {
                    context: format!("{before}{context}"),
                    choice_chars: choice.chars().count() as u32,
                    continuation: format!(" {choice}"),
                });
            Ok(ChoiceQuestion {
                index: doc as u64,
                requests: requests.collect(),
                gold,
            })
        };
        rows.iter().enumerate().map(document).collect()
    }

    /// The first `limit` texts.
    pub fn text_documents(&self, limit: Option<usize>) -> Result<Vec<TextDocument>, TaskError> {
        let TaskKind::Text(form) = &self.kind else {
            return Err(TaskError::NoText(self.name.clone()));
        };
        // Where rows are joined, only the last of them tells how many documents there are.
        let rows = self
            .rows
            .read(limit.filter(|_| form.row_joiner.is_none()))?;
        form.render_documents(&rows, limit)
            .map_err(|unfitted| self.task_error(unfitted))
    }

    /// What a template refused, with its place in the task file.
    fn task_error(&self, unfitted: RenderError) -> TaskError {
        unfitted.into_task_error(|span| FileLocation {
            file: self.task_file.name(),
            file_text: self.task_file_text.clone(),
            span,
        })
    }
}

#[cfg(test)]
mod tests;
