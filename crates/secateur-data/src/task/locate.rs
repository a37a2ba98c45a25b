//! Where a task's rows and examples are, seen from where the task file is.

use std::path::Path;

use super::few_shot::ExampleSource;
use super::rows::{PublishedDataset, RowSource, RowSourceLocation};
use super::written::{RowsSection, SpannedMessage, TaskFile, error_at};
use super::{InputFile, TaskError};

/// Stands between few-shot examples where the file does not say what: the harness's.
const DEFAULT_DELIMITER: &str = "\n\n";

/// What surrounds a task file.
pub struct TaskFileContext<'a> {
    pub task_file: &'a InputFile,
    /// `run.data`.
    pub data_folder: Option<&'a Path>,
    /// The rows that are built in with the task.
    pub built_in_rows: Option<&'static str>,
}

/// A mistake of the file, or something that it needs and is not there.
pub enum LocateError {
    InvalidTaskFile(SpannedMessage),
    Task(TaskError),
}

impl From<SpannedMessage> for LocateError {
    fn from(mistake: SpannedMessage) -> Self {
        Self::InvalidTaskFile(mistake)
    }
}

impl TaskFile {
    /// Where the rows are.
    pub fn locate_rows(&self, around: &TaskFileContext<'_>) -> Result<RowSource, LocateError> {
        let written = self.rows.get_ref();
        written.check_exclusive_keys()?;
        let at = match (&written.beside, &written.published) {
            (Some(name), None) => around.locate_beside(name),
            (None, Some(folders)) if !folders.is_empty() => {
                let file = written.file.as_ref().map(|file| file.get_ref().clone());
                self.locate_published(around, folders, file, &self.split)?
            }
            _ => error_at(
                &self.rows,
                "rows are `beside` the task file or `published` in a list of folders: write one of the two",
            )?,
        };
        let separator = written
            .separator
            .as_ref()
            .map(|separator| separator.get_ref().clone());
        Ok(RowSource {
            location: at,
            separator,
            separator_ends_row: written.terminated.as_ref().map(|it| *it.get_ref()),
        })
    }

    /// Where the few-shot examples are: the task's own rows, unless the file says otherwise.
    pub fn locate_examples(
        &self,
        around: &TaskFileContext<'_>,
        own: &RowSource,
    ) -> Result<ExampleSource, LocateError> {
        let Some(written) = &self.examples else {
            return Ok(ExampleSource {
                rows: None,
                delimiter: DEFAULT_DELIMITER.to_owned(),
            });
        };
        let examples = written.get_ref();
        let split = examples.split.as_ref().unwrap_or(&self.split);
        let found = match (&examples.beside, &examples.published) {
            (Some(_), _) if examples.split.is_some() || examples.published.is_some() => error_at(
                written,
                "examples are `beside` the task file, or a `split` of what is `published`: write one of the two",
            )?,
            (Some(name), _) => Some(around.locate_beside(name)),
            (None, Some(folders)) if folders.is_empty() => {
                error_at(written, "`published` names no folder")?
            }
            (None, Some(folders)) => Some(self.locate_published(around, folders, None, split)?),
            (None, None) => match (&own.location, &examples.split) {
                (_, None) => None,
                (RowSourceLocation::Published(own), Some(split)) => {
                    Some(RowSourceLocation::Published(PublishedDataset {
                        split: split.clone(),
                        text_file: None,
                        ..own.clone()
                    }))
                }
                (_, Some(_)) => error_at(
                    written,
                    "the task's rows are one file, which has no other split: name the examples' file with `beside`",
                )?,
            },
        };
        let rows = found.map(|at| RowSource {
            location: at,
            separator: None,
            separator_ends_row: None,
        });
        Ok(ExampleSource {
            rows,
            delimiter: examples
                .delimiter
                .clone()
                .unwrap_or_else(|| DEFAULT_DELIMITER.to_owned()),
        })
    }

    fn locate_published(
        &self,
        around: &TaskFileContext<'_>,
        folders: &[String],
        file: Option<String>,
        split: &str,
    ) -> Result<RowSourceLocation, LocateError> {
        let mut published = PublishedDataset {
            data_folder: Path::new("").to_owned(),
            folders: folders.to_vec(),
            text_file: file,
            split: split.to_owned(),
        };
        let Some(data) = around.data_folder else {
            let rows = published.expected_file().display().to_string();
            return Err(LocateError::Task(TaskError::NoDataFolder {
                name: self.name.clone(),
                rows,
            }));
        };
        data.clone_into(&mut published.data_folder);
        Ok(RowSourceLocation::Published(published))
    }
}

impl TaskFileContext<'_> {
    fn locate_beside(&self, name: &str) -> RowSourceLocation {
        match (self.task_file, self.built_in_rows) {
            (InputFile::OnDisk(path), _) => {
                RowSourceLocation::File(path.parent().unwrap_or(Path::new(".")).join(name))
            }
            (InputFile::BuiltIn { .. }, rows) => {
                RowSourceLocation::BuiltIn(name.to_owned(), rows.unwrap_or_default())
            }
        }
    }
}

impl RowsSection {
    /// Options that exclude each other, and texts that are cut by nothing.
    fn check_exclusive_keys(&self) -> Result<(), SpannedMessage> {
        if let (Some(file), Some(_)) = (&self.file, &self.beside) {
            return error_at(
                file,
                "`file` is a file in the published folders, and these rows are `beside` the task file",
            );
        }
        if let Some(separator) = self
            .separator
            .as_ref()
            .filter(|separator| separator.get_ref().is_empty())
        {
            return error_at(separator, "an empty text separates nothing");
        }
        let name = self
            .beside
            .as_deref()
            .or(self.file.as_ref().map(|file| file.get_ref().as_str()));
        let has_rows = |name: &str| {
            [".jsonl", ".parquet"]
                .iter()
                .any(|ending| name.to_ascii_lowercase().ends_with(ending))
        };
        let is_text = name.is_some_and(|name| !has_rows(name));
        match (&self.separator, &self.terminated) {
            (Some(separator), _) if !is_text => error_at(
                separator,
                "only a text file is cut: JSON Lines and Parquet have rows",
            ),
            (None, Some(terminated)) => error_at(
                terminated,
                "without a `separator` nothing is cut, and nothing ends a row",
            ),
            _ => Ok(()),
        }
    }
}
