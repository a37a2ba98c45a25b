//! What will run: variants, and the tree of the stages they share.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::problem::Sources;
use super::settings::Settings;
use super::stage::{Entry, Stage, Step};

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
}

impl Plan {
    /// Stages that run, and that would run if variants shared nothing.
    pub fn stage_runs(&self) -> (usize, usize) {
        (self.nodes.len(), self.variants.iter().map(|variant| variant.steps.len()).sum())
    }

    /// The pipeline of one variant, which runs by itself: its stages with every option, the seed, the data folder.
    pub fn resolved(&self, variant: &Variant) -> String {
        let stages: Vec<Value> = variant.entries.iter().map(Entry::to_table).collect();
        let mut run = Map::from_iter([("seed".to_owned(), json!(self.settings.run.seed))]);
        if let Some(data) = &self.settings.run.data {
            run.insert("data".to_owned(), json!(data));
        }
        let pipeline = json!({ "run": run, "stage": stages });
        let body = toml::to_string(&pipeline).unwrap_or_else(|e| format!("# this pipeline cannot be written as TOML: {e}\n"));
        format!("# The variant {} of {}, every option filled in.\n\n{body}", variant.id, self.name)
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
        let mut line = format!("{lead}{}{schedule}{}  must run: nothing is kept", node.step.stage.tag(), shown(&node.step.stage));
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
    let words = stage
        .options()
        .into_iter()
        .filter(|(key, value)| telling.contains(key.as_str()) && !value.is_null() && *value != json!([]));
    words
        .map(|(key, value)| {
            format!(" {key}={}", value.as_str().map_or_else(|| value.to_string().replace('"', ""), str::to_owned))
        })
        .collect()
}
