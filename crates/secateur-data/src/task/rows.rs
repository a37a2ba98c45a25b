//! The rows of a task: JSON Lines, Parquet, or a text that is split into rows.
//!
//! | file | content |
//! |---|---|
//! | `row` | a row and where it was read; a rows file |
//! | `published` | finding the files of a split of a published data set |
//! | `read_file` | reading the rows of one file |

use std::path::PathBuf;

use super::error::TaskError;

mod published;
mod read_file;
mod row;

pub(crate) use published::PublishedDataset;
pub(crate) use read_file::TextSplitting;
pub(crate) use row::{RowLocation, RowsFile, TaskRow};

/// Where the rows of a task are, and how a text file is split into rows.
#[derive(Clone, Debug)]
pub(crate) struct RowSource {
    pub(crate) location: RowSourceLocation,
    pub(crate) splitting: TextSplitting,
}

#[derive(Clone, Debug)]
pub(crate) enum RowSourceLocation {
    /// A single file.
    File(RowsFile),
    /// A split of a published data set, in one or more files.
    Published(PublishedDataset),
}

impl RowSource {
    /// The files that contain the rows, in order.
    pub(crate) fn list_files(&self) -> Result<Vec<RowsFile>, TaskError> {
        match &self.location {
            RowSourceLocation::File(file) => Ok(vec![file.clone()]),
            RowSourceLocation::Published(dataset) => {
                let paths = dataset.find_files()?;
                Ok(paths.into_iter().map(RowsFile::OnDisk).collect())
            }
        }
    }

    /// The published file that is looked for first.
    pub(crate) fn expected_file(&self) -> Option<PathBuf> {
        match &self.location {
            RowSourceLocation::Published(dataset) => {
                Some(dataset.data_folder.join(dataset.expected_file()))
            }
            RowSourceLocation::File(_) => None,
        }
    }

    /// Reads the first `limit` rows, or all of them.
    pub(crate) fn read(&self, limit: Option<usize>) -> Result<Vec<TaskRow>, TaskError> {
        let files = self.list_files()?;
        let limit = limit.unwrap_or(usize::MAX);
        let mut rows = Vec::new();
        for file in &files {
            if rows.len() == limit {
                break;
            }
            read_file::append_rows(file, &self.splitting, limit, &mut rows)?;
        }
        match files.first() {
            Some(file) if rows.is_empty() => Err(TaskError::NoRows(file.path().to_owned())),
            _ => Ok(rows),
        }
    }
}
