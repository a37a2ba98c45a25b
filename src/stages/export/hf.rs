//! `hf`: a Hugging Face folder.

use super::format::{ExportFormat, ExportInput};
use crate::stages::StageError;
use secateur_model::stored::StorageDtype;

/// Safetensors, `config.json` with per-layer widths, and the tokenizer's files.
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
        Ok(input.model.save(&folder, input.dtype)?)
    }
}
