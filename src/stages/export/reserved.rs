//! Formats whose names are reserved: the check refuses them.

use super::format::{ExportFormat, ExportInput};
use crate::stages::StageError;

/// A format that the check refuses.
pub(crate) struct Reserved {
    pub name: &'static str,
}

/// The format cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is reserved and not written yet")]
struct NotWritten(&'static str);

impl ExportFormat for Reserved {
    fn fault(&self) -> Option<(String, &'static str)> {
        let message = NotWritten(self.name).to_string();
        Some((message, "the formats are `hf` and `plan`"))
    }

    fn write(&self, _: &ExportInput<'_>) -> Result<(), StageError> {
        Err(NotWritten(self.name).into())
    }
}
