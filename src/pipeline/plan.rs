//! What will run: variants, and the tree of the stages they share.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::problem::Sources;
use super::settings::Settings;
use super::stage::{Entry, Stage, Step};
use crate::stages::Estimate;

/// A checked pipeline. Only `check` makes one.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The file's stem; results lie under it.
    pub name: String,
    /// The pipeline's text.
    pub(super) text: String,
    pub(super) sources: Sources,
    pub settings: Settings,
    pub variants: Vec<Variant>,
    /// Variants of the sweep that were not asked for.
    pub(super) others: Vec<Variant>,
    /// The ids of all, in the order of the sweep.
    pub(super) order: Vec<String>,
    pub(super) nodes: Vec<Node>,
    pub(super) roots: Vec<usize>,
}

/// One combination of the sweep.
#[derive(Clone, Debug)]
pub struct Variant {
    pub id: String,
    /// The options that the sweep decides, and their values.
    pub swept: Vec<(String, Value)>,
    /// The stages as written, every value filled in.
    pub(super) entries: Vec<Entry>,
    /// The same, unrolled.
    pub steps: Vec<Step>,
    /// Its nodes, one for each step.
    pub(super) path: Vec<usize>,
}

/// A stage that runs once for all variants that share it and everything before it.
#[derive(Clone, Debug)]
pub struct Node {
    pub step: Step,
    /// Hash of this step and all before it.
    pub key: String,
    pub children: Vec<usize>,
    /// The variants it is a part of.
    pub variants: Vec<usize>,
    /// What it will need; None where the world was not looked at.
    pub estimate: Option<Estimate>,
}

/// Variants with equal beginnings share the nodes of a tree. Returns the nodes and those without a parent.
pub(super) fn tree(variants: &mut [Variant]) -> (Vec<Node>, Vec<usize>) {
    let (mut nodes, mut roots): (Vec<Node>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    for (v, variant) in variants.iter_mut().enumerate() {
        let (mut parent, mut key): (Option<usize>, String) = (None, String::new());
        for step in &variant.steps {
            key = blake3::hash(format!("{key}{}", step.identity()).as_bytes()).to_hex().to_string();
            let at = *known.entry(key.clone()).or_insert_with(|| {
                let at = nodes.len();
                match parent {
                    Some(parent) => nodes[parent].children.push(at),
                    None => roots.push(at),
                }
                nodes.push(Node {
                    step: step.clone(),
                    key: key.clone(),
                    children: Vec::new(),
                    variants: Vec::new(),
                    estimate: None,
                });
                at
            });
            nodes[at].variants.push(v);
            variant.path.push(at);
            parent = Some(at);
        }
    }
    (nodes, roots)
}

impl Plan {
    /// Stages that run, and that would run if variants shared nothing.
    pub fn stage_runs(&self) -> (usize, usize) {
        (self.nodes.len(), self.variants.iter().map(|variant| variant.steps.len()).sum())
    }

    /// The pipeline of one variant, which runs by itself: its stages with every option, the seed, the data folder.
    ///
    /// # Errors
    /// If a value cannot be written as TOML: a seed beyond its integers.
    pub fn resolved(&self, variant: &Variant) -> Result<String, toml::ser::Error> {
        let stages: Vec<Value> = variant.entries.iter().map(Entry::to_table).collect();
        let mut run = Map::from_iter([("seed".to_owned(), json!(self.settings.run.seed))]);
        if let Some(data) = &self.settings.run.data {
            run.insert("data".to_owned(), json!(data));
        }
        let pipeline = json!({ "run": run, "stage": stages });
        let body = toml::to_string(&pipeline)?;
        Ok(format!("# The variant {} of {}, every option filled in.\n\n{body}", variant.id, self.name))
    }

    /// What `runner plan` prints.
    pub fn text(&self) -> String {
        let (runs, alone) = self.stage_runs();
        let mut lines = vec![
            format!("{}: {} of {} stages ({} without sharing)", self.name, variants_text(self.variants.len()), runs, alone),
            String::new(),
        ];
        for &root in &self.roots {
            self.draw(root, "", "", &mut lines);
        }
        lines.push(String::new());
        let estimates = || self.nodes.iter().filter_map(|node| node.estimate);
        let whole =
            Estimate { memory: estimates().map(|e| e.memory).max().unwrap_or(0), disk: estimates().map(|e| e.disk).sum() };
        lines.push(format!("at most about {} of memory at once, {} on disk beside tables", size(whole.memory), size(whole.disk)));
        lines.push(String::new());
        lines.push("settings".to_owned());
        if let Ok(Value::Object(run)) = serde_json::to_value(&self.settings.run) {
            let line = |(key, value): (&String, &Value)| {
                format!("  {key:8} {value:24} {}", self.settings.provenance.get(key).map_or("", String::as_str))
            };
            lines.extend(run.iter().map(line));
        }
        lines.join("\n") + "\n"
    }

    fn draw(&self, at: usize, lead: &str, below: &str, lines: &mut Vec<String>) {
        let node = &self.nodes[at];
        let schedule = node.step.schedule.map_or_else(String::new, |s| format!(" {}/{}", s.time, s.times));
        let needs = node.estimate.map_or_else(String::new, |estimate| format!(", about {}", estimate_text(estimate)));
        let mut line =
            format!("{lead}{}{schedule}{}  must run: nothing is kept{needs}", node.step.stage.tag(), shown(&node.step.stage));
        if let ([], [variant]) = (&node.children[..], &node.variants[..]) {
            line.push_str(&format!("  → {}", self.variants[*variant].id));
        }
        lines.push(line);
        // A single stage goes on in the same column; branches are drawn.
        match &node.children[..] {
            [only] => self.draw(*only, below, below, lines),
            children => {
                for (i, &child) in children.iter().enumerate() {
                    let (branch, under) = if i + 1 == children.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
                    self.draw(child, &format!("{below}{branch}"), &format!("{below}{under}"), lines);
                }
            }
        }
    }

    /// What `runner plan --format json` prints.
    pub fn json(&self) -> Value {
        let (runs, alone) = self.stage_runs();
        let node = |node: &Node| {
            let variants: Vec<&str> = node.variants.iter().map(|&v| self.variants[v].id.as_str()).collect();
            json!({
                "step": node.step.position, "stage": node.step.stage.tag(), "options": node.step.stage.options(),
                "key": node.key, "children": node.children, "variants": variants, "state": "must run", "reason": "nothing is kept",
                "memory_bytes": node.estimate.map(|e| e.memory), "disk_bytes": node.estimate.map(|e| e.disk),
            })
        };
        let variant = |v: &Variant| json!({ "id": v.id, "swept": Map::from_iter(v.swept.iter().cloned()), "nodes": v.path });
        json!({
            "pipeline": self.name, "stage_runs": runs, "stage_runs_without_sharing": alone,
            "variants": self.variants.iter().map(variant).collect::<Vec<_>>(),
            "nodes": self.nodes.iter().map(node).collect::<Vec<_>>(), "roots": self.roots,
            "settings": self.settings.run, "provenance": self.settings.provenance,
        })
    }
}

fn estimate_text(estimate: Estimate) -> String {
    match estimate.disk {
        0 => size(estimate.memory),
        disk => format!("{}, {} on disk", size(estimate.memory), size(disk)),
    }
}

/// Bytes as a person reads them.
pub(super) fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

fn variants_text(n: usize) -> String {
    if n == 1 { "1 variant".to_owned() } else { format!("{n} variants") }
}

/// The options that say what a stage does, in few words.
fn shown(stage: &Stage) -> String {
    let telling: BTreeSet<&str> = [
        "model", "grouping", "method", "taylor", "with", "level", "ratio", "scope", "rank", "duration", "tasks", "corpora",
        "formats", "updates",
    ]
    .into();
    let options = stage.options();
    let has_form = options.get("method").is_some_and(|method| method == "taylor");
    let tells = |key: &str| telling.contains(key) && (key != "taylor" || has_form);
    let words = options.into_iter().filter(|(key, value)| tells(key) && *value != json!([]));
    words
        .map(|(key, value)| {
            format!(" {key}={}", value.as_str().map_or_else(|| value.to_string().replace('"', ""), str::to_owned))
        })
        .collect()
}
