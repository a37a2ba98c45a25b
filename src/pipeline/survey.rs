//! What a run will find: which variants are complete, which stages are kept, and why the others must run.

use std::collections::BTreeMap;

use super::cache::{self, Cost};
use super::plan::{Node, Plan};
use super::recipe::{self, Recipes};
use super::results::{self, Manifest, Standing, Status};

/// A stage of the tree, before a run.
#[derive(Clone, Debug)]
pub enum State {
    /// Every variant that it is a part of is complete.
    Complete,
    /// What it made is kept.
    Kept(Cost),
    /// And why.
    MustRun(String),
}

/// The states of a plan's stages, by node, and which variants are complete, as far as a quick look tells.
#[derive(Clone, Debug)]
pub struct Survey {
    pub nodes: Vec<State>,
    pub complete: Vec<bool>,
}

/// Seconds that stages of each type took.
pub type Costs = BTreeMap<&'static str, Vec<f64>>;

impl Survey {
    /// How many stages are left to run, and how long they will take: as long as those of their type that ran, or, before
    /// one did, as those that are kept took. None where neither is known.
    pub fn left(&self, plan: &Plan, is_left: impl Fn(usize) -> bool, ran: &Costs) -> (usize, Option<f64>) {
        let nodes = || plan.nodes.iter().zip(&self.nodes).enumerate();
        let must_run = |at: usize, state: &State| matches!(state, State::MustRun(_)) && is_left(at);
        let left = nodes().filter(|(at, (_, state))| must_run(*at, state)).map(|(_, (node, _))| node.step.stage.tag());
        let left: Vec<&str> = left.collect();
        let mut kept = Costs::new();
        for (_, (node, state)) in nodes() {
            if let State::Kept(cost) = state {
                kept.entry(node.step.stage.tag()).or_default().push(cost.wall_seconds);
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
pub fn survey(plan: &Plan, recipes: &Recipes) -> Survey {
    let folder = plan.settings.run.results.join(&plan.name);
    let complete: Vec<bool> = plan
        .variants
        .iter()
        .map(|variant| {
            let standing = || results::standing(&folder.join(&variant.id), &recipes.keys(variant), false);
            !plan.is_forced(variant) && matches!(standing(), Standing::Complete)
        })
        .collect();
    let cache = plan.settings.run.cache();
    let state = |(at, node): (usize, &Node)| {
        if let Some(option) = &node.forced {
            return State::MustRun(option.clone());
        }
        if node.variants.iter().all(|&v| complete[v]) {
            return State::Complete;
        }
        let key = &recipes.get(at).key;
        match cache::look(&cache, key) {
            Some(entry) => State::Kept(entry.cost),
            None if cache.join(format!("{key}{}", cache::STATE)).exists() => {
                State::MustRun("it was interrupted, and goes on from there".to_owned())
            }
            None => {
                let earlier = node.variants.iter().find_map(|&v| results::outcome(&folder.join(&plan.variants[v].id)));
                State::MustRun(earlier.map_or_else(|| "new".to_owned(), |(_, manifest)| reason(plan, recipes, at, &manifest)))
            }
        }
    };
    Survey { nodes: plan.nodes.iter().enumerate().map(state).collect(), complete }
}

/// Why a stage must run, although this is what an earlier run of the variant said of itself.
fn reason(plan: &Plan, recipes: &Recipes, at: usize, earlier: &Manifest) -> String {
    let (step, recipe) = (&plan.nodes[at].step, recipes.get(at));
    let Some(record) = earlier.stages.get(step.position as usize) else {
        let failed_here = earlier.status == Status::Failed && earlier.stages.len() == step.position as usize;
        return if failed_here { "it failed" } else { "not reached yet" }.to_owned();
    };
    if record.key == recipe.key {
        return "what was kept is gone".to_owned();
    }
    if record.code != recipe::code(step.stage.tag()) {
        return "the program has changed".to_owned();
    }
    let changed = |(path, hash): &(&String, &String)| earlier.inputs.get(*path).is_some_and(|before| before != *hash);
    if let Some((path, _)) = recipe.inputs.iter().find(changed) {
        return format!("`{path}` has changed");
    }
    if let Some(path) = recipe.inputs.keys().find(|path| !earlier.inputs.contains_key(*path)) {
        return format!("`{path}` is new");
    }
    let is_another = |maker: usize| {
        let before = earlier.stages.get(plan.nodes[maker].step.position as usize);
        before.is_some_and(|record| record.key != recipes.get(maker).key)
    };
    if let Some((product, maker)) = recipe.takes.iter().find(|(_, maker)| is_another(*maker)) {
        return format!("`{}` gives it another {}", plan.nodes[*maker].step.stage.tag(), product.name());
    }
    "another processor, or another way to read what is kept".to_owned()
}
