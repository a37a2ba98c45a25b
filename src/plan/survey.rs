//! The state that earlier runs left: which variants are complete, which stages have a stored
//! product, and why the other stages must run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::plan::expected_time::{Measurements, ModelSource};
use crate::plan::ids::{NodeId, PerNode, PerVariant};
use crate::plan::keys::{self, ProductKeys};
use crate::plan::{Plan, Variant};
use crate::results::{self, ResultState, VariantManifest, VariantStatus};
use secateur_store::cache::{self, ProductCost};

/// The state of a node before the run.
#[derive(Clone, Debug)]
pub enum NodeState {
    /// Every variant that shares the node is complete.
    Complete,
    /// Its product is in the cache.
    Stored(ProductCost),
    /// It must run; the text says why.
    MustRun(String),
}

/// The states of a plan's nodes and variants. Files are compared by their lengths only: the run
/// compares the hashes before it relies on a result.
#[derive(Clone, Debug)]
pub struct Survey {
    pub nodes: PerNode<NodeState>,
    /// The seconds that each node which must run is expected to take; None if no earlier run
    /// measured a stage of its type, and for the other nodes.
    pub expected_seconds: PerNode<Option<f64>>,
    pub complete_variants: PerVariant<bool>,
}

/// The measured run times of stages in seconds, by type.
pub type SecondsByType = BTreeMap<&'static str, Vec<f64>>;

impl Survey {
    /// Reads the results folder and the cache.
    pub fn new(plan: &Plan, keys: &ProductKeys) -> Self {
        let surveyor = Surveyor {
            plan,
            keys,
            results_folder: plan.settings.run.results.join(&plan.name),
            cache_folder: plan.settings.run.cache_folder(),
        };
        let complete_variants: PerVariant<bool> = plan
            .variants
            .iter()
            .map(|variant| surveyor.is_complete(variant))
            .collect();
        let nodes: PerNode<NodeState> = plan
            .nodes
            .ids()
            .map(|node| surveyor.node_state(node, &complete_variants))
            .collect();
        Self {
            expected_seconds: surveyor.expected_seconds(&nodes),
            nodes,
            complete_variants,
        }
    }

    /// The expected seconds of all stages that must run, as far as they are known, and the number
    /// of those of which nothing was measured.
    pub(crate) fn total_expected_seconds(&self) -> (f64, usize) {
        let must_run = self.nodes.iter().zip(&self.expected_seconds);
        let seconds: Vec<Option<f64>> = must_run
            .filter(|(state, _)| matches!(state, NodeState::MustRun(_)))
            .map(|(_, &seconds)| seconds)
            .collect();
        let unknown_count = seconds.iter().filter(|seconds| seconds.is_none()).count();
        // An empty sum of floats is -0.0; adding 0.0 makes it 0.0.
        (
            seconds.into_iter().flatten().sum::<f64>() + 0.0,
            unknown_count,
        )
    }

    /// The number of stages that are still to run, and an estimate of their run time in seconds.
    ///
    /// `is_remaining` is true for a node that the run has yet to visit. A stage is estimated at the
    /// mean run time of the stages of its type in `measured` or, if there is none, as earlier runs
    /// measured. The estimate is None if a stage has neither.
    pub fn remaining_stages(
        &self,
        plan: &Plan,
        is_remaining: impl Fn(NodeId) -> bool,
        measured: &SecondsByType,
    ) -> (usize, Option<f64>) {
        let must_run = |id: &NodeId| matches!(self.nodes[*id], NodeState::MustRun(_));
        let remaining: Vec<NodeId> = plan
            .nodes
            .ids()
            .filter(|id| must_run(id) && is_remaining(*id))
            .collect();
        let seconds_of = |id: &NodeId| match measured.get(plan.nodes[*id].step.stage.tag()) {
            Some(seconds) => Some(seconds.iter().sum::<f64>() / seconds.len() as f64),
            None => self.expected_seconds[*id],
        };
        // The sum is None if any of the estimates is.
        let total_seconds: Option<f64> = remaining.iter().map(seconds_of).sum();
        // An empty sum of floats is -0.0; adding 0.0 makes it 0.0.
        (remaining.len(), total_seconds.map(|seconds| seconds + 0.0))
    }
}

/// The inputs of a survey.
struct Surveyor<'a> {
    plan: &'a Plan,
    keys: &'a ProductKeys,
    /// `results/<pipeline>`
    results_folder: PathBuf,
    cache_folder: PathBuf,
}

impl Surveyor<'_> {
    fn variant_folder(&self, variant: &Variant) -> PathBuf {
        self.results_folder.join(&variant.id)
    }

    fn is_complete(&self, variant: &Variant) -> bool {
        if self.plan.is_forced(variant) {
            return false;
        }
        let stage_keys = self.keys.stage_keys(variant);
        let state = results::result_state(&self.variant_folder(variant), &stage_keys, false);
        matches!(state, ResultState::Complete)
    }

    fn node_state(&self, id: NodeId, complete_variants: &PerVariant<bool>) -> NodeState {
        let node = &self.plan.nodes[id];
        if let Some(option) = &node.forced_by {
            return NodeState::MustRun(option.clone());
        }
        let mut variants = node.variants.iter();
        if variants.all(|&variant| complete_variants[variant]) {
            return NodeState::Complete;
        }
        let key = &self.keys[id].key;
        if let Some(manifest) = cache::read_complete_manifest(&self.cache_folder, key) {
            return NodeState::Stored(manifest.cost);
        }
        if has_checkpoint(&self.cache_folder, key) {
            return NodeState::MustRun(
                "it was interrupted and resumes from its checkpoint".to_owned(),
            );
        }
        let earlier_manifest = node.variants.iter().find_map(|&variant| {
            results::read_last_manifest(&self.variant_folder(&self.plan.variants[variant]))
        });
        NodeState::MustRun(match earlier_manifest {
            None => "new".to_owned(),
            Some((_, manifest)) => self.rerun_reason(id, &manifest),
        })
    }

    /// The expected seconds of the nodes that must run.
    fn expected_seconds(&self, states: &PerNode<NodeState>) -> PerNode<Option<f64>> {
        let must_run = |state: &NodeState| matches!(state, NodeState::MustRun(_));
        let run = &self.plan.settings.run;
        let measurements = states
            .iter()
            .any(must_run)
            .then(|| Measurements::read(&run.results, &self.cache_folder));
        let expected = |id: NodeId| {
            let node = &self.plan.nodes[id];
            let variant = &self.plan.variants[*node.variants.first()?];
            let stages = variant.steps.iter();
            let model =
                ModelSource::of_stages(stages.map(|step| (step.stage.tag(), step.stage.options())));
            let stage = &node.step.stage;
            let measurements = measurements.as_ref()?;
            measurements.expected_seconds(stage.tag(), &stage.options(), model.as_ref())
        };
        states
            .iter_with_ids()
            .map(|(id, state)| expected(id).filter(|_| must_run(state)))
            .collect()
    }

    /// Why a node must run although an earlier run of its variant left this manifest: the first
    /// difference between the manifest and the plan.
    fn rerun_reason(&self, id: NodeId, earlier: &VariantManifest) -> String {
        let step = &self.plan.nodes[id].step;
        let product = &self.keys[id];
        let Some(record) = earlier.stage(step.position) else {
            let last_step = earlier.stages.last().map(|record| record.step);
            let next_step = last_step.map_or(0, |last| last + 1);
            let has_failed_here =
                earlier.status == VariantStatus::Failed && next_step == step.position;
            let reason = if has_failed_here {
                "it failed"
            } else {
                "not reached yet"
            };
            return reason.to_owned();
        };
        if record.key == product.key {
            return "its product is no longer stored".to_owned();
        }
        if record.code != keys::code_version(step.stage.tag()) {
            return "the program has changed".to_owned();
        }
        for (path, hash) in &product.input_hashes {
            let earlier_hash = earlier.inputs.get(path);
            if earlier_hash.is_some_and(|earlier_hash| earlier_hash != hash) {
                return format!("`{path}` has changed");
            }
        }
        let mut paths = product.input_hashes.keys();
        if let Some(path) = paths.find(|path| !earlier.inputs.contains_key(*path)) {
            return format!("`{path}` is new");
        }
        for &(value, maker) in &product.input_nodes {
            let maker_step = &self.plan.nodes[maker].step;
            let maker_record = earlier.stage(maker_step.position);
            if maker_record.is_some_and(|record| record.key != self.keys[maker].key) {
                let maker_tag = maker_step.stage.tag();
                return format!("`{maker_tag}` makes another {}", value.label());
            }
        }
        "the processor, the device or the format of stored products has changed".to_owned()
    }
}

/// Whether an interrupted run of the product left a checkpoint.
fn has_checkpoint(cache_folder: &Path, key: &str) -> bool {
    let name = format!("{key}{}", cache::CHECKPOINT_SUFFIX);
    cache_folder.join(name).exists()
}
