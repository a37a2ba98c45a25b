//! Where the rows and the few-shot examples of a task are: `[rows]` and `[examples]` → file paths.

use std::path::Path;

use toml::Spanned;

use super::error::TaskError;
use super::few_shot::ExampleSource;
use super::file::TaskFile;
use super::rows::{PublishedDataset, RowSource, RowSourceLocation, RowsFile, TextSplitting};
use super::sections::ExamplesSection;
use super::spanned_message::{SpannedMessage, error_at};
use crate::InputFile;

/// The default of `delimiter` in `[examples]`, which follows each few-shot example; that of
/// lm-evaluation-harness.
const DEFAULT_DELIMITER: &str = "\n\n";

/// What paths in a task file are relative to.
pub(crate) struct TaskFileContext<'a> {
    pub(crate) task_file: &'a InputFile,
    /// `run.data`.
    pub(crate) data_folder: Option<&'a Path>,
    /// The content of the rows file of a built-in task.
    pub(crate) built_in_rows: Option<&'static str>,
}

/// A mistake in the task file, or something outside it that is missing.
pub(crate) enum LocateError {
    InvalidTaskFile(SpannedMessage),
    Task(TaskError),
}

impl From<SpannedMessage> for LocateError {
    fn from(mistake: SpannedMessage) -> Self {
        Self::InvalidTaskFile(mistake)
    }
}

impl TaskFile {
    /// Locates the task's own rows.
    pub(crate) fn locate_rows(
        &self,
        context: &TaskFileContext<'_>,
    ) -> Result<RowSource, LocateError> {
        let section = self.rows.get_ref();
        section.check_keys()?;
        let location = match (&section.beside, &section.published) {
            (Some(name), None) => context.locate_beside(name)?,
            (None, Some(folders)) if !folders.is_empty() => {
                let text_file = section.file.as_ref().map(|file| file.get_ref().clone());
                self.locate_published(context, folders, text_file, &self.split)?
            }
            _ => error_at(
                &self.rows,
                "rows are `beside` the task file or `published` in a list of folders: write one of \
                 the two",
            )?,
        };
        let separator = section.separator.as_ref();
        let terminated = section.terminated.as_ref();
        let rows = RowSource {
            location,
            splitting: TextSplitting {
                separator: separator.map(|separator| separator.get_ref().clone()),
                separator_ends_row: terminated.map(|terminated| *terminated.get_ref()),
            },
        };
        if let (Some(separator), Some(file)) = (separator, rows.text_file())
            && let Ok(format) = file.open().map(|file| file.format())
            && format.has_fields()
        {
            let message = format!(
                "`separator` is for text files, and the rows are {}, which has rows already",
                format.name()
            );
            error_at(separator, message)?;
        }
        Ok(rows)
    }

    /// Locates the few-shot examples. Without `[examples]` they are drawn from the task's own rows.
    pub(crate) fn locate_examples(
        &self,
        context: &TaskFileContext<'_>,
        task_rows: &RowSource,
    ) -> Result<ExampleSource, LocateError> {
        let Some(section) = &self.examples else {
            return Ok(ExampleSource {
                rows: None,
                delimiter: DEFAULT_DELIMITER.to_owned(),
            });
        };
        let location = self.locate_example_rows(section, context, task_rows)?;
        let delimiter = section.get_ref().delimiter.as_deref();
        Ok(ExampleSource {
            rows: location.map(|location| RowSource {
                location,
                splitting: TextSplitting::default(),
            }),
            delimiter: delimiter.unwrap_or(DEFAULT_DELIMITER).to_owned(),
        })
    }

    /// Locates the rows that `[examples]` names. `None`: the task's own rows.
    fn locate_example_rows(
        &self,
        section: &toml::Spanned<ExamplesSection>,
        context: &TaskFileContext<'_>,
        task_rows: &RowSource,
    ) -> Result<Option<RowSourceLocation>, LocateError> {
        let examples = section.get_ref();
        if let Some(name) = &examples.beside {
            if examples.split.is_some() || examples.published.is_some() {
                error_at(
                    section,
                    "examples are `beside` the task file, or a `split` of what is `published`: \
                     write one of the two",
                )?;
            }
            return Ok(Some(context.locate_beside(name)?));
        }
        if let Some(folders) = &examples.published {
            if folders.is_empty() {
                error_at(section, "`published` names no folder")?;
            }
            let split = examples.split.as_ref().unwrap_or(&self.split);
            let location = self.locate_published(context, folders, None, split)?;
            return Ok(Some(location));
        }
        let Some(split) = &examples.split else {
            return Ok(None);
        };
        // Another split of the data set that contains the task's own rows.
        match &task_rows.location {
            RowSourceLocation::Published(dataset) => {
                Ok(Some(RowSourceLocation::Published(PublishedDataset {
                    split: split.clone(),
                    text_file: None,
                    ..dataset.clone()
                })))
            }
            RowSourceLocation::File(_) => error_at(
                section,
                "the task's rows are one file, which has no other split: name the examples' file \
                 with `beside`",
            )?,
        }
    }

    fn locate_published(
        &self,
        context: &TaskFileContext<'_>,
        folders: &[String],
        text_file: Option<String>,
        split: &str,
    ) -> Result<RowSourceLocation, LocateError> {
        let dataset = PublishedDataset {
            data_folder: context.data_folder.unwrap_or(Path::new("")).to_owned(),
            folders: folders.to_vec(),
            text_file,
            split: split.to_owned(),
        };
        if context.data_folder.is_none() {
            return Err(LocateError::Task(TaskError::NoDataFolder {
                name: self.name.clone(),
                rows: dataset.expected_file().display().to_string(),
            }));
        }
        Ok(RowSourceLocation::Published(dataset))
    }
}

impl TaskFileContext<'_> {
    /// Locates a file in the folder of the task file. A built-in task has at most one such file.
    fn locate_beside(&self, name: &Spanned<String>) -> Result<RowSourceLocation, SpannedMessage> {
        let file_name = name.get_ref();
        Ok(RowSourceLocation::File(match self.task_file {
            InputFile::OnDisk(task_file) => {
                let path = task_file.parent().unwrap_or(Path::new(".")).join(file_name);
                // A link that leads nowhere is named where it is opened.
                if path.symlink_metadata().is_err() {
                    let path = path.display();
                    return error_at(
                        name,
                        format!(
                            "cannot read `{path}`: there is no such file; `beside` is relative to \
                             the folder of the task file"
                        ),
                    );
                }
                RowsFile::OnDisk(path)
            }
            InputFile::BuiltIn { .. } => {
                RowsFile::BuiltIn(file_name.clone(), self.built_in_rows.unwrap_or_default())
            }
        }))
    }
}
