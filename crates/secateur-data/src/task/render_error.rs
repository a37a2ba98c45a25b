//! What can go wrong while rows are rendered.

use std::ops::Range;

use super::error::TaskError;
use super::file_location::FileLocation;
use super::template_error::TemplateError;
use crate::data_file::{DataRow, RowLocation};

/// An error while rows are rendered: of a template, with the row that it was rendered for, or
/// another error of the task. It does not know the task file yet.
pub(crate) enum RenderError {
    Template(TemplateError, Option<RowLocation>),
    Task(TaskError),
}

impl RenderError {
    pub(crate) fn for_row(error: TemplateError, row: &DataRow) -> Self {
        Self::Template(error, Some(row.location.clone()))
    }

    /// Converts to an error of the task. `locate` converts a span of the task file to a place in
    /// it.
    pub(crate) fn into_task_error(
        self,
        locate: impl FnOnce(Range<usize>) -> FileLocation,
    ) -> TaskError {
        let (error, row) = match self {
            Self::Task(error) => return error,
            Self::Template(error, row) => (error, row),
        };
        let location = Box::new(locate(error.span));
        match row {
            Some(row) if !error.is_row_independent => TaskError::InvalidRow {
                path: row.path.to_path_buf(),
                unit: row.unit,
                number: row.number,
                message: error.message,
                location: Some(location),
            },
            _ => TaskError::InvalidTaskFile {
                message: error.message,
                location,
            },
        }
    }
}

impl From<TemplateError> for RenderError {
    fn from(error: TemplateError) -> Self {
        Self::Template(error, None)
    }
}

impl From<TaskError> for RenderError {
    fn from(error: TaskError) -> Self {
        Self::Task(error)
    }
}
