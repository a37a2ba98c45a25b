//! `prune`: scores of units → the plan of what stays, and the smaller Model (LLM-Pruner, section 3.3).

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::products::{Compat, GroupScores, InputMeans};
use super::{Environment, InputFile, OptionFault, size_faults};
use secateur_model::Model;
use secateur_model::cost::ModelShape;
use secateur_model::groups::{DependencyGraph, Group, GroupKind};
use secateur_model::plan::{self, PruningPlan};
use secateur_model::wiring::{BlockTensor, TensorId};
use secateur_store::tables::{Table, TableError};
use secateur_tensor::Weight;

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
    /// What makes up for what the removed units gave on average. Default `none`.
    // Younger than the others: variants without it keep their ids.
    #[serde(default, skip_serializing_if = "Compensation::is_none")]
    pub compensation: Compensation,
    /// Which rule global ranking follows. Default `corrected`.
    #[serde(default)]
    pub compat: Compat,
}

fn one() -> usize {
    1
}

/// How the mean of what is lost is made up for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Compensation {
    #[default]
    None,
    /// A bias on `o_proj` and `down_proj`: Σ over the removed input channels of the weight's column times the channel's mean over
    /// the calibration tokens (FLAP, AAAI 2024). Needs the means that `wifv` sees.
    Bias,
}

impl Compensation {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
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
    pub fn inputs(&self, _: Option<&Path>) -> Vec<InputFile> {
        Vec::new()
    }

    pub fn faults(&self) -> Vec<OptionFault> {
        let mut faults = Vec::new();
        if !(self.ratio > 0.0 && self.ratio < 1.0) {
            faults.push(OptionFault::new(
                "ratio",
                format!("a ratio of {} prunes nothing or everything", self.ratio),
                "write a share strictly between 0 and 1, such as 0.25",
            ));
        }
        faults.extend(size_faults([("round_to", self.round_to)]));
        faults
    }

    pub fn environment_faults(&self, world: &mut Environment) -> Vec<OptionFault> {
        world.add_weights(2);
        if self.compensation == Compensation::Bias && !world.has_input_means {
            let message =
                "a bias is made of the means of activations, and this importance does not see them";
            return vec![OptionFault::new(
                "compensation",
                message,
                "write method = \"wifv\" in the importance, or remove the line",
            )];
        }
        Vec::new()
    }
}

/// One row of `prune.parquet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PruneRow {
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
pub struct PruneSizesRow {
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
pub struct RepeatPosition {
    pub iteration: u32,
    pub iterations: u32,
}

/// The model could not be pruned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Metrics(#[from] TableError),
    #[error(
        "a bias is made of the means of activations, and this importance does not see them; write method = \"wifv\""
    )]
    NoMeans,
}

/// What pruning decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PruningResult {
    /// The units that stay of each group of the graph, counted in the model that was pruned; [`cut`] leaves them alone.
    pub kept_units: Vec<Vec<usize>>,
    /// The same counted in the dense model, earlier prunings included.
    pub plan: PruningPlan,
    /// Units of each group before the first time of a repeat.
    pub initial_units: InitialUnits,
    /// What is added to the outputs of matrices: layer of the model that was pruned, matrix, one number per output.
    pub added_biases: Vec<(usize, BlockTensor, Vec<f32>)>,
}

/// Units of groups when a repeat began, by kind and dense layer.
pub type InitialUnits = BTreeMap<(GroupKind, usize), usize>;

/// How many tokens the MACs are counted for.
const MACS_TOKENS: u64 = 64;

/// Removes the least important units of every group.
///
/// `before`: what the pruning before this one decided.
pub fn run(
    options: &Options,
    schedule: Option<RepeatPosition>,
    model: &Model,
    graph: &DependencyGraph,
    scores: &GroupScores,
    before: Option<&PruningResult>,
) -> Result<(Model, PruningResult, Vec<Table>), Error> {
    let (mut plan, mut baseline) = before
        .map(|before| (before.plan.clone(), before.initial_units.clone()))
        .unwrap_or_default();
    let initial: Vec<usize> = graph
        .groups
        .iter()
        .map(|group| {
            let units = baseline
                .entry((group.kind, plan.dense_group_layer(group.kind, group.layer)))
                .or_insert(group.unit_count);
            if schedule.is_none_or(|s| s.iteration == 1) {
                *units = group.unit_count;
            }
            *units
        })
        .collect();
    let share = decide::scheduled_share(options.ratio, schedule);
    let decision = match options.scope {
        Scope::Local => decide::select_per_group(options, share, model, graph, scores, &initial),
        Scope::Global => decide::select_across_groups(options, share, graph, scores, &initial),
    };
    let removed = &decision.removed;
    let shares_keys = model
        .blocks
        .iter()
        .any(|block| block[BlockTensor::Q].rows() != block[BlockTensor::K].rows());
    let is_later = schedule.is_some_and(|schedule| schedule.iteration > 1);
    if options.compat == Compat::Reference
        && is_later
        && shares_keys
        && graph.groups.iter().any(|g| g.kind == GroupKind::Attention)
    {
        tracing::warn!(
            "the reference's second step tears grouped queries from their keys; here they go together"
        );
    }
    if removed.iter().all(Vec::is_empty) {
        tracing::warn!(
            ratio = share,
            "no group loses a unit: one is more than this share"
        );
    }
    let (mut rows, mut kept) = (Vec::new(), Vec::new());
    for (((group, scores), removed), near) in graph
        .groups
        .iter()
        .zip(&scores.groups)
        .zip(removed)
        .zip(&decision.is_near_tie)
    {
        let own: Vec<usize> = (0..group.unit_count)
            .filter(|unit| removed.binary_search(unit).is_err())
            .collect();
        rows.extend(table_rows(&plan, group, scores, removed, near));
        plan.record_kept_units(group, &own);
        kept.push(own);
    }
    let biases = match options.compensation {
        Compensation::None => Vec::new(),
        Compensation::Bias => compensation_biases(model, graph, &kept, &scores.input_means)?,
    };
    let pruning = PruningResult {
        kept_units: kept,
        plan,
        initial_units: baseline,
        added_biases: biases,
    };
    let pruned = apply_pruning(model, graph, &pruning);
    let sizes = sizes_row(model, &pruned, graph, removed);
    tracing::info!(
        params = sizes.params_after,
        removed = format!("{:.1} %", 100.0 * sizes.param_ratio),
        "pruned"
    );
    let tables = vec![
        Table::from_rows("prune", &rows)?,
        Table::from_rows("prune_sizes", &[sizes])?,
    ];
    Ok((pruned, pruning, tables))
}

/// Units of a group that stay where this share of them goes, `width` channels to a unit: the reference's rule of counting.
pub fn remaining_units(units: usize, width: usize, ratio: f64) -> usize {
    units - decide::units_to_remove(units, units, width, ratio)
}

/// The model with only the units of each group that stay, and what makes up for the others.
pub fn apply_pruning(model: &Model, graph: &DependencyGraph, pruning: &PruningResult) -> Model {
    let mut compensated = model.clone();
    for (layer, part, bias) in &pruning.added_biases {
        let block = &mut compensated.blocks[*layer];
        let before = block.bias(*part).map(|before| before.values().into_owned());
        let sum = before.map_or_else(
            || bias.clone(),
            |before| before.iter().zip(bias).map(|(a, b)| a + b).collect(),
        );
        block.set_bias(*part, Weight::new(sum, 1, bias.len()));
    }
    graph
        .groups
        .iter()
        .zip(&pruning.kept_units)
        .fold(compensated, |model, (group, kept)| {
            plan::keep_units(&model, group, kept)
        })
}

/// W[:, removed] · mean(x[removed]) for each matrix that loses inputs.
fn compensation_biases(
    model: &Model,
    graph: &DependencyGraph,
    kept: &[Vec<usize>],
    means: &InputMeans,
) -> Result<Vec<(usize, BlockTensor, Vec<f32>)>, Error> {
    let mut biases = Vec::new();
    for (group, kept) in graph
        .groups
        .iter()
        .zip(kept)
        .filter(|(group, kept)| kept.len() < group.unit_count)
    {
        let Some(member) = group.members.iter().find(|member| member.is_output) else {
            continue;
        };
        let TensorId::Block(layer, part) = member.tensor_id else {
            continue;
        };
        let seen = means
            .iter()
            .find(|(at, of, _)| (*at, *of) == (layer, part))
            .ok_or(Error::NoMeans)?;
        let (weight, width) = (
            model.weight(member.tensor_id),
            group.channels_per_unit(model, member),
        );
        let lost: Vec<usize> = (0..weight.cols())
            .filter(|channel| kept.binary_search(&(channel / width)).is_err())
            .collect();
        let rows = weight.values();
        let rows = rows.chunks_exact(weight.cols());
        let bias = rows.map(|row| {
            lost.iter()
                .map(|&c| f64::from(row[c]) * seen.2[c])
                .sum::<f64>() as f32
        });
        biases.push((layer, part, bias.collect()));
    }
    Ok(biases)
}

/// One row for each unit of the dense model's group.
fn table_rows(
    before: &PruningPlan,
    group: &Group,
    scores: &[f64],
    removed: &[usize],
    near: &[bool],
) -> Vec<PruneRow> {
    let entry = before.find_entry(group.kind, group.layer);
    let layer = before.dense_group_layer(group.kind, group.layer);
    let row = |unit, kept, score, near_tie| PruneRow {
        layer: layer as u32,
        group: group.kind.name().to_owned(),
        unit,
        kept,
        score,
        near_tie,
    };
    let dense_units = entry.map_or(group.unit_count, |e| e.units);
    let mut rows: Vec<PruneRow> = (0..dense_units)
        .map(|unit| row(unit as u32, false, None, false))
        .collect();
    for (now, &score) in scores.iter().enumerate() {
        let unit = entry.map_or(now, |e| e.kept[now]);
        rows[unit] = row(
            unit as u32,
            removed.binary_search(&now).is_err(),
            Some(score),
            near[now],
        );
    }
    rows
}

fn sizes_row(
    before: &Model,
    after: &Model,
    graph: &DependencyGraph,
    removed: &[Vec<usize>],
) -> PruneSizesRow {
    let (params_before, params_after) = (before.parameter_count(), after.parameter_count());
    let units: usize = graph.groups.iter().map(|group| group.unit_count).sum();
    PruneSizesRow {
        params_before,
        params_after,
        macs_before: ModelShape::from_model(before).macs(MACS_TOKENS),
        macs_after: ModelShape::from_model(after).macs(MACS_TOKENS),
        bytes_before: params_before * size_of::<f32>() as u64,
        bytes_after: params_after * size_of::<f32>() as u64,
        group_ratio: removed.iter().map(Vec::len).sum::<usize>() as f64 / units as f64,
        param_ratio: 1.0 - params_after as f64 / params_before as f64,
    }
}
