//! A plan as text and as JSON: what `runner plan` prints.

use serde_json::{Map, Value, json};

use crate::pipeline::problem::{Problem, format_count};
use crate::plan::ids::NodeId;
use crate::plan::keys::ProductKeys;
use crate::plan::survey::{NodeState, Survey};
use crate::plan::{Plan, PlanNode, Variant};
use crate::progress::format_clock;
use crate::stages::ResourceEstimate;

/// The plan as text: the tree with the state of every stage, the estimates and the run settings.
/// `survey` is the survey of this plan.
pub fn to_text(plan: &Plan, survey: &Survey) -> String {
    let (stage_runs, unshared_runs) = plan.stage_run_counts();
    let variant_count = format_count(plan.variants.len(), "variant");
    let mut lines = vec![
        format!(
            "{}: {variant_count} of {stage_runs} stages ({unshared_runs} without sharing)",
            plan.name
        ),
        String::new(),
    ];
    let mut tree = TreeText {
        plan,
        survey,
        lines: Vec::new(),
    };
    for &root in &plan.roots {
        tree.add_subtree(root, "", "");
    }
    lines.append(&mut tree.lines);
    lines.push(String::new());
    lines.push(run_count_line(plan, survey));
    lines.extend(estimate_lines(plan));
    lines.push(String::new());
    lines.push("settings".to_owned());
    if let Ok(Value::Object(settings)) = serde_json::to_value(&plan.settings.run) {
        for (key, value) in &settings {
            let layer = plan.settings.provenance.get(key);
            let layer_name = layer.map_or("", String::as_str);
            lines.push(format!("  {key:11} {value:24} {layer_name}"));
        }
    }
    lines.join("\n") + "\n"
}

fn run_count_line(plan: &Plan, survey: &Survey) -> String {
    let states = survey.nodes.iter();
    let must_run = states.filter(|state| matches!(state, NodeState::MustRun(_)));
    let complete = survey
        .complete_variants
        .iter()
        .filter(|&&complete| complete);
    format!(
        "{} of {} must run{}; {} of {} are complete",
        must_run.count(),
        format_count(plan.nodes.len(), "stage"),
        expected_time(survey),
        complete.count(),
        format_count(plan.variants.len(), "variant")
    )
}

/// The expected time of all stages that must run, after a comma; "at least" if nothing was measured
/// of some of them, and empty if nothing was measured of any.
fn expected_time(survey: &Survey) -> String {
    let is_known = survey.expected_seconds.iter().any(Option::is_some);
    let (seconds, unknown_count) = survey.total_expected_seconds();
    let bound = if unknown_count == 0 {
        "about"
    } else {
        "at least"
    };
    match is_known {
        true => format!(", {bound} {}", format_expected(seconds)),
        false => String::new(),
    }
}

/// Seconds as a clock, rounded up, so that a stage that takes any time does not take 00:00.
fn format_expected(seconds: f64) -> String {
    format_clock(seconds.ceil())
}

/// The largest estimate of memory, since stages run one after another, and the sum of the estimates
/// of disk space.
fn estimate_lines(plan: &Plan) -> Vec<String> {
    let estimates = || plan.nodes.iter().filter_map(|node| node.estimate);
    let largest = |amount: fn(ResourceEstimate) -> u64| estimates().map(amount).max().unwrap_or(0);
    let cpu_memory = largest(|estimate| estimate.cpu_memory);
    let gpu_memory = largest(|estimate| estimate.gpu_memory);
    let min_gpu_memory = largest(|estimate| estimate.min_gpu_memory);
    let disk_space = estimates().map(|estimate| estimate.disk_space).sum();
    let mut lines = vec![format!(
        "at most about {} of memory at once, {} on disk beside tables",
        format_bytes(cpu_memory),
        format_bytes(disk_space)
    )];
    if gpu_memory > 0 {
        lines.push(format!(
            "about {} of the GPU's memory, {} if blocks are moved to it one by one",
            format_bytes(gpu_memory),
            format_bytes(min_gpu_memory)
        ));
    }
    lines
}

/// The tree of the stages as lines.
struct TreeText<'a> {
    plan: &'a Plan,
    survey: &'a Survey,
    lines: Vec<String>,
}

impl TreeText<'_> {
    /// Adds a node and its descendants. The line of the node begins with `first_indent`, the lines
    /// of its descendants with `indent`.
    fn add_subtree(&mut self, id: NodeId, first_indent: &str, indent: &str) {
        self.lines
            .push(format!("{first_indent}{}", self.node_line(id)));
        let plan = self.plan;
        match &plan.nodes[id].children[..] {
            // A single child is drawn in the column of its parent; several are drawn as branches.
            [only_child] => self.add_subtree(*only_child, indent, indent),
            children => {
                for (index, &child) in children.iter().enumerate() {
                    let is_last = index + 1 == children.len();
                    let (branch, continuation) = if is_last {
                        ("└─ ", "   ")
                    } else {
                        ("├─ ", "│  ")
                    };
                    self.add_subtree(
                        child,
                        &format!("{indent}{branch}"),
                        &format!("{indent}{continuation}"),
                    );
                }
            }
        }
    }

    fn node_line(&self, id: NodeId) -> String {
        let node = &self.plan.nodes[id];
        let step = &node.step;
        let iteration = step.repeat_position.map_or_else(String::new, |position| {
            format!(" {}/{}", position.iteration, position.iterations)
        });
        let state = match &self.survey.nodes[id] {
            NodeState::Complete => "kept".to_owned(),
            NodeState::Stored(cost) => format!("kept ({})", format_clock(cost.wall_seconds)),
            NodeState::MustRun(reason) => {
                let time = self.survey.expected_seconds[id].map(format_expected);
                let estimates: Vec<String> = time
                    .into_iter()
                    .chain(node.estimate.map(format_estimate))
                    .collect();
                if estimates.is_empty() {
                    format!("must run: {reason}")
                } else {
                    format!("must run: {reason}, about {}", estimates.join(", "))
                }
            }
        };
        let options = step.stage.summary();
        // The last node of a variant names it.
        let variant = match (&node.children[..], &node.variants[..]) {
            ([], [variant]) => format!("  → {}", self.plan.variants[*variant].id),
            _ => String::new(),
        };
        format!("{}{iteration}{options}  {state}{variant}", step.stage.tag())
    }
}

/// The plan as JSON: what `runner plan --format json` prints.
pub fn to_json(plan: &Plan, keys: &ProductKeys, survey: &Survey) -> Value {
    let (stage_runs, unshared_runs) = plan.stage_run_counts();
    let variants = plan.variants.iter().zip(&survey.complete_variants);
    let variants: Vec<Value> = variants
        .map(|(variant, &is_complete)| variant_json(variant, is_complete))
        .collect();
    let nodes: Vec<Value> = plan
        .nodes
        .iter_with_ids()
        .map(|(id, node)| {
            let mut record = node_json(plan, node, &keys[id].key, &survey.nodes[id]);
            record["expected_seconds"] = json!(survey.expected_seconds[id]);
            record
        })
        .collect();
    let (expected_seconds, unknown_count) = survey.total_expected_seconds();
    json!({
        "pipeline": plan.name,
        "stage_runs": stage_runs,
        "stage_runs_without_sharing": unshared_runs,
        "expected_seconds": expected_seconds,
        "stages_without_expected_seconds": unknown_count,
        "variants": variants,
        "nodes": nodes,
        "roots": plan.roots,
        "settings": plan.settings.run,
        "provenance": plan.settings.provenance,
        "warnings": plan.warnings.iter().map(Problem::to_record).collect::<Vec<_>>(),
    })
}

fn variant_json(variant: &Variant, is_complete: bool) -> Value {
    json!({
        "id": variant.id,
        "swept": Map::from_iter(variant.swept.iter().cloned()),
        "nodes": variant.nodes,
        "complete": is_complete,
    })
}

fn node_json(plan: &Plan, node: &PlanNode, key: &str, state: &NodeState) -> Value {
    let (state, reason) = match state {
        NodeState::Complete | NodeState::Stored(_) => ("kept", None),
        NodeState::MustRun(reason) => ("must run", Some(reason)),
    };
    let variants: Vec<&str> = node
        .variants
        .iter()
        .map(|&variant| plan.variants[variant].id.as_str())
        .collect();
    let estimate = node.estimate;
    json!({
        "step": node.step.position,
        "stage": node.step.stage.tag(),
        "options": node.step.stage.options(),
        "key": key,
        "children": node.children,
        "variants": variants,
        "state": state,
        "reason": reason,
        "memory_bytes": estimate.map(|estimate| estimate.cpu_memory),
        "disk_bytes": estimate.map(|estimate| estimate.disk_space),
        "gpu_bytes": estimate.map(|estimate| estimate.gpu_memory),
        "gpu_bytes_at_least": estimate.map(|estimate| estimate.min_gpu_memory),
    })
}

fn format_estimate(estimate: ResourceEstimate) -> String {
    let mut parts = vec![format_bytes(estimate.cpu_memory)];
    if estimate.gpu_memory > 0 {
        parts.push(format!("{} of the GPU", format_bytes(estimate.gpu_memory)));
    }
    if estimate.disk_space > 0 {
        parts.push(format!("{} on disk", format_bytes(estimate.disk_space)));
    }
    parts.join(", ")
}

/// A number of bytes with a binary unit, such as `1.50 GiB`.
pub(super) fn format_bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
