//! `hf`: a Hugging Face folder.

use super::format::{ExportFormat, ExportInput};
use crate::stages::StageError;
use secateur_model::SaveReport;
use secateur_model::stored::StorageDtype;

/// Safetensors, `config.json` with per-layer widths, and the other files that belong to the model.
pub(crate) struct HuggingFaceFolder;

impl ExportFormat for HuggingFaceFolder {
    fn writes_weights(&self) -> bool {
        true
    }

    fn disk_space(&self, parameters: u64, dtype: StorageDtype) -> u64 {
        parameters * dtype.bytes_per_value() as u64
    }

    fn write(&self, input: &ExportInput<'_>) -> Result<(), StageError> {
        let folder = input.context.output_path("hf", "");
        let report = input.model.save(&folder, input.dtype)?;
        if report != SaveReport::default() {
            let list = |names: &[String]| (!names.is_empty()).then(|| names.join(", "));
            tracing::info!(
                keys = list(&report.removed_keys),
                files = list(&report.left_behind),
                "left out of the export: keys of config.json and files that describe the source \
                 alone"
            );
        }
        Ok(())
    }
}
