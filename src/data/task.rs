//! Multiple-choice tasks as files: `datasets/<task>.toml` says where the rows are and how a row becomes a prompt and its
//! choices (after lm-evaluation-harness, whose templates the published sets follow).

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Input;
use crate::spelling::closest;

mod format;

use format::Format;

/// A task, found and read, its rows not yet.
#[derive(Clone, Debug)]
pub struct Task {
    pub name: String,
    pub split: String,
    pub metrics: Vec<Metric>,
    format: Format,
    rows: RowsAt,
    /// The task file.
    written: Input,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The choice with the largest log likelihood is right.
    Acc,
    /// The same, each log likelihood divided by the number of characters of its choice.
    AccNorm,
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

/// A task cannot be found or read.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("there is no task `{name}`{}", .close.as_ref().map_or_else(String::new, |close| format!("; did you mean `{close}`?")))]
    Unknown { name: String, close: Option<String> },
    #[error("cannot read `{}`: {source}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("`{}` is not a task: {message}", .path.display())]
    Broken { path: PathBuf, message: String },
    #[error("`{name}` is a published set: its rows are looked for in `{rows}` under run.data, which is not given")]
    NoData { name: String, rows: String },
    #[error("`{}`, line {line}: {message}", .path.display())]
    Row { path: PathBuf, line: usize, message: String },
    #[error("`{}` holds no row", .0.display())]
    Empty(PathBuf),
}

/// A task file as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskFile {
    name: String,
    /// Raised whenever prompt, choices or rows change what is measured.
    #[expect(dead_code, reason = "for readers; the rows and the format are what is hashed and compared")]
    version: u32,
    split: String,
    metrics: Vec<Metric>,
    rows: WrittenRows,
    format: Format,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum WrittenRows {
    /// A file in the folder of the task file.
    Beside(String),
    /// A file under `run.data`.
    Published(String),
}

#[derive(Clone, Debug)]
enum RowsAt {
    File(PathBuf),
    BuiltIn(&'static str, &'static str),
}

/// The tasks built into the program, with the rows of our own.
const BUILT_IN: [(&str, &str, Option<&str>); 9] = [
    ("boolq", include_str!("../../datasets/boolq.toml"), None),
    ("piqa", include_str!("../../datasets/piqa.toml"), None),
    ("hellaswag", include_str!("../../datasets/hellaswag.toml"), None),
    ("winogrande", include_str!("../../datasets/winogrande.toml"), None),
    ("arc_easy", include_str!("../../datasets/arc_easy.toml"), None),
    ("arc_challenge", include_str!("../../datasets/arc_challenge.toml"), None),
    ("openbookqa", include_str!("../../datasets/openbookqa.toml"), None),
    ("tiny_boolq", include_str!("../../datasets/tiny_boolq.toml"), Some(include_str!("../../datasets/tiny_boolq.jsonl"))),
    ("tiny_piqa", include_str!("../../datasets/tiny_piqa.toml"), Some(include_str!("../../datasets/tiny_piqa.jsonl"))),
];

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
            let text = std::fs::read_to_string(&local).map_err(|source| TaskError::Read { path: local.clone(), source })?;
            return Self::read(&text, Input::File(local.clone()), &local, data, None);
        }
        match BUILT_IN.iter().find(|(built_in, ..)| *built_in == name) {
            Some((name, text, rows)) => {
                let written = Input::BuiltIn { name: format!("{name}.toml"), content: text };
                Self::read(text, written, Path::new(name), data, rows.map(|rows| (*name, rows)))
            }
            None => {
                let close = closest(name, Self::built_in()).map(str::to_owned);
                Err(TaskError::Unknown { name: name.to_owned(), close })
            }
        }
    }

    /// The names built into the program.
    pub fn built_in() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, ..)| *name)
    }

    fn read(
        text: &str,
        written: Input,
        path: &Path,
        data: Option<&Path>,
        built_in: Option<(&'static str, &'static str)>,
    ) -> Result<Self, TaskError> {
        let file: TaskFile =
            toml::from_str(text).map_err(|e| TaskError::Broken { path: path.to_owned(), message: e.to_string() })?;
        if file.metrics.is_empty() {
            return Err(TaskError::Broken {
                path: path.to_owned(),
                message: "`metrics` is empty: nothing is measured".to_owned(),
            });
        }
        let rows = match (file.rows, built_in, data) {
            (WrittenRows::Beside(_), Some((name, rows)), _) => RowsAt::BuiltIn(name, rows),
            (WrittenRows::Beside(name), None, _) => RowsAt::File(path.parent().unwrap_or(Path::new(".")).join(name)),
            (WrittenRows::Published(rows), _, Some(data)) => RowsAt::File(data.join(rows)),
            (WrittenRows::Published(rows), _, None) => return Err(TaskError::NoData { name: file.name, rows }),
        };
        Ok(Self { name: file.name, split: file.split, metrics: file.metrics, format: file.format, rows, written })
    }

    /// The file that holds the rows; None if they are built into the program.
    pub fn rows_file(&self) -> Option<&Path> {
        match &self.rows {
            RowsAt::File(path) => Some(path),
            RowsAt::BuiltIn(..) => None,
        }
    }

    /// What the task is made of: its file, and its rows.
    pub fn inputs(&self) -> [Input; 2] {
        let rows = match &self.rows {
            RowsAt::File(path) => Input::File(path.clone()),
            RowsAt::BuiltIn(name, rows) => Input::BuiltIn { name: format!("{name}.jsonl"), content: rows },
        };
        [self.written.clone(), rows]
    }

    /// The first `limit` documents.
    pub fn documents(&self, limit: Option<usize>) -> Result<Vec<Document>, TaskError> {
        let (path, text) = match &self.rows {
            RowsAt::BuiltIn(name, rows) => (PathBuf::from(format!("{name}.jsonl")), (*rows).to_owned()),
            RowsAt::File(path) => {
                (path.clone(), std::fs::read_to_string(path).map_err(|source| TaskError::Read { path: path.clone(), source })?)
            }
        };
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).take(limit.unwrap_or(usize::MAX));
        let documents = lines.enumerate().map(|(doc, (line, row))| {
            self.document(doc as u64, row).map_err(|message| TaskError::Row { path: path.clone(), line: line + 1, message })
        });
        let documents = documents.collect::<Result<Vec<_>, _>>()?;
        if documents.is_empty() { Err(TaskError::Empty(path)) } else { Ok(documents) }
    }

    fn document(&self, doc: u64, line: &str) -> Result<Document, String> {
        let row: Map<String, Value> = serde_json::from_str(line).map_err(|e| format!("it is not a JSON object: {e}"))?;
        let (requests, gold) = self.format.requests(&row)?;
        if requests.len() < 2 {
            return Err(format!("there is nothing to choose from {} choice", requests.len()));
        }
        if let Some(empty) = requests.iter().position(|(_, choice)| choice.trim().is_empty()) {
            return Err(format!("choice {empty} is empty"));
        }
        if gold >= requests.len() {
            return Err(format!("the right choice is number {gold}, and there are {}", requests.len()));
        }
        let requests = requests.into_iter().map(|(context, choice)| Request {
            context,
            chars: choice.chars().count() as u32,
            continuation: format!(" {choice}"),
        });
        Ok(Document { doc, requests: requests.collect(), gold })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_task_reads_and_ours_has_balanced_rows() {
        for name in Task::built_in() {
            let task = Task::find(name, Some(Path::new("data"))).expect(name);
            assert_eq!(task.name, name);
        }
        for name in ["tiny_boolq", "tiny_piqa"] {
            let documents = Task::find(name, None).expect(name).documents(None).expect(name);
            let gold: usize = documents.iter().map(|d| d.gold).sum();
            assert_eq!(gold * 2, documents.len(), "{name}: half of the answers are the second choice");
        }
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(
            Task::find("tiny_bool", None).expect_err("no such task").to_string(),
            "there is no task `tiny_bool`; did you mean `tiny_boolq`?"
        );
        let no_data = Task::find("piqa", None).expect_err("no data").to_string();
        assert_eq!(
            no_data,
            "`piqa` is a published set: its rows are looked for in `piqa/validation.jsonl` under run.data, which is not given"
        );
        let task = Task::find("tiny_piqa", None).expect("built in");
        assert_eq!(
            task.document(0, "{\"goal\": \"g\", \"sol1\": \"a\", \"sol2\": 3, \"label\": 0}").expect_err("a number"),
            "`sol2` is 3, not a text"
        );
        assert_eq!(
            task.document(0, "{\"goal\": \"g\", \"sol1\": \"a\", \"sol2\": \"b\", \"label\": 2}").expect_err("no third"),
            "the right choice is number 2, and there are 2"
        );
        assert_eq!(task.document(0, "{\"goal\": \"g\"}").expect_err("no choices"), "it lacks the field `sol1`");
    }
}
