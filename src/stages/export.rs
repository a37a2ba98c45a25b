//! `export`: model → a folder that other tools load, and the plan that rebuilds it from the dense
//! checkpoint.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Context;
use super::environment::{Environment, OptionFault};
use super::error::StageError;
use super::stage::{Stage, StageOutput, StageType, describe_options, option_text};
use super::values::{MODEL, PLAN, StageValues, ValueKind};
use secateur_model::Model;
use secateur_model::plan::PruningPlan;
use secateur_model::stored::StorageDtype;

mod format;
mod hf;
mod plan;
mod reserved;

use format::{ExportFormat, ExportInput};

pub static TYPE: StageType = StageType {
    needs: &[ValueKind::Model],
    summary: |options| describe_options(options, &["formats"]),
    ..StageType::new::<Options>("export")
};

/// Writes the model.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What is written; a second export of a variant writes `hf-2`, `plan-2.json`. Default
    /// `["hf"]`.
    pub formats: Vec<Format>,
    /// The element type of the weights in `hf`. Default: that of the loaded checkpoint, or of most
    /// of its weights, counted in bytes; `float32` for a model that was trained here. Stages compute
    /// in float32, and an export rounds at the end. A number beyond 65504 in `float16` is an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<StorageDtype>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            formats: vec![Format::Hf],
            dtype: None,
        }
    }
}

/// The formats of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `hf/`: a Hugging Face folder: safetensors, `config.json` with per-layer widths, and unchanged
    /// the other files that belong to the model: tokenizer, chat templates, generation config,
    /// licences.
    Hf,
    /// `plan.json`: the kept units of every group; with the dense checkpoint it rebuilds the pruned
    /// model.
    Plan,
    /// Reserved: refused by the check.
    Gguf,
    /// Reserved: refused by the check.
    Peft,
}

impl Format {
    /// How the format is checked and written. A new one is its file in `export/`, a variant above,
    /// and a line here.
    fn writer(self) -> &'static dyn ExportFormat {
        match self {
            Self::Hf => &hf::HuggingFaceFolder,
            Self::Plan => &plan::PlanFile,
            Self::Gguf => &reserved::Reserved { name: "gguf" },
            Self::Peft => &reserved::Reserved { name: "peft" },
        }
    }
}

impl Options {
    fn writers(&self) -> impl Iterator<Item = &'static dyn ExportFormat> {
        self.formats.iter().map(|format| format.writer())
    }
}

impl Stage for Options {
    fn stage_type(&self) -> &'static StageType {
        &TYPE
    }

    fn needs(&self) -> Vec<ValueKind> {
        let mut needs = TYPE.needs.to_vec();
        for &kind in self.writers().flat_map(|writer| writer.needs()) {
            if !needs.contains(&kind) {
                needs.push(kind);
            }
        }
        needs
    }

    fn option_faults(&self) -> Vec<OptionFault> {
        let mut faults = Vec::new();
        if self.formats.is_empty() {
            faults.push(OptionFault::new(
                "formats",
                "nothing to export",
                "name at least one of `hf`, `plan`",
            ));
        }
        let writes_weights = self.writers().any(|writer| writer.writes_weights());
        if self.dtype.is_some() && !writes_weights {
            faults.push(OptionFault::new(
                "dtype",
                "only `hf` holds weights, and it is not written",
                "remove the line, or add `hf`",
            ));
        }
        for (index, writer) in self.writers().enumerate() {
            if let Some((message, help)) = writer.fault() {
                faults.push(OptionFault::new(format!("formats[{index}]"), message, help));
            }
        }
        faults
    }

    fn environment_faults(&self, environment: &mut Environment) -> Vec<OptionFault> {
        environment.add_weights(1);
        let Some(model) = &environment.model else {
            return Vec::new();
        };
        let dtype = self.dtype.unwrap_or(model.dtype);
        environment.estimate.disk_space = self
            .writers()
            .map(|writer| writer.disk_space(model.parameters, dtype))
            .sum();
        Vec::new()
    }

    fn run(&self, context: &Context, inputs: &StageValues) -> Result<StageOutput, StageError> {
        run(
            self,
            context,
            inputs.require(MODEL)?,
            inputs.get(PLAN).map(|pruning| &pruning.plan),
        )?;
        Ok(StageOutput::default())
    }
}

/// Writes each format into the stage's folder.
pub fn run(
    options: &Options,
    context: &Context,
    model: &Model,
    plan: Option<&PruningPlan>,
) -> Result<(), StageError> {
    let dtype = options.dtype.unwrap_or(model.source.dtype);
    for writer in options.writers() {
        writer.write(&ExportInput {
            context,
            model,
            plan,
            dtype,
        })?;
    }
    tracing::info!(formats = option_text(&options.formats), "exported");
    Ok(())
}
