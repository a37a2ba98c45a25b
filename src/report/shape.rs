//! The descriptions of a plan's variants in the reports of its sweep: their swept options, and which
//! steps measured which model.

use crate::plan::{Plan, Variant};
use crate::stages::step::Step;
use crate::stages::values::ValueKind;

pub use crate::results::sweep::{StepsByModel, SweepManifest, VariantDescription};

impl From<&Variant> for VariantDescription {
    fn from(variant: &Variant) -> Self {
        Self {
            id: variant.id.clone(),
            swept: variant.swept.clone(),
            evaluate: steps_by_model(&variant.steps, "evaluate"),
            generate: steps_by_model(&variant.steps, "generate"),
        }
    }
}

/// The steps of one stage type, by the model that they measure.
fn steps_by_model(steps: &[Step], tag: &str) -> StepsByModel {
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
    StepsByModel {
        dense: positions(&steps[..first_pruning]),
        pruned,
        last: positions(&steps[last_change..]),
    }
}

/// Every variant of the plan's sweep, including those that `--only` or `--shard` excludes.
pub(crate) fn sweep_manifest(plan: &Plan) -> SweepManifest {
    let mut variants: Vec<VariantDescription> = plan
        .variants
        .iter()
        .chain(&plan.unselected)
        .map(VariantDescription::from)
        .collect();
    variants.sort_by_key(|variant| plan.variant_order.iter().position(|id| *id == variant.id));
    SweepManifest {
        pipeline: plan.recorded_path.clone(),
        shard: plan.shard.clone(),
        variants,
    }
}
