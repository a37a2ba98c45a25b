//! What a run will find: which variants are complete, which stages are kept, and why the others must run.

use std::collections::BTreeMap;

use crate::plan::ids::{NodeId, PerNode, PerVariant};
use crate::plan::keys::{self, ProductKeys};
use crate::plan::{Plan, PlanNode};
use crate::report::results::{self, ResultState, VariantManifest, VariantStatus};
use secateur_store::cache::{self, ProductCost};

/// A stage of the tree, before a run.
#[derive(Clone, Debug)]
pub enum NodeState {
    /// Every variant that it is a part of is complete.
    Complete,
    /// What it made is kept.
    Stored(ProductCost),
    /// And why.
    MustRun(String),
}

/// The states of a plan's stages, by node, and which variants are complete, as far as a quick look tells.
#[derive(Clone, Debug)]
pub struct Survey {
    pub nodes: PerNode<NodeState>,
    pub complete_variants: PerVariant<bool>,
}

/// Seconds that stages of each type took.
pub type SecondsByType = BTreeMap<&'static str, Vec<f64>>;

impl Survey {
    /// How many stages are left to run, and how long they will take: as long as those of their type that ran, or, before
    /// one did, as those that are kept took. None where neither is known.
    pub fn remaining_stages(
        &self,
        plan: &Plan,
        is_left: impl Fn(NodeId) -> bool,
        ran: &SecondsByType,
    ) -> (usize, Option<f64>) {
        let nodes = || plan.nodes.ids().zip(plan.nodes.iter().zip(&self.nodes));
        let must_run =
            |at: NodeId, state: &NodeState| matches!(state, NodeState::MustRun(_)) && is_left(at);
        let left = nodes()
            .filter(|(at, (_, state))| must_run(*at, state))
            .map(|(_, (node, _))| node.step.stage.tag());
        let left: Vec<&str> = left.collect();
        let mut kept = SecondsByType::new();
        for (_, (node, state)) in nodes() {
            if let NodeState::Stored(cost) = state {
                kept.entry(node.step.stage.tag())
                    .or_default()
                    .push(cost.wall_seconds);
            }
        }
        let mean = |tag: &&str| {
            let seconds = ran.get(tag).or_else(|| kept.get(tag))?;
            Some(seconds.iter().sum::<f64>() / seconds.len() as f64)
        };
        let seconds: Option<f64> = left.iter().map(mean).sum();
        // the sum of nothing is -0
        (left.len(), seconds.map(|seconds| seconds + 0.0))
    }
}

/// Looks at the results and at what is kept.
pub fn survey(plan: &Plan, recipes: &ProductKeys) -> Survey {
    let folder = plan.settings.run.results.join(&plan.name);
    let complete: PerVariant<bool> = plan
        .variants
        .iter()
        .map(|variant| {
            let standing = || {
                results::result_state(
                    &folder.join(&variant.id),
                    &recipes.stage_keys(variant),
                    false,
                )
            };
            !plan.is_forced(variant) && matches!(standing(), ResultState::Complete)
        })
        .collect();
    let cache = plan.settings.run.cache_folder();
    let state = |(at, node): (NodeId, &PlanNode)| {
        if let Some(option) = &node.forced_by {
            return NodeState::MustRun(option.clone());
        }
        if node.variants.iter().all(|&v| complete[v]) {
            return NodeState::Complete;
        }
        let key = &recipes.get(at).key;
        match cache::read_complete_manifest(&cache, key) {
            Some(entry) => NodeState::Stored(entry.cost),
            None if cache
                .join(format!("{key}{}", cache::CHECKPOINT_SUFFIX))
                .exists() =>
            {
                NodeState::MustRun("it was interrupted, and goes on from there".to_owned())
            }
            None => {
                let earlier = node
                    .variants
                    .iter()
                    .find_map(|&v| results::read_last_manifest(&folder.join(&plan.variants[v].id)));
                NodeState::MustRun(earlier.map_or_else(
                    || "new".to_owned(),
                    |(_, manifest)| rerun_reason(plan, recipes, at, &manifest),
                ))
            }
        }
    };
    Survey {
        nodes: plan.nodes.iter_with_ids().map(state).collect(),
        complete_variants: complete,
    }
}

/// Why a stage must run, although this is what an earlier run of the variant said of itself.
fn rerun_reason(
    plan: &Plan,
    recipes: &ProductKeys,
    at: NodeId,
    earlier: &VariantManifest,
) -> String {
    let (step, recipe) = (&plan.nodes[at].step, recipes.get(at));
    let Some(record) = earlier.stages.get(step.position as usize) else {
        let failed_here = earlier.status == VariantStatus::Failed
            && earlier.stages.len() == step.position as usize;
        return if failed_here {
            "it failed"
        } else {
            "not reached yet"
        }
        .to_owned();
    };
    if record.key == recipe.key {
        return "what was kept is gone".to_owned();
    }
    if record.code != keys::code_version(step.stage.tag()) {
        return "the program has changed".to_owned();
    }
    let changed = |(path, hash): &(&String, &String)| {
        earlier
            .inputs
            .get(*path)
            .is_some_and(|before| before != *hash)
    };
    if let Some((path, _)) = recipe.input_hashes.iter().find(changed) {
        return format!("`{path}` has changed");
    }
    if let Some(path) = recipe
        .input_hashes
        .keys()
        .find(|path| !earlier.inputs.contains_key(*path))
    {
        return format!("`{path}` is new");
    }
    let is_another = |maker: NodeId| {
        let before = earlier.stages.get(plan.nodes[maker].step.position as usize);
        before.is_some_and(|record| record.key != recipes.get(maker).key)
    };
    if let Some((product, maker)) = recipe
        .input_nodes
        .iter()
        .find(|(_, maker)| is_another(*maker))
    {
        return format!(
            "`{}` gives it another {}",
            plan.nodes[*maker].step.stage.tag(),
            product.label()
        );
    }
    "another processor, or another way to read what is kept".to_owned()
}
