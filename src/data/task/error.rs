//! What can be wrong with a task, and where.

use std::ops::Range;
use std::path::PathBuf;

use super::rows::{Row, RowPlace};
use super::template::Unfit;
use super::{Place, Task};

/// A task cannot be found or read.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("there is no task `{name}`{}", .close.as_ref().map_or_else(String::new, |close| format!("; did you mean `{close}`?")))]
    Unknown { name: String, close: Option<String> },
    #[error("cannot read `{}`: {source}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot read `{}`: {message}", .path.display())]
    Unreadable { path: PathBuf, message: String },
    #[error("{place}: {message}")]
    Mistake { message: String, place: Box<Place> },
    #[error("`{name}` is a published set: its rows are looked for in `{rows}` under run.data, which is not given")]
    NoData { name: String, rows: String },
    #[error("cannot read `{}`: it is not there, nor is the split `{split}` in {}", .expected.display(), listed(.folders))]
    NotFound { expected: PathBuf, split: String, folders: Vec<PathBuf> },
    #[error("cannot read `{}`: other parts of the split are there, and it is not", .0.display())]
    MissingShard(PathBuf),
    #[error("the split `{split}` is in several folders of `{}`: {}; name one of them in `published`", .folder.display(), listed(.configurations))]
    Ambiguous { folder: PathBuf, split: String, configurations: Vec<PathBuf> },
    #[error("`{}`, {unit} {number}: {message}{}", .path.display(), .place.as_ref().map_or_else(String::new, |place| format!(" ({place})")))]
    Row {
        path: PathBuf,
        /// `line` or `row`.
        unit: &'static str,
        /// From 1.
        number: usize,
        message: String,
        /// The template that the row does not fit.
        place: Option<Box<Place>>,
    },
    #[error("`{}` holds no row", .0.display())]
    Empty(PathBuf),
    #[error("{asked} examples are drawn for each question, and there are only {found} rows to draw from")]
    TooFewExamples { asked: usize, found: usize },
    #[error("`{0}` measures a text and asks no questions")]
    NoQuestions(String),
    #[error("`{0}` asks questions and measures no text")]
    NoText(String),
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| format!("`{}`", path.display())).collect::<Vec<_>>().join(", ")
}

impl TaskError {
    /// Where in a task file the mistake is.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Mistake { place, .. } | Self::Row { place: Some(place), .. } => Some(place),
            _ => None,
        }
    }

    /// What is wrong, without the place.
    pub fn message(&self) -> String {
        match self {
            Self::Mistake { message, .. } => message.clone(),
            Self::Row { path, unit, number, message, .. } => format!("`{}`, {unit} {number}: {message}", path.display()),
            other => other.to_string(),
        }
    }

    /// What to write instead.
    pub fn help(&self) -> String {
        match self {
            Self::Unknown { .. } => {
                format!("tasks: {}; or the path of a task file", Task::built_in().collect::<Vec<_>>().join(", "))
            }
            Self::NoData { .. } => "write the folder of published sets in [run] data".to_owned(),
            Self::NotFound { .. } => "how rows may lie there is written in datasets/README.md".to_owned(),
            Self::Row { place: Some(_), .. } => "the template does not fit the row: mend either".to_owned(),
            Self::TooFewExamples { .. } => "ask for fewer examples, or name more of them in [examples]".to_owned(),
            _ => String::new(),
        }
    }
}

/// A template that refused, and the row that it refused; or something else that was wrong on the way.
pub enum Unfitted {
    Template(Unfit, Option<RowPlace>),
    Other(TaskError),
}

impl Unfitted {
    pub fn row(unfit: Unfit, row: &Row) -> Self {
        Self::Template(unfit, Some(row.at.clone()))
    }

    /// The error, given what a span of the task file is.
    pub fn located(self, place: impl Fn(Range<usize>) -> Place) -> TaskError {
        match self {
            Self::Other(error) => error,
            Self::Template(Unfit { message, span, always: false }, Some(row)) => TaskError::Row {
                path: row.path.to_path_buf(),
                unit: row.unit,
                number: row.number,
                message,
                place: Some(Box::new(place(span))),
            },
            Self::Template(Unfit { message, span, .. }, _) => TaskError::Mistake { message, place: Box::new(place(span)) },
        }
    }
}

impl From<Unfit> for Unfitted {
    fn from(unfit: Unfit) -> Self {
        Self::Template(unfit, None)
    }
}

impl From<TaskError> for Unfitted {
    fn from(error: TaskError) -> Self {
        Self::Other(error)
    }
}
