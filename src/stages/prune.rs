//! `prune`: scores of units → the plan of what stays, and the smaller Model (LLM-Pruner, section 3.3).

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::products::{Compat, GroupScores};
use super::{Fault, Input, World, size_faults};
use crate::metrics::{MetricsError, Table};
use crate::model::Model;
use crate::model::groups::{DependencyGraph, Group, Kind};
use crate::model::plan::{self, PruningPlan};
use crate::model::sizes::Shape;
use crate::model::wiring::Part;

mod decide;

/// Removes the least important units.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Share of the units of each group that is removed, strictly between 0 and 1.
    pub ratio: f64,
    /// Whether each group loses the same share, or the whole model is ranked at once. Default `local`.
    #[serde(default)]
    pub scope: Scope,
    /// Keep a multiple of this many units in each group of MLP or hidden channels, 1 to 1048576; a group with fewer is left
    /// alone. Default 1: no rounding.
    #[serde(default = "one")]
    pub round_to: usize,
    /// Which rule global ranking follows. Default `corrected`.
    #[serde(default)]
    pub compat: Compat,
}

fn one() -> usize {
    1
}

/// What is ranked together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Every group for itself.
    #[default]
    Local,
    /// All groups together: widths may differ from layer to layer.
    Global,
}

impl Options {
    /// What the stage reads: nothing.
    pub fn inputs(&self, _: Option<&Path>) -> Vec<Input> {
        Vec::new()
    }

    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if !(self.ratio > 0.0 && self.ratio < 1.0) {
            faults.push(Fault::new(
                "ratio",
                format!("a ratio of {} prunes nothing or everything", self.ratio),
                "write a share strictly between 0 and 1, such as 0.25",
            ));
        }
        faults.extend(size_faults([("round_to", self.round_to)]));
        faults
    }

    pub fn world(&self, world: &mut World) -> Vec<Fault> {
        world.holds_weights(2);
        Vec::new()
    }
}

/// One row of `prune.parquet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Layer of the dense model.
    pub layer: u32,
    /// `attention`, `mlp`, `hidden` or `layer`.
    pub group: String,
    /// Unit of the dense model.
    pub unit: u32,
    pub kept: bool,
    /// What the unit was ranked by; null for a unit that was gone before.
    pub score: Option<f64>,
    /// Whether another program in float32 might decide otherwise: the score lies within 3e-5 of the border.
    pub near_tie: bool,
}

/// The row of `prune_sizes.parquet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SizesRow {
    pub params_before: u64,
    pub params_after: u64,
    /// Multiply-accumulates of a forward pass over 64 tokens.
    pub macs_before: u64,
    pub macs_after: u64,
    /// As float32.
    pub bytes_before: u64,
    pub bytes_after: u64,
    /// Share of the units in the groups that was removed.
    pub group_ratio: f64,
    /// Share of all parameters that was removed.
    pub param_ratio: f64,
}

/// The t-th of several times, from 1: a `prune` inside a `repeat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Schedule {
    pub time: u32,
    pub times: u32,
}

/// The model could not be pruned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

/// What pruning decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruning {
    /// The units that stay of each group of the graph, counted in the model that was pruned; [`cut`] leaves them alone.
    pub kept: Vec<Vec<usize>>,
    /// The same counted in the dense model, earlier prunings included.
    pub plan: PruningPlan,
    /// Units of each group before the first time of a repeat.
    pub initial: Baseline,
}

/// Units of groups when a repeat began, by kind and dense layer.
pub type Baseline = BTreeMap<(Kind, usize), usize>;

/// How many tokens the MACs are counted for.
const MACS_TOKENS: u64 = 64;

/// Removes the least important units of every group.
///
/// `before`: what the pruning before this one decided.
pub fn run(
    options: &Options,
    schedule: Option<Schedule>,
    model: &Model,
    graph: &DependencyGraph,
    scores: &GroupScores,
    before: Option<&Pruning>,
) -> Result<(Model, Pruning, Vec<Table>), Error> {
    let (mut plan, mut baseline) = before.map(|before| (before.plan.clone(), before.initial.clone())).unwrap_or_default();
    let initial: Vec<usize> = graph
        .groups
        .iter()
        .map(|group| {
            let units = baseline.entry((group.kind, plan.layer_of(group.kind, group.layer))).or_insert(group.units);
            if schedule.is_none_or(|s| s.time == 1) {
                *units = group.units;
            }
            *units
        })
        .collect();
    let share = decide::share(options.ratio, schedule);
    let decision = match options.scope {
        Scope::Local => decide::local(options, share, model, graph, scores, &initial),
        Scope::Global => decide::global(options, share, graph, scores, &initial),
    };
    let removed = &decision.removed;
    let shares_keys = model.blocks.iter().any(|block| block[Part::Q].rows() != block[Part::K].rows());
    let is_later = schedule.is_some_and(|schedule| schedule.time > 1);
    if options.compat == Compat::Reference && is_later && shares_keys && graph.groups.iter().any(|g| g.kind == Kind::Attention) {
        tracing::warn!("the reference's second step tears grouped queries from their keys; here they go together");
    }
    if removed.iter().all(Vec::is_empty) {
        tracing::warn!(ratio = share, "no group loses a unit: one is more than this share");
    }
    let (mut rows, mut kept) = (Vec::new(), Vec::new());
    for (((group, scores), removed), near) in graph.groups.iter().zip(&scores.groups).zip(removed).zip(&decision.near) {
        let own: Vec<usize> = (0..group.units).filter(|unit| removed.binary_search(unit).is_err()).collect();
        rows.extend(table_rows(&plan, group, scores, removed, near));
        plan.keep(group, &own);
        kept.push(own);
    }
    let pruned = cut(model, graph, &kept);
    let sizes = sizes(model, &pruned, graph, removed);
    tracing::info!(params = sizes.params_after, removed = format!("{:.1} %", 100.0 * sizes.param_ratio), "pruned");
    let tables = vec![Table::of("prune", &rows)?, Table::of("prune_sizes", &[sizes])?];
    Ok((pruned, Pruning { kept, plan, initial: baseline }, tables))
}

/// Units of a group that stay where this share of them goes, `width` channels to a unit: the reference's rule of counting.
pub fn units_that_stay(units: usize, width: usize, ratio: f64) -> usize {
    units - decide::units_to_remove(units, units, width, ratio)
}

/// The model with only these units of each group.
pub fn cut(model: &Model, graph: &DependencyGraph, kept: &[Vec<usize>]) -> Model {
    graph.groups.iter().zip(kept).fold(model.clone(), |model, (group, kept)| plan::keep(&model, group, kept))
}

/// One row for each unit of the dense model's group.
fn table_rows(before: &PruningPlan, group: &Group, scores: &[f64], removed: &[usize], near: &[bool]) -> Vec<Row> {
    let entry = before.find(group.kind, group.layer);
    let layer = before.layer_of(group.kind, group.layer);
    let row = |unit, kept, score, near_tie| Row {
        layer: layer as u32,
        group: group.kind.name().to_owned(),
        unit,
        kept,
        score,
        near_tie,
    };
    let dense_units = entry.map_or(group.units, |e| e.units);
    let mut rows: Vec<Row> = (0..dense_units).map(|unit| row(unit as u32, false, None, false)).collect();
    for (now, &score) in scores.iter().enumerate() {
        let unit = entry.map_or(now, |e| e.kept[now]);
        rows[unit] = row(unit as u32, removed.binary_search(&now).is_err(), Some(score), near[now]);
    }
    rows
}

fn sizes(before: &Model, after: &Model, graph: &DependencyGraph, removed: &[Vec<usize>]) -> SizesRow {
    let (params_before, params_after) = (before.parameters(), after.parameters());
    let units: usize = graph.groups.iter().map(|group| group.units).sum();
    SizesRow {
        params_before,
        params_after,
        macs_before: Shape::of(before).macs(MACS_TOKENS),
        macs_after: Shape::of(after).macs(MACS_TOKENS),
        bytes_before: params_before * size_of::<f32>() as u64,
        bytes_after: params_after * size_of::<f32>() as u64,
        group_ratio: removed.iter().map(Vec::len).sum::<usize>() as f64 / units as f64,
        param_ratio: 1.0 - params_after as f64 / params_before as f64,
    }
}
