//! What can be wrong with a task, and where.

use std::path::PathBuf;

use super::built_in::built_in_names;
use super::file_location::FileLocation;
use crate::data_file::DataFileError;

/// A task that cannot be found or used.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("there is no task `{name}`{}", format_suggestion(.suggestion.as_deref()))]
    Unknown {
        name: String,
        suggestion: Option<String>,
    },
    #[error("cannot read `{}`: the file does not exist", .path.display())]
    Missing {
        path: PathBuf,
        /// The path of a task file with a similar name.
        suggestion: Option<String>,
    },
    #[error("`run.data` is `{}`, which is not a folder", .0.display())]
    DataFolder(PathBuf),
    /// The task file or a file of rows.
    #[error(transparent)]
    File(#[from] DataFileError),
    #[error("{location}: {message}")]
    InvalidTaskFile {
        message: String,
        location: Box<FileLocation>,
    },
    #[error(
        "`{name}` is a published set: its rows are looked for in `{rows}` under run.data, which is \
         not given"
    )]
    NoDataFolder { name: String, rows: String },
    #[error(
        "cannot read `{}`: the file does not exist, and the split `{split}` is not in {}",
        .expected.display(),
        format_paths(.folders)
    )]
    SplitNotFound {
        /// The file that is looked for first.
        expected: PathBuf,
        split: String,
        folders: Vec<PathBuf>,
    },
    #[error(
        "cannot read `{}`: the file does not exist, but other parts of the split do",
        .0.display()
    )]
    MissingShard(PathBuf),
    #[error(
        "the split `{split}` is in several folders of `{}`: {}; name one of them in `published`",
        .folder.display(),
        format_paths(.configurations)
    )]
    AmbiguousSplit {
        folder: PathBuf,
        split: String,
        configurations: Vec<PathBuf>,
    },
    #[error(
        "`{}`, {unit} {number}: {message}{}",
        .path.display(),
        format_location(.location.as_deref())
    )]
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
    #[error("`{}` holds no row: it is empty, or has only white space", .0.display())]
    NoRows(PathBuf),
    #[error(
        "{requested} examples are drawn for each question, and there are only {found} rows to draw \
         from"
    )]
    TooFewExamples { requested: usize, found: usize },
    #[error("the task `{0}` has a [text] and no [question]")]
    NoQuestions(String),
    #[error("the task `{0}` has a [question] and no [text]")]
    NoText(String),
}

fn format_suggestion(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

fn format_location(location: Option<&FileLocation>) -> String {
    location.map_or_else(String::new, |location| format!(" ({location})"))
}

fn format_paths(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| format!("`{}`", path.display()))
        .collect::<Vec<_>>()
        .join(", ")
}

impl TaskError {
    /// The place of the mistake in a task file, if it is one.
    pub fn location(&self) -> Option<&FileLocation> {
        match self {
            Self::InvalidTaskFile { location, .. } => Some(location),
            Self::InvalidRow { location, .. } => location.as_deref(),
            _ => None,
        }
    }

    /// The message without the place in the task file.
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

    /// What to write instead. Empty where the message says it.
    pub fn help(&self) -> String {
        match self {
            Self::Unknown { .. } => {
                let names: Vec<&str> = built_in_names().collect();
                format!("tasks: {}; or the path of a task file", names.join(", "))
            }
            Self::Missing {
                suggestion: Some(path),
                ..
            } => format!("did you mean `{path}`?"),
            Self::Missing { .. } => "paths are relative to the working directory".to_owned(),
            Self::File(error) => error.help().to_owned(),
            Self::NoDataFolder { .. } => {
                "write the folder of published sets in [run] data".to_owned()
            }
            Self::SplitNotFound { .. } => {
                "datasets/README.md describes the files that are looked for".to_owned()
            }
            Self::InvalidRow {
                location: Some(_), ..
            } => "the template does not fit the row: change the template or the row".to_owned(),
            Self::TooFewExamples { .. } => {
                "ask for fewer examples, or name more of them in [examples]".to_owned()
            }
            _ => String::new(),
        }
    }
}
