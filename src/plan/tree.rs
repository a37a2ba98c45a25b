//! A checked pipeline as data: its variants, and the tree of stages that they share.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::pipeline::layers::LayeredSettings;
use crate::pipeline::problem::{Problem, SourceTexts};
use crate::plan::ids::{NodeId, PerNode, PerVariant, VariantId};
use crate::stages::ResourceEstimate;
use crate::stages::step::{ListedStage, Step};

/// A checked pipeline. Only [`check`](crate::plan::check::check) builds one: some fields are
/// private to the module `plan`.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The file stem of the pipeline; its results are in the folder of this name.
    pub name: String,
    /// The path of the pipeline file.
    pub(super) pipeline_path: PathBuf,
    /// The path of the pipeline file as the results folder records it.
    pub(crate) recorded_path: Option<String>,
    /// Whether the plan is that of the file alone: without `--set`, `--sweep`, `--only` and `--shard`.
    pub(super) is_whole_file: bool,
    /// The part of the variants that the command line selects, as it is written there.
    pub(crate) shard: Option<String>,
    /// The text of the pipeline file.
    pub(crate) pipeline_text: String,
    pub(crate) sources: SourceTexts,
    pub settings: LayeredSettings,
    /// Where `locked` is set.
    pub(super) locked_span: Range<usize>,
    /// The selected variants, in the order of the sweep.
    pub variants: PerVariant<Variant>,
    /// The variants of the sweep that `--only` or `--shard` leave out.
    pub(crate) unselected: Vec<Variant>,
    /// The ids of all variants, in the order of the sweep.
    pub(crate) variant_order: Vec<String>,
    /// Every node comes before its children.
    pub(crate) nodes: PerNode<PlanNode>,
    /// The nodes without a parent.
    pub(crate) roots: Vec<NodeId>,
    /// Options that have probably not the intended effect.
    pub warnings: Vec<Problem>,
}

/// One combination of the sweep.
#[derive(Clone, Debug)]
pub struct Variant {
    pub id: String,
    /// Hash of the options of its stages and the seed.
    pub(super) hash: [u8; 32],
    /// The options that the sweep or the command line sets, and their values.
    pub swept: Vec<(String, Value)>,
    /// The stages as they are written, with every default filled in.
    pub(super) listed_stages: Vec<ListedStage>,
    /// The stages with every `repeat` unrolled.
    pub steps: Vec<Step>,
    /// The node of each step.
    pub(crate) nodes: Vec<NodeId>,
}

/// A stage that runs once for all variants that share it and everything before it.
#[derive(Clone, Debug)]
pub struct PlanNode {
    pub(crate) step: Step,
    pub(crate) children: Vec<NodeId>,
    /// The variants that share the node.
    pub(crate) variants: Vec<VariantId>,
    /// The memory and disk that it needs; None if the environment was not checked.
    pub(crate) estimate: Option<ResourceEstimate>,
    /// The command line option because of which it must run, even if its product is stored.
    pub(crate) forced_by: Option<String>,
}

/// Builds the tree of the steps and fills in the `nodes` of every variant. Variants whose first
/// steps are equal share the nodes of these steps. Returns the nodes and the roots.
pub(super) fn build_tree(variants: &mut PerVariant<Variant>) -> (PerNode<PlanNode>, Vec<NodeId>) {
    let mut nodes: PerNode<PlanNode> = PerNode::default();
    let mut roots = Vec::new();
    // The prefix hash of a step covers its identity and, through its predecessor's prefix hash,
    // the identities of all steps before it: equal prefix hashes mean equal beginnings.
    let mut node_of_prefix: BTreeMap<String, NodeId> = BTreeMap::new();
    for (variant_id, variant) in variants.ids().zip(variants.iter_mut()) {
        let mut parent: Option<NodeId> = None;
        let mut prefix_hash = String::new();
        for step in &variant.steps {
            let prefix = format!("{prefix_hash}{}", step.identity());
            prefix_hash = blake3::hash(prefix.as_bytes()).to_hex().to_string();
            let node = match node_of_prefix.get(&prefix_hash) {
                Some(&node) => node,
                None => {
                    let node = nodes.push(PlanNode::new(step.clone()));
                    match parent {
                        Some(parent) => nodes[parent].children.push(node),
                        None => roots.push(node),
                    }
                    node_of_prefix.insert(prefix_hash.clone(), node);
                    node
                }
            };
            nodes[node].variants.push(variant_id);
            variant.nodes.push(node);
            parent = Some(node);
        }
    }
    (nodes, roots)
}

impl PlanNode {
    fn new(step: Step) -> Self {
        Self {
            step,
            children: Vec::new(),
            variants: Vec::new(),
            estimate: None,
            forced_by: None,
        }
    }
}

impl Plan {
    /// The number of stages in the tree, and the number that would run if variants shared none.
    pub fn stage_run_counts(&self) -> (usize, usize) {
        let unshared = self.variants.iter().map(|variant| variant.steps.len());
        (self.nodes.len(), unshared.sum())
    }

    /// Whether `--force` or `--from` makes a stage of the variant run again.
    pub(crate) fn is_forced(&self, variant: &Variant) -> bool {
        let mut nodes = variant.nodes.iter();
        nodes.any(|&node| self.nodes[node].forced_by.is_some())
    }

    /// A pipeline that runs this variant alone: its stages with every option, the seed and the data
    /// folder.
    ///
    /// # Errors
    /// If TOML cannot express a value, such as a seed above its largest integer.
    pub fn variant_toml(&self, variant: &Variant) -> Result<String, toml::ser::Error> {
        let stages: Vec<Value> = variant
            .listed_stages
            .iter()
            .map(ListedStage::to_table)
            .collect();
        let mut run = Map::from_iter([("seed".to_owned(), json!(self.settings.run.seed))]);
        if let Some(data) = &self.settings.run.data {
            run.insert("data".to_owned(), json!(data));
        }
        let body = toml::to_string(&json!({ "run": run, "stage": stages }))?;
        Ok(format!(
            "# The variant {} of {}, every option filled in.\n\n{body}",
            variant.id, self.name
        ))
    }
}
