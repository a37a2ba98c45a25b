//! `export`: Model → a folder that other tools load, and the plan that rebuilds it from the dense checkpoint.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Context, Environment, InputFile, OptionFault};
use secateur_base::files::FileError;
use secateur_model::Model;
use secateur_model::plan::PruningPlan;
use secateur_model::stored::StorageDtype;

/// Writes the model.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What is written; a second export of a variant writes `hf-2`, `plan-2.json`. Default `["hf"]`.
    pub formats: Vec<Format>,
    /// How the numbers of `hf` are written. Default `float32`.
    // Younger than the others: variants without it keep their ids.
    #[serde(skip_serializing_if = "is_default")]
    pub dtype: StorageDtype,
}

fn is_default(dtype: &StorageDtype) -> bool {
    *dtype == StorageDtype::default()
}

impl Default for Options {
    fn default() -> Self {
        Self {
            formats: vec![Format::Hf],
            dtype: StorageDtype::default(),
        }
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
    /// Reserved: refused by the check.
    Gguf,
    /// Reserved: refused by the check.
    Peft,
}

impl Options {
    /// What the stage reads: nothing.
    pub fn inputs(&self, _: Option<&Path>) -> Vec<InputFile> {
        Vec::new()
    }

    pub fn faults(&self) -> Vec<OptionFault> {
        let mut faults = Vec::new();
        if self.formats.is_empty() {
            faults.push(OptionFault::new(
                "formats",
                "nothing to export",
                "name at least one of `hf`, `plan`",
            ));
        }
        if self.dtype != StorageDtype::default() && !self.formats.contains(&Format::Hf) {
            faults.push(OptionFault::new(
                "dtype",
                "only `hf` holds numbers, and it is not written",
                "remove the line, or add `hf`",
            ));
        }
        for (i, reserved) in self
            .formats
            .iter()
            .enumerate()
            .filter(|(_, f)| matches!(f, Format::Gguf | Format::Peft))
        {
            faults.push(OptionFault::new(
                format!("formats[{i}]"),
                format!("`{reserved:?}` is reserved and not written yet").to_lowercase(),
                "the formats are `hf` and `plan`",
            ));
        }
        faults
    }

    pub fn environment_faults(&self, world: &mut Environment) -> Vec<OptionFault> {
        world.add_weights(1);
        if self.formats.contains(&Format::Hf) {
            let parameters = world.model.as_ref().map_or(0, |model| model.parameters);
            world.estimate.disk_space = parameters * self.dtype.bytes_per_value() as u64;
        }
        Vec::new()
    }
}

/// The export failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("`plan` needs a pruned model, and nothing has been pruned")]
    NoPlan,
}

/// Writes each format into the stage's folder.
pub fn run(
    options: &Options,
    context: &Context,
    model: &Model,
    plan: Option<&PruningPlan>,
) -> Result<(), Error> {
    for format in &options.formats {
        match format {
            Format::Hf => model.save(&context.output_path("hf", ""), options.dtype)?,
            Format::Plan => write_plan(
                plan.ok_or(Error::NoPlan)?,
                &context.output_path("plan", ".json"),
            )?,
            Format::Gguf | Format::Peft => {} // refused by the check
        }
    }
    tracing::info!(formats = ?options.formats, "exported");
    Ok(())
}

/// The plan as JSON: for every group its layer, kind, dense units, and the units that stay.
fn write_plan(plan: &PruningPlan, path: &Path) -> Result<(), Error> {
    let failed = |source| FileError {
        path: path.to_owned(),
        source,
    };
    let text = serde_json::to_string_pretty(plan).map_err(|e| failed(e.into()))?;
    Ok(std::fs::write(path, text).map_err(failed)?)
}
