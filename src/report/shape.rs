//! A variant as the table of its sweep sees it: the options that were swept, and which steps measured which model.
//! `results/<pipeline>/sweep.json` lists those of the whole sweep, so that shards can be joined and holes be seen.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::plan::{Plan, Variant};
use crate::stages::step::Step;
use crate::stages::values::ValueKind;
use secateur_base::files::{FileError, write_atomic_unsynced};

/// What a variant is, whatever became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VariantDescription {
    pub id: String,
    /// The options that the sweep decides, and their values.
    pub swept: Vec<(String, Value)>,
    /// Its stages of type `evaluate`.
    #[serde(flatten)]
    pub evaluate: StepsByModel,
    /// Its stages of type `generate`.
    #[serde(default)]
    pub generate: StepsByModel,
}

/// Which stages of one type look at which model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepsByModel {
    /// Every one before any pruning: the dense model. The first that has a metric, or a prompt, counts.
    pub dense: Vec<u32>,
    /// Every one between the last pruning and what changes the model after it: not yet recovered.
    pub pruned: Vec<u32>,
    /// Every one of the model as it is in the end. The last that has a metric, or a prompt, counts.
    pub last: Vec<u32>,
}

/// The variants of a sweep, in its order: `sweep.json`.
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
        let changes = |step: &Step| step.stage.makes().contains(&ValueKind::Model);
        let among = |steps: &[Step]| -> Vec<u32> {
            steps
                .iter()
                .filter(|step| step.stage.tag() == tag)
                .map(|step| step.position)
                .collect()
        };
        let is_prune = |step: &Step| step.stage.makes().contains(&ValueKind::Plan);
        let first_pruning = steps.iter().position(is_prune).unwrap_or(steps.len());
        let last_change = steps.iter().rposition(changes).unwrap_or(0);
        let pruned = steps.iter().rposition(is_prune).map(|pruning| {
            let next = steps[pruning + 1..]
                .iter()
                .position(changes)
                .map(|next| pruning + 1 + next);
            next.map_or_else(Vec::new, |next| among(&steps[pruning..next]))
        });
        Self {
            dense: among(&steps[..first_pruning]),
            pruned: pruned.unwrap_or_default(),
            last: among(&steps[last_change..]),
        }
    }
}

impl SweepManifest {
    /// Every variant of a plan, those that were not asked for included.
    pub fn from_plan(plan: &Plan) -> Self {
        let mut variants: Vec<VariantDescription> = plan
            .variants
            .iter()
            .chain(&plan.unselected)
            .map(VariantDescription::from)
            .collect();
        variants.sort_by_key(|shape| plan.variant_order.iter().position(|id| *id == shape.id));
        Self { variants }
    }

    /// What lies in a folder of results.
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join(FILE_NAME)).ok()?).ok()
    }

    pub fn write(&self, folder: &Path) -> Result<(), FileError> {
        let path = folder.join(FILE_NAME);
        let text = serde_json::to_vec_pretty(self).map_err(|e| FileError {
            path: path.clone(),
            source: e.into(),
        })?;
        write_atomic_unsynced(&path, &text)
    }
}

const FILE_NAME: &str = "sweep.json";
