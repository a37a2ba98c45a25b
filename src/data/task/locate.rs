//! Where a task's rows and examples are, seen from where the task file is.

use std::path::Path;

use super::few_shot::ExamplesAt;
use super::rows::{Published, Rows, RowsAt};
use super::written::{Mistake, TaskFile, WrittenRows, at};
use super::{Input, TaskError};

/// Stands between few-shot examples where the file does not say what: the harness's.
const DELIMITER: &str = "\n\n";

/// What surrounds a task file.
pub struct Surroundings<'a> {
    pub written: &'a Input,
    /// `run.data`.
    pub data: Option<&'a Path>,
    /// The rows that are built in with the task.
    pub beside: Option<&'static str>,
}

/// A mistake of the file, or something that it needs and is not there.
pub enum Wrong {
    Mistake(Mistake),
    Elsewhere(TaskError),
}

impl From<Mistake> for Wrong {
    fn from(mistake: Mistake) -> Self {
        Self::Mistake(mistake)
    }
}

impl TaskFile {
    /// Where the rows are.
    pub fn rows(&self, around: &Surroundings<'_>) -> Result<Rows, Wrong> {
        let written = self.rows.get_ref();
        written.check()?;
        let at = match (&written.beside, &written.published) {
            (Some(name), None) => around.beside(name),
            (None, Some(folders)) if !folders.is_empty() => {
                let file = written.file.as_ref().map(|file| file.get_ref().clone());
                self.published(around, folders, file, &self.split)?
            }
            _ => at(&self.rows, "rows are `beside` the task file or `published` in a list of folders: write one of the two")?,
        };
        let separator = written.separator.as_ref().map(|separator| separator.get_ref().clone());
        Ok(Rows { at, separator, terminated: written.terminated.as_ref().map(|it| *it.get_ref()) })
    }

    /// Where the few-shot examples are: the task's own rows, unless the file says otherwise.
    pub fn examples(&self, around: &Surroundings<'_>, own: &Rows) -> Result<ExamplesAt, Wrong> {
        let Some(written) = &self.examples else {
            return Ok(ExamplesAt { rows: None, delimiter: DELIMITER.to_owned() });
        };
        let examples = written.get_ref();
        let split = examples.split.as_ref().unwrap_or(&self.split);
        let found = match (&examples.beside, &examples.published) {
            (Some(_), _) if examples.split.is_some() || examples.published.is_some() => {
                at(written, "examples are `beside` the task file, or a `split` of what is `published`: write one of the two")?
            }
            (Some(name), _) => Some(around.beside(name)),
            (None, Some(folders)) if folders.is_empty() => at(written, "`published` names no folder")?,
            (None, Some(folders)) => Some(self.published(around, folders, None, split)?),
            (None, None) => match (&own.at, &examples.split) {
                (_, None) => None,
                (RowsAt::Published(own), Some(split)) => {
                    Some(RowsAt::Published(Published { split: split.clone(), file: None, ..own.clone() }))
                }
                (_, Some(_)) => {
                    at(written, "the task's rows are one file, which has no other split: name the examples' file with `beside`")?
                }
            },
        };
        let rows = found.map(|at| Rows { at, separator: None, terminated: None });
        Ok(ExamplesAt { rows, delimiter: examples.delimiter.clone().unwrap_or_else(|| DELIMITER.to_owned()) })
    }

    fn published(
        &self,
        around: &Surroundings<'_>,
        folders: &[String],
        file: Option<String>,
        split: &str,
    ) -> Result<RowsAt, Wrong> {
        let mut published =
            Published { data: Path::new("").to_owned(), folders: folders.to_vec(), file, split: split.to_owned() };
        let Some(data) = around.data else {
            let rows = published.expected().display().to_string();
            return Err(Wrong::Elsewhere(TaskError::NoData { name: self.name.clone(), rows }));
        };
        data.clone_into(&mut published.data);
        Ok(RowsAt::Published(published))
    }
}

impl Surroundings<'_> {
    fn beside(&self, name: &str) -> RowsAt {
        match (self.written, self.beside) {
            (Input::File(path), _) => RowsAt::File(path.parent().unwrap_or(Path::new(".")).join(name)),
            (Input::BuiltIn { .. }, rows) => RowsAt::BuiltIn(name.to_owned(), rows.unwrap_or_default()),
        }
    }
}

impl WrittenRows {
    /// Options that exclude each other, and texts that are cut by nothing.
    fn check(&self) -> Result<(), Mistake> {
        if let (Some(file), Some(_)) = (&self.file, &self.beside) {
            return at(file, "`file` is a file in the published folders, and these rows are `beside` the task file");
        }
        if let Some(separator) = self.separator.as_ref().filter(|separator| separator.get_ref().is_empty()) {
            return at(separator, "an empty text separates nothing");
        }
        let name = self.beside.as_deref().or(self.file.as_ref().map(|file| file.get_ref().as_str()));
        let has_rows = |name: &str| [".jsonl", ".parquet"].iter().any(|ending| name.to_ascii_lowercase().ends_with(ending));
        let is_text = name.is_some_and(|name| !has_rows(name));
        match (&self.separator, &self.terminated) {
            (Some(separator), _) if !is_text => at(separator, "only a text file is cut: JSON Lines and Parquet have rows"),
            (None, Some(terminated)) => at(terminated, "without a `separator` nothing is cut, and nothing ends a row"),
            _ => Ok(()),
        }
    }
}
