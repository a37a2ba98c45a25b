//! `export`: Model → a folder that other tools load, and the plan that rebuilds it from the dense checkpoint.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fault, World};

/// Writes the model.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What is written. Default `["hf"]`.
    pub formats: Vec<Format>,
}

impl Default for Options {
    fn default() -> Self {
        Self { formats: vec![Format::Hf] }
    }
}

/// The forms of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `hf/`: a Hugging Face folder: safetensors, `config.json` with per-layer widths, the tokenizer's files.
    Hf,
    /// `plan.json`: the kept units of every group; with the dense checkpoint it rebuilds the pruned model.
    Plan,
    /// Reserved.
    Gguf,
    /// Reserved.
    Peft,
}

impl Options {
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.formats.is_empty() {
            faults.push(Fault::new("formats", "nothing to export", "name at least one of `hf`, `plan`"));
        }
        for reserved in self.formats.iter().filter(|f| matches!(f, Format::Gguf | Format::Peft)) {
            faults.push(Fault::new("formats", format!("`{reserved:?}` is reserved and not written yet").to_lowercase(), "the formats are `hf` and `plan`"));
        }
        faults
    }

    pub fn world(&self, _: &mut World) -> Vec<Fault> {
        Vec::new()
    }
}
