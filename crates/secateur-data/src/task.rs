//! Tasks as files. `datasets/<task>.toml` says where the rows are, and how a row becomes a
//! multiple-choice question or a text whose perplexity is measured. The templates of the published
//! data sets are those of lm-evaluation-harness ("the harness").
//!
//! The steps from a task file to questions or texts, and the source file of each:
//!
//! | step | file |
//! |---|---|
//! | find the task file, suggest another | `find_file` |
//! | parse the TOML, check its keys | `file`, `sections`, `plain_words` |
//! | locate the files of rows and examples | `locate_rows` |
//! | read rows | `rows` |
//! | compile and render templates | `template`, `template_engine`, `template_error` |
//! | row → question | `question` |
//! | rows → texts | `text` |
//! | examples before the question | `few_shot`, `python_random` |
//! | metrics | `metric` |
//! | tasks built into the program | `built_in` |
//! | errors and their places | `error`, `render_error`, `spanned_message`, `file_location` |

use std::path::{Path, PathBuf};

use crate::InputFile;
use crate::data_file::{Columns, DataRow};

mod built_in;
mod error;
mod few_shot;
mod file;
mod file_location;
mod find_file;
mod locate_rows;
mod metric;
mod plain_words;
mod python_random;
mod question;
mod render_error;
mod rows;
mod sections;
mod spanned_message;
mod template;
mod template_engine;
mod template_error;
mod text;

pub use error::TaskError;
pub use few_shot::FewShot;
pub use file_location::FileLocation;
pub use metric::Metric;
pub use question::{ChoiceQuestion, LikelihoodRequest};
pub use text::TextDocument;

use built_in::{BuiltInTask, built_in_names};
use few_shot::{ExampleSampler, ExampleSource};
use file::{TaskFile, TaskKind};
use find_file::{read_task_file, suggest_task};
use locate_rows::{LocateError, TaskFileContext};
use question::CompiledQuestion;
use render_error::RenderError;
use rows::{RowSource, RowsFile};
use spanned_message::SpannedMessage;
use template_engine::{row_variables, template_engine};

/// A task whose file has been read and checked. Its rows are read by [`Task::questions`] and
/// [`Task::text_documents`].
#[derive(Clone, Debug)]
pub struct Task {
    pub name: String,
    pub split: String,
    pub metrics: Vec<Metric>,
    /// The metric that LLM-Pruner's tables show.
    pub paper_metric: Option<Metric>,
    kind: TaskKind,
    rows: RowSource,
    examples: ExampleSource,
    task_file: InputFile,
    /// The content of the task file.
    task_file_text: String,
}

impl Task {
    /// Finds a task by a path (with a `/`, or ending in `.toml`), by a name in `datasets/` of the
    /// working directory, or by the name of a built-in task. `data_folder` is `run.data`.
    ///
    /// # Errors
    /// If there is no such task, or its file cannot be read or is invalid.
    pub fn find(name: &str, data_folder: Option<&Path>) -> Result<Self, TaskError> {
        let is_path = name.contains('/') || name.ends_with(".toml");
        let path = if is_path {
            PathBuf::from(name)
        } else {
            Path::new("datasets").join(format!("{name}.toml"))
        };
        // A link that leads nowhere is named, and not passed over.
        if is_path || path.symlink_metadata().is_ok() {
            let content = read_task_file(&path)?;
            return Self::parse(content, InputFile::OnDisk(path), data_folder, None);
        }
        match BuiltInTask::find(name) {
            Some(task) => {
                let content = task.text.to_owned();
                Self::parse(content, task.to_input_file(), data_folder, task.rows)
            }
            None => Err(TaskError::Unknown {
                name: name.to_owned(),
                suggestion: suggest_task(name),
            }),
        }
    }

    /// The names of the built-in tasks.
    pub fn built_in_names() -> impl Iterator<Item = &'static str> {
        built_in_names()
    }

    /// Parses the content of a task file. `built_in_rows` are the rows of a built-in task that has
    /// rows of its own.
    fn parse(
        content: String,
        task_file: InputFile,
        data_folder: Option<&Path>,
        built_in_rows: Option<&'static str>,
    ) -> Result<Self, TaskError> {
        let at_mistake = |mistake: SpannedMessage| TaskError::InvalidTaskFile {
            message: mistake.message,
            location: Box::new(FileLocation {
                file: task_file.name(),
                file_text: content.clone(),
                span: mistake.span,
            }),
        };
        let locate_error = |error: LocateError| match error {
            LocateError::InvalidTaskFile(mistake) => at_mistake(mistake),
            LocateError::Task(error) => error,
        };
        let file = TaskFile::parse(&content).map_err(at_mistake)?;
        let kind = file.kind().map_err(at_mistake)?;
        let (metrics, paper_metric) = file.metrics(&kind).map_err(at_mistake)?;
        let context = TaskFileContext {
            task_file: &task_file,
            data_folder,
            built_in_rows,
        };
        let rows = file.locate_rows(&context).map_err(locate_error)?;
        let examples = file
            .locate_examples(&context, &rows)
            .map_err(locate_error)?;
        Ok(Self {
            name: file.name,
            split: file.split,
            metrics,
            paper_metric,
            kind,
            rows,
            examples,
            task_file,
            task_file_text: content,
        })
    }

    /// Whether the task has texts, not questions.
    pub fn is_text(&self) -> bool {
        matches!(self.kind, TaskKind::Text(_))
    }

    /// The name of the first file of rows, for messages.
    pub fn rows_name(&self) -> String {
        let files = self.rows.list_files().unwrap_or_default();
        files
            .first()
            .map_or_else(String::new, |file| file.to_input_file().name())
    }

    /// The files that the task reads: its file, its rows, and with `with_examples` the examples
    /// where they are in other files.
    pub fn input_files(&self, with_examples: bool) -> Vec<InputFile> {
        let mut inputs = vec![self.task_file.clone()];
        match self.rows.list_files() {
            Ok(files) => inputs.extend(files.iter().map(RowsFile::to_input_file)),
            // Missing rows are reported with the path where they are expected.
            Err(_) => inputs.extend(self.rows.expected_file().map(InputFile::OnDisk)),
        }
        if !with_examples {
            return inputs;
        }
        // Missing example files are reported when examples are drawn.
        let Some(Ok(files)) = self.examples.rows.as_ref().map(RowSource::list_files) else {
            return inputs;
        };
        for file in &files {
            let input = file.to_input_file();
            if !inputs.contains(&input) {
                inputs.push(input);
            }
        }
        inputs
    }

    /// The questions of the first `limit` rows, each preceded by its few-shot examples.
    ///
    /// # Errors
    /// If the task has no questions, its rows cannot be read, or a row does not fit a template.
    pub fn questions(
        &self,
        limit: Option<usize>,
        few_shot: Option<FewShot>,
    ) -> Result<Vec<ChoiceQuestion>, TaskError> {
        let TaskKind::Question(templates) = &self.kind else {
            return Err(TaskError::NoQuestions(self.name.clone()));
        };
        let engine = template_engine();
        let compiled = templates
            .compile(&engine)
            .map_err(|error| self.task_error(error.into()))?;
        let few_shot = few_shot.filter(|few_shot| few_shot.count > 0);
        // Examples are compared with the question by all fields of their rows.
        let columns = match few_shot {
            Some(_) => Columns::All,
            None => compiled.columns(),
        };
        let rows = self.rows.read(limit, &columns)?;
        let mut sampler = match few_shot {
            Some(few_shot) => Some(ExampleSampler::load(&self.examples, &self.rows, few_shot)?),
            None => None,
        };
        let mut questions = Vec::with_capacity(rows.len());
        for (index, row) in rows.iter().enumerate() {
            let prefix = match &mut sampler {
                Some(sampler) => sampler
                    .prompt_prefix(row, &compiled)
                    .map_err(|error| self.task_error(error))?,
                None => String::new(),
            };
            let question = render_question(&compiled, row, index, &prefix)
                .map_err(|error| self.task_error(error))?;
            questions.push(question);
        }
        Ok(questions)
    }

    /// The first `limit` texts.
    ///
    /// # Errors
    /// If the task has no texts, its rows cannot be read, or a row does not fit a template.
    pub fn text_documents(&self, limit: Option<usize>) -> Result<Vec<TextDocument>, TaskError> {
        let TaskKind::Text(templates) = &self.kind else {
            return Err(TaskError::NoText(self.name.clone()));
        };
        // Where rows are joined, the number of rows in `limit` documents is not known beforehand.
        let row_limit = match templates.row_joiner {
            None => limit,
            Some(_) => None,
        };
        let columns = templates
            .columns()
            .map_err(|error| self.task_error(error.into()))?;
        let rows = self.rows.read(row_limit, &columns)?;
        templates
            .render_documents(&rows, limit)
            .map_err(|error| self.task_error(error))
    }

    /// Adds the task file to an error of rendering.
    fn task_error(&self, error: RenderError) -> TaskError {
        error.into_task_error(|span| FileLocation {
            file: self.task_file.name(),
            file_text: self.task_file_text.clone(),
            span,
        })
    }
}

/// Renders the row with this index as a question. `prefix` is the text of its few-shot examples.
fn render_question(
    compiled: &CompiledQuestion<'_>,
    row: &DataRow,
    index: usize,
    prefix: &str,
) -> Result<ChoiceQuestion, RenderError> {
    let rendered = compiled
        .render(&row_variables(row))
        .map_err(|error| RenderError::for_row(error, row))?;
    let requests = rendered
        .requests
        .into_iter()
        .map(|(context, choice)| LikelihoodRequest {
            context: format!("{prefix}{context}"),
            choice_chars: choice.chars().count() as u32,
            continuation: format!(" {choice}"),
        });
    Ok(ChoiceQuestion {
        index: index as u64,
        requests: requests.collect(),
        gold: rendered.gold,
    })
}

#[cfg(test)]
mod tests;
