//! What can be wrong with a task, and where.

use std::ops::Range;
use std::path::PathBuf;

use super::rows::{RowLocation, TaskRow};
use super::template::TemplateError;
use super::{FileLocation, Task};

/// A task cannot be found or read.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("there is no task `{name}`{}", .suggestion.as_ref().map_or_else(String::new, |close| format!("; did you mean `{close}`?")))]
    Unknown {
        name: String,
        suggestion: Option<String>,
    },
    #[error("cannot read `{}`: {source}", .path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot read `{}`: {message}", .path.display())]
    Unreadable { path: PathBuf, message: String },
    #[error("{location}: {message}")]
    InvalidTaskFile {
        message: String,
        location: Box<FileLocation>,
    },
    #[error(
        "`{name}` is a published set: its rows are looked for in `{rows}` under run.data, which is not given"
    )]
    NoDataFolder { name: String, rows: String },
    #[error("cannot read `{}`: it is not there, nor is the split `{split}` in {}", .expected.display(), format_paths(.folders))]
    SplitNotFound {
        expected: PathBuf,
        split: String,
        folders: Vec<PathBuf>,
    },
    #[error("cannot read `{}`: other parts of the split are there, and it is not", .0.display())]
    MissingShard(PathBuf),
    #[error("the split `{split}` is in several folders of `{}`: {}; name one of them in `published`", .folder.display(), format_paths(.configurations))]
    AmbiguousSplit {
        folder: PathBuf,
        split: String,
        configurations: Vec<PathBuf>,
    },
    #[error("`{}`, {unit} {number}: {message}{}", .path.display(), .location.as_ref().map_or_else(String::new, |place| format!(" ({place})")))]
    InvalidRow {
        path: PathBuf,
        /// `line` or `row`.
        unit: &'static str,
        /// From 1.
        number: usize,
        message: String,
        /// The template that the row does not fit.
        location: Option<Box<FileLocation>>,
    },
    #[error("`{}` holds no row", .0.display())]
    NoRows(PathBuf),
    #[error(
        "{requested} examples are drawn for each question, and there are only {found} rows to draw from"
    )]
    TooFewExamples { requested: usize, found: usize },
    #[error("`{0}` measures a text and asks no questions")]
    NoQuestions(String),
    #[error("`{0}` asks questions and measures no text")]
    NoText(String),
}

fn format_paths(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| format!("`{}`", path.display()))
        .collect::<Vec<_>>()
        .join(", ")
}

impl TaskError {
    /// Where in a task file the mistake is.
    pub fn location(&self) -> Option<&FileLocation> {
        match self {
            Self::InvalidTaskFile {
                location: place, ..
            }
            | Self::InvalidRow {
                location: Some(place),
                ..
            } => Some(place),
            _ => None,
        }
    }

    /// What is wrong, without the place.
    pub fn message(&self) -> String {
        match self {
            Self::InvalidTaskFile { message, .. } => message.clone(),
            Self::InvalidRow {
                path,
                unit,
                number,
                message,
                ..
            } => format!("`{}`, {unit} {number}: {message}", path.display()),
            other => other.to_string(),
        }
    }

    /// What to write instead.
    pub fn help(&self) -> String {
        match self {
            Self::Unknown { .. } => {
                format!(
                    "tasks: {}; or the path of a task file",
                    Task::built_in_names().collect::<Vec<_>>().join(", ")
                )
            }
            Self::NoDataFolder { .. } => {
                "write the folder of published sets in [run] data".to_owned()
            }
            Self::SplitNotFound { .. } => {
                "how rows may lie there is written in datasets/README.md".to_owned()
            }
            Self::InvalidRow {
                location: Some(_), ..
            } => "the template does not fit the row: mend either".to_owned(),
            Self::TooFewExamples { .. } => {
                "ask for fewer examples, or name more of them in [examples]".to_owned()
            }
            _ => String::new(),
        }
    }
}

/// A template that refused, and the row that it refused; or something else that was wrong on the way.
pub enum RenderError {
    Template(TemplateError, Option<RowLocation>),
    Task(TaskError),
}

impl RenderError {
    pub fn for_row(unfit: TemplateError, row: &TaskRow) -> Self {
        Self::Template(unfit, Some(row.location.clone()))
    }

    /// The error, given what a span of the task file is.
    pub fn into_task_error(self, place: impl Fn(Range<usize>) -> FileLocation) -> TaskError {
        match self {
            Self::Task(error) => error,
            Self::Template(
                TemplateError {
                    message,
                    span,
                    is_row_independent: false,
                },
                Some(row),
            ) => TaskError::InvalidRow {
                path: row.path.to_path_buf(),
                unit: row.unit,
                number: row.number,
                message,
                location: Some(Box::new(place(span))),
            },
            Self::Template(TemplateError { message, span, .. }, _) => TaskError::InvalidTaskFile {
                message,
                location: Box::new(place(span)),
            },
        }
    }
}

impl From<TemplateError> for RenderError {
    fn from(unfit: TemplateError) -> Self {
        Self::Template(unfit, None)
    }
}

impl From<TaskError> for RenderError {
    fn from(error: TaskError) -> Self {
        Self::Task(error)
    }
}
