//! `plan`: the pruning plan as JSON: for every group its layer, its kind, its number of units in
//! the dense model, and the units that are kept.

use super::format::{ExportFormat, ExportInput};
use crate::stages::StageError;
use crate::stages::values::ValueKind;
use secateur_base::files::FileError;

/// `plan.json`; with the dense checkpoint it rebuilds the pruned model.
pub(crate) struct PlanFile;

/// The plan could not be written.
#[derive(Debug, thiserror::Error)]
#[error("`plan` needs a pruned model, and nothing has been pruned")]
struct NoPlan;

impl ExportFormat for PlanFile {
    fn needs(&self) -> &'static [ValueKind] {
        &[ValueKind::Plan]
    }

    fn write(&self, input: &ExportInput<'_>) -> Result<(), StageError> {
        let plan = input.plan.ok_or(NoPlan)?;
        let path = input.context.output_path("plan", ".json");
        let text = serde_json::to_string_pretty(plan)?;
        std::fs::write(&path, text).map_err(|source| FileError::write(&path, source))?;
        Ok(())
    }
}
