//! What will run: variants, and the tree of the stages they share.

pub mod ids;
pub mod keys;
pub mod lockfile;
pub mod selection;
pub mod survey;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::pipeline::problem::SourceTexts;
use crate::pipeline::settings::LayeredSettings;
use crate::plan::ids::{NodeId, PerNode, PerVariant, VariantId};
use crate::plan::keys::ProductKeys;
use crate::plan::survey::{NodeState, Survey};
use crate::progress::format_clock;
use crate::stages::ResourceEstimate;
use crate::stages::registry::{ListedStage, Step, summary};

/// A checked pipeline. Only `check` makes one.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The file's stem; results lie under it.
    pub name: String,
    /// The pipeline's path.
    pub(super) pipeline_path: PathBuf,
    /// The pipeline's text.
    pub(super) pipeline_text: String,
    pub(super) sources: SourceTexts,
    pub settings: LayeredSettings,
    /// Where it is written that the lock file must hold.
    pub(super) locked_span: Range<usize>,
    pub variants: PerVariant<Variant>,
    /// Variants of the sweep that were not asked for.
    pub(super) unselected: Vec<Variant>,
    /// The ids of all, in the order of the sweep.
    pub(super) variant_order: Vec<String>,
    pub(super) nodes: PerNode<PlanNode>,
    pub(super) roots: Vec<NodeId>,
}

/// One combination of the sweep.
#[derive(Clone, Debug)]
pub struct Variant {
    pub id: String,
    /// Of its stages' options and the seed.
    pub(super) hash: [u8; 32],
    /// The options that the sweep decides, and their values.
    pub swept: Vec<(String, Value)>,
    /// The stages as written, every value filled in.
    pub(super) listed_stages: Vec<ListedStage>,
    /// The same, unrolled.
    pub steps: Vec<Step>,
    /// Its nodes, one for each step.
    pub(super) nodes: Vec<NodeId>,
}

/// A stage that runs once for all variants that share it and everything before it.
#[derive(Clone, Debug)]
pub struct PlanNode {
    pub step: Step,
    pub children: Vec<NodeId>,
    /// The variants it is a part of.
    pub variants: Vec<VariantId>,
    /// What it will need; None where the world was not looked at.
    pub estimate: Option<ResourceEstimate>,
    /// Why it must run whatever is kept: the option of the command line that says so.
    pub forced_by: Option<String>,
}

/// Variants with equal beginnings share the nodes of a tree. Returns the nodes and those without a parent.
pub(super) fn build_tree(variants: &mut PerVariant<Variant>) -> (PerNode<PlanNode>, Vec<NodeId>) {
    let (mut nodes, mut roots): (PerNode<PlanNode>, Vec<NodeId>) = Default::default();
    let mut known: BTreeMap<String, NodeId> = BTreeMap::new();
    for (variant_id, variant) in variants.ids().zip(variants.iter_mut()) {
        let (mut parent, mut key): (Option<NodeId>, String) = (None, String::new());
        for step in &variant.steps {
            key = blake3::hash(format!("{key}{}", step.identity()).as_bytes())
                .to_hex()
                .to_string();
            let node = *known.entry(key.clone()).or_insert_with(|| {
                let node = nodes.push(PlanNode {
                    step: step.clone(),
                    children: Vec::new(),
                    variants: Vec::new(),
                    estimate: None,
                    forced_by: None,
                });
                match parent {
                    Some(parent) => nodes[parent].children.push(node),
                    None => roots.push(node),
                }
                node
            });
            nodes[node].variants.push(variant_id);
            variant.nodes.push(node);
            parent = Some(node);
        }
    }
    (nodes, roots)
}

impl Plan {
    /// Stages that run, and that would run if variants shared nothing.
    pub fn stage_run_counts(&self) -> (usize, usize) {
        (
            self.nodes.len(),
            self.variants
                .iter()
                .map(|variant| variant.steps.len())
                .sum(),
        )
    }

    /// Whether a stage of the variant must run, whatever is kept.
    pub(super) fn is_forced(&self, variant: &Variant) -> bool {
        variant
            .nodes
            .iter()
            .any(|&node| self.nodes[node].forced_by.is_some())
    }

    /// The pipeline of one variant, which runs by itself: its stages with every option, the seed, the data folder.
    ///
    /// # Errors
    /// If a value cannot be written as TOML: a seed beyond its integers.
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
        let pipeline = json!({ "run": run, "stage": stages });
        let body = toml::to_string(&pipeline)?;
        Ok(format!(
            "# The variant {} of {}, every option filled in.\n\n{body}",
            variant.id, self.name
        ))
    }

    /// What `runner plan` prints; the survey is this plan's.
    pub fn to_text(&self, survey: &Survey) -> String {
        let (runs, alone) = self.stage_run_counts();
        let mut lines = vec![
            format!(
                "{}: {} of {} stages ({} without sharing)",
                self.name,
                format_count(self.variants.len(), "variant"),
                runs,
                alone
            ),
            String::new(),
        ];
        for &root in &self.roots {
            self.write_subtree(root, survey, "", "", &mut lines);
        }
        lines.push(String::new());
        let must_run = survey
            .nodes
            .iter()
            .filter(|state| matches!(state, NodeState::MustRun(_)))
            .count();
        let complete = survey
            .complete_variants
            .iter()
            .filter(|complete| **complete)
            .count();
        lines.push(format!(
            "{must_run} of {} must run; {complete} of {} are complete",
            format_count(runs, "stage"),
            format_count(self.variants.len(), "variant")
        ));
        let estimates = || self.nodes.iter().filter_map(|node| node.estimate);
        let most = |of: fn(ResourceEstimate) -> u64| estimates().map(of).max().unwrap_or(0);
        let (memory, gpu, at_least) = (
            most(|e| e.cpu_memory),
            most(|e| e.gpu_memory),
            most(|e| e.min_gpu_memory),
        );
        let disk = format_bytes(estimates().map(|e| e.disk_space).sum());
        lines.push(format!(
            "at most about {} of memory at once, {disk} on disk beside tables",
            format_bytes(memory)
        ));
        if gpu > 0 {
            lines.push(format!(
                "about {} of the GPU's memory, {} where blocks are brought one by one",
                format_bytes(gpu),
                format_bytes(at_least)
            ));
        }
        lines.push(String::new());
        lines.push("settings".to_owned());
        if let Ok(Value::Object(run)) = serde_json::to_value(&self.settings.run) {
            let line = |(key, value): (&String, &Value)| {
                format!(
                    "  {key:11} {value:24} {}",
                    self.settings.provenance.get(key).map_or("", String::as_str)
                )
            };
            lines.extend(run.iter().map(line));
        }
        lines.join("\n") + "\n"
    }

    fn write_subtree(
        &self,
        at: NodeId,
        survey: &Survey,
        lead: &str,
        below: &str,
        lines: &mut Vec<String>,
    ) {
        let node = &self.nodes[at];
        let schedule = node.step.schedule.map_or_else(String::new, |s| {
            format!(" {}/{}", s.iteration, s.iterations)
        });
        let state = match &survey.nodes[at] {
            NodeState::Complete => "kept".to_owned(),
            NodeState::Stored(cost) => format!("kept ({})", format_clock(cost.wall_seconds)),
            NodeState::MustRun(why) => {
                let needs = node.estimate.map_or_else(String::new, |estimate| {
                    format!(", about {}", format_estimate(estimate))
                });
                format!("must run: {why}{needs}")
            }
        };
        let mut line = format!(
            "{lead}{}{schedule}{}  {state}",
            node.step.stage.tag(),
            summary(&node.step.stage.options())
        );
        if let ([], [variant]) = (&node.children[..], &node.variants[..]) {
            line.push_str(&format!("  → {}", self.variants[*variant].id));
        }
        lines.push(line);
        // A single stage goes on in the same column; branches are drawn.
        match &node.children[..] {
            [only] => self.write_subtree(*only, survey, below, below, lines),
            children => {
                for (i, &child) in children.iter().enumerate() {
                    let (branch, under) = if i + 1 == children.len() {
                        ("└─ ", "   ")
                    } else {
                        ("├─ ", "│  ")
                    };
                    self.write_subtree(
                        child,
                        survey,
                        &format!("{below}{branch}"),
                        &format!("{below}{under}"),
                        lines,
                    );
                }
            }
        }
    }

    /// What `runner plan --format json` prints.
    pub fn to_json(&self, recipes: &ProductKeys, survey: &Survey) -> Value {
        let (runs, alone) = self.stage_run_counts();
        let node = |(at, node): (NodeId, &PlanNode)| {
            let (state, reason) = match &survey.nodes[at] {
                NodeState::Complete | NodeState::Stored(_) => ("kept", None),
                NodeState::MustRun(why) => ("must run", Some(why)),
            };
            let variants: Vec<&str> = node
                .variants
                .iter()
                .map(|&v| self.variants[v].id.as_str())
                .collect();
            json!({
                "step": node.step.position, "stage": node.step.stage.tag(), "options": node.step.stage.options(),
                "key": recipes.get(at).key, "children": node.children, "variants": variants, "state": state, "reason": reason,
                "memory_bytes": node.estimate.map(|e| e.cpu_memory), "disk_bytes": node.estimate.map(|e| e.disk_space),
                "gpu_bytes": node.estimate.map(|e| e.gpu_memory), "gpu_bytes_at_least": node.estimate.map(|e| e.min_gpu_memory),
            })
        };
        let variant = |(v, complete): (&Variant, &bool)| json!({ "id": v.id, "swept": Map::from_iter(v.swept.iter().cloned()), "nodes": v.nodes, "complete": complete });
        json!({
            "pipeline": self.name, "stage_runs": runs, "stage_runs_without_sharing": alone,
            "variants": self.variants.iter().zip(&survey.complete_variants).map(variant).collect::<Vec<_>>(),
            "nodes": self.nodes.iter_with_ids().map(node).collect::<Vec<_>>(), "roots": self.roots,
            "settings": self.settings.run, "provenance": self.settings.provenance,
        })
    }
}

fn format_estimate(estimate: ResourceEstimate) -> String {
    let more = [
        (estimate.gpu_memory, "of the GPU"),
        (estimate.disk_space, "on disk"),
    ]
    .into_iter()
    .filter(|(bytes, _)| *bytes > 0);
    [format_bytes(estimate.cpu_memory)]
        .into_iter()
        .chain(more.map(|(bytes, what)| format!("{} {what}", format_bytes(bytes))))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Bytes as a person reads them.
pub(super) fn format_bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// `1 variant`, `2 variants`.
pub fn format_count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
