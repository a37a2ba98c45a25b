//! The trait of an export format. Each format is a file of this folder.

use crate::stages::values::ValueKind;
use crate::stages::{Context, StageError};
use secateur_model::Model;
use secateur_model::plan::PruningPlan;
use secateur_model::stored::StorageDtype;

/// How one format is checked and written.
pub(crate) trait ExportFormat {
    /// Values besides the model that earlier stages must have made. Default: none.
    fn needs(&self) -> &'static [ValueKind] {
        &[]
    }

    /// Why this format is refused, and what to write instead. Default: it is not.
    fn fault(&self) -> Option<(String, &'static str)> {
        None
    }

    /// Whether it writes weights, in the element type of `dtype`. Default: no.
    fn writes_weights(&self) -> bool {
        false
    }

    /// Bytes of its weights on disk for a model with this many parameters. Default: 0.
    fn disk_space(&self, _parameters: u64, _dtype: StorageDtype) -> u64 {
        0
    }

    /// Writes the model into the stage's output folder.
    fn write(&self, input: &ExportInput<'_>) -> Result<(), StageError>;
}

/// What a format can write.
pub(crate) struct ExportInput<'a> {
    pub context: &'a Context,
    pub model: &'a Model,
    /// Present if [`ExportFormat::needs`] names the plan.
    pub plan: Option<&'a PruningPlan>,
    pub dtype: StorageDtype,
}
