//! Splitting a text into rows.

use std::path::Path;
use std::sync::Arc;

use crate::data_file::{DataRow, FieldValue, RowLocation};

/// How a text file is split into rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct TextSplitting {
    /// Separates or ends rows. `None`: the file is one row.
    pub(crate) separator: Option<String>,
    /// What the text after the last separator is. `true`: a separator ends a row, so it is not a
    /// row. `false`: a separator stands between two rows, so it is a row, even if empty. `None`: it
    /// is a row unless it is empty.
    pub(crate) separator_ends_row: Option<bool>,
}

impl TextSplitting {
    /// The parts of a text as rows with one field, `text`.
    pub(super) fn split(&self, text: &str, path: &Path) -> Vec<DataRow> {
        let mut parts: Vec<&str> = match &self.separator {
            Some(separator) => text.split(separator.as_str()).collect(),
            None => vec![text],
        };
        let last_part_is_empty = parts.last().is_some_and(|part| part.is_empty());
        if self.separator_ends_row.unwrap_or(last_part_is_empty) {
            parts.pop();
        }
        let path: Arc<Path> = path.into();
        let to_row = |(index, part): (usize, &str)| DataRow {
            fields: vec![("text".to_owned(), FieldValue::Text(part.to_owned()))],
            location: RowLocation {
                path: path.clone(),
                unit: "row",
                number: index + 1,
            },
        };
        parts.into_iter().enumerate().map(to_row).collect()
    }
}
