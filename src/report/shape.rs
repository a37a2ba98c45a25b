//! The description of a variant in the reports of its sweep: its swept options, and which steps
//! measured which model. `results/<pipeline>/sweep.json` has the descriptions of all variants of
//! the sweep, so that a merge of shards knows which variants are missing.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::plan::{Plan, Variant};
use crate::stages::step::Step;
use crate::stages::values::ValueKind;
use secateur_base::files::{FileError, write_atomic_unsynced};

/// What a variant is, independent of how its run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VariantDescription {
    pub id: String,
    /// The options that the sweep sets, and their values.
    pub swept: Vec<(String, Value)>,
    /// The steps of its `evaluate` stages.
    #[serde(flatten)]
    pub evaluate: StepsByModel,
    /// The steps of its `generate` stages.
    #[serde(default)]
    pub generate: StepsByModel,
}

/// The steps of one stage type, by the model that they measure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepsByModel {
    /// Steps before the first pruning: of the dense model. The first that has a metric or prompt
    /// is reported.
    pub dense: Vec<u32>,
    /// Steps after the last pruning and before the next stage that changes the model: of the pruned
    /// model before recovery.
    pub pruned: Vec<u32>,
    /// Steps after the last stage that changes the model: of the final model. The last that has a
    /// metric or prompt is reported.
    pub last: Vec<u32>,
}

/// `sweep.json`: the variants of a sweep, in the order of the sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepManifest {
    pub variants: Vec<VariantDescription>,
}

impl From<&Variant> for VariantDescription {
    fn from(variant: &Variant) -> Self {
        Self {
            id: variant.id.clone(),
            swept: variant.swept.clone(),
            evaluate: StepsByModel::from_steps(&variant.steps, "evaluate"),
            generate: StepsByModel::from_steps(&variant.steps, "generate"),
        }
    }
}

impl StepsByModel {
    fn from_steps(steps: &[Step], tag: &str) -> Self {
        let changes_model = |step: &Step| step.stage.makes().contains(&ValueKind::Model);
        let is_prune = |step: &Step| step.stage.makes().contains(&ValueKind::Plan);
        let positions = |steps: &[Step]| -> Vec<u32> {
            steps
                .iter()
                .filter(|step| step.stage.tag() == tag)
                .map(|step| step.position)
                .collect()
        };
        let first_pruning = steps.iter().position(is_prune).unwrap_or(steps.len());
        let last_change = steps.iter().rposition(changes_model).unwrap_or(0);
        // Empty if the pruning is the last change: the pruned model is then the final one.
        let mut pruned = Vec::new();
        if let Some(last_pruning) = steps.iter().rposition(is_prune) {
            let after_pruning = &steps[last_pruning + 1..];
            if let Some(next_change) = after_pruning.iter().position(changes_model) {
                pruned = positions(&after_pruning[..next_change]);
            }
        }
        Self {
            dense: positions(&steps[..first_pruning]),
            pruned,
            last: positions(&steps[last_change..]),
        }
    }
}

impl SweepManifest {
    /// Every variant of the sweep, including those that `--only` or `--shard` excludes.
    pub fn from_plan(plan: &Plan) -> Self {
        let mut variants: Vec<VariantDescription> = plan
            .variants
            .iter()
            .chain(&plan.unselected)
            .map(VariantDescription::from)
            .collect();
        variants.sort_by_key(|variant| plan.variant_order.iter().position(|id| *id == variant.id));
        Self { variants }
    }

    /// Reads the manifest of a results folder; `None` if there is none or it does not parse.
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join(FILE_NAME)).ok()?).ok()
    }

    pub fn write(&self, folder: &Path) -> Result<(), FileError> {
        let path = folder.join(FILE_NAME);
        let text =
            serde_json::to_vec_pretty(self).map_err(|error| FileError::write(&path, error))?;
        write_atomic_unsynced(&path, &text)
    }
}

const FILE_NAME: &str = "sweep.json";
