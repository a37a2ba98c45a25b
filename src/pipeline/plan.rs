//! What will run: variants, and the tree of the stages they share.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::problem::Sources;
use super::recipe::Recipes;
use super::settings::Settings;
use super::stage::{Entry, Step, told};
use super::survey::{State, Survey};
use crate::progress::clock;
use crate::stages::Estimate;

/// A checked pipeline. Only `check` makes one.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The file's stem; results lie under it.
    pub name: String,
    /// The pipeline's path.
    pub(super) file: PathBuf,
    /// The pipeline's text.
    pub(super) text: String,
    pub(super) sources: Sources,
    pub settings: Settings,
    /// Where it is written that the lock file must hold.
    pub(super) locked: Range<usize>,
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
    /// Of its stages' options and the seed.
    pub(super) hash: [u8; 32],
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
    pub children: Vec<usize>,
    /// The variants it is a part of.
    pub variants: Vec<usize>,
    /// What it will need; None where the world was not looked at.
    pub estimate: Option<Estimate>,
    /// Why it must run whatever is kept: the option of the command line that says so.
    pub forced: Option<String>,
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
                nodes.push(Node { step: step.clone(), children: Vec::new(), variants: Vec::new(), estimate: None, forced: None });
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

    /// Whether a stage of the variant must run, whatever is kept.
    pub(super) fn is_forced(&self, variant: &Variant) -> bool {
        variant.path.iter().any(|&node| self.nodes[node].forced.is_some())
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

    /// What `runner plan` prints; the survey is this plan's.
    pub fn text(&self, survey: &Survey) -> String {
        let (runs, alone) = self.stage_runs();
        let mut lines = vec![
            format!("{}: {} of {} stages ({} without sharing)", self.name, count(self.variants.len(), "variant"), runs, alone),
            String::new(),
        ];
        for &root in &self.roots {
            self.draw(root, survey, "", "", &mut lines);
        }
        lines.push(String::new());
        let must_run = survey.nodes.iter().filter(|state| matches!(state, State::MustRun(_))).count();
        let complete = survey.complete.iter().filter(|complete| **complete).count();
        lines.push(format!(
            "{must_run} of {} must run; {complete} of {} are complete",
            count(runs, "stage"),
            count(self.variants.len(), "variant")
        ));
        let estimates = || self.nodes.iter().filter_map(|node| node.estimate);
        let most = |of: fn(Estimate) -> u64| estimates().map(of).max().unwrap_or(0);
        let (memory, gpu, at_least) = (most(|e| e.memory), most(|e| e.gpu), most(|e| e.gpu_at_least));
        let disk = size(estimates().map(|e| e.disk).sum());
        lines.push(format!("at most about {} of memory at once, {disk} on disk beside tables", size(memory)));
        if gpu > 0 {
            lines.push(format!(
                "about {} of the GPU's memory, {} where blocks are brought one by one",
                size(gpu),
                size(at_least)
            ));
        }
        lines.push(String::new());
        lines.push("settings".to_owned());
        if let Ok(Value::Object(run)) = serde_json::to_value(&self.settings.run) {
            let line = |(key, value): (&String, &Value)| {
                format!("  {key:11} {value:24} {}", self.settings.provenance.get(key).map_or("", String::as_str))
            };
            lines.extend(run.iter().map(line));
        }
        lines.join("\n") + "\n"
    }

    fn draw(&self, at: usize, survey: &Survey, lead: &str, below: &str, lines: &mut Vec<String>) {
        let node = &self.nodes[at];
        let schedule = node.step.schedule.map_or_else(String::new, |s| format!(" {}/{}", s.time, s.times));
        let state = match &survey.nodes[at] {
            State::Complete => "kept".to_owned(),
            State::Kept(cost) => format!("kept ({})", clock(cost.wall_seconds)),
            State::MustRun(why) => {
                let needs = node.estimate.map_or_else(String::new, |estimate| format!(", about {}", estimate_text(estimate)));
                format!("must run: {why}{needs}")
            }
        };
        let mut line = format!("{lead}{}{schedule}{}  {state}", node.step.stage.tag(), told(&node.step.stage.options()));
        if let ([], [variant]) = (&node.children[..], &node.variants[..]) {
            line.push_str(&format!("  → {}", self.variants[*variant].id));
        }
        lines.push(line);
        // A single stage goes on in the same column; branches are drawn.
        match &node.children[..] {
            [only] => self.draw(*only, survey, below, below, lines),
            children => {
                for (i, &child) in children.iter().enumerate() {
                    let (branch, under) = if i + 1 == children.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
                    self.draw(child, survey, &format!("{below}{branch}"), &format!("{below}{under}"), lines);
                }
            }
        }
    }

    /// What `runner plan --format json` prints.
    pub fn json(&self, recipes: &Recipes, survey: &Survey) -> Value {
        let (runs, alone) = self.stage_runs();
        let node = |(at, node): (usize, &Node)| {
            let (state, reason) = match &survey.nodes[at] {
                State::Complete | State::Kept(_) => ("kept", None),
                State::MustRun(why) => ("must run", Some(why)),
            };
            let variants: Vec<&str> = node.variants.iter().map(|&v| self.variants[v].id.as_str()).collect();
            json!({
                "step": node.step.position, "stage": node.step.stage.tag(), "options": node.step.stage.options(),
                "key": recipes.get(at).key, "children": node.children, "variants": variants, "state": state, "reason": reason,
                "memory_bytes": node.estimate.map(|e| e.memory), "disk_bytes": node.estimate.map(|e| e.disk),
                "gpu_bytes": node.estimate.map(|e| e.gpu), "gpu_bytes_at_least": node.estimate.map(|e| e.gpu_at_least),
            })
        };
        let variant = |(v, complete): (&Variant, &bool)| json!({ "id": v.id, "swept": Map::from_iter(v.swept.iter().cloned()), "nodes": v.path, "complete": complete });
        json!({
            "pipeline": self.name, "stage_runs": runs, "stage_runs_without_sharing": alone,
            "variants": self.variants.iter().zip(&survey.complete).map(variant).collect::<Vec<_>>(),
            "nodes": self.nodes.iter().enumerate().map(node).collect::<Vec<_>>(), "roots": self.roots,
            "settings": self.settings.run, "provenance": self.settings.provenance,
        })
    }
}

fn estimate_text(estimate: Estimate) -> String {
    let more = [(estimate.gpu, "of the GPU"), (estimate.disk, "on disk")].into_iter().filter(|(bytes, _)| *bytes > 0);
    [size(estimate.memory)]
        .into_iter()
        .chain(more.map(|(bytes, what)| format!("{} {what}", size(bytes))))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Bytes as a person reads them.
pub(super) fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// `1 variant`, `2 variants`.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
