//! `prune`: scores of units → which units are kept, and the smaller model (LLM-Pruner, section
//! 3.3).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::environment::{Environment, OptionFault, UnusedOption, size_faults};
use super::error::{RestoreError, StageError};
use super::facts::EarlierStages;
use super::products::{Compat, GroupScores, InitialUnits, InputMeans, PruningResult};
use super::stage::{Stage, StageOutput, StageType, describe_options};
use super::stored;
use super::values::{GRAPH, GROUP_SCORES, MODEL, PLAN, StageValues, ValueKind};
use super::{Context, MemoryBudget, RepeatPosition};
use crate::progress::format_percent;
use secateur_model::Model;
use secateur_model::groups::{DependencyGraph, Group, GroupKind};
use secateur_model::plan::{self, PruningPlan};
use secateur_model::wiring::{BlockTensor, TensorId};
use secateur_store::cache::{ProductDraft, StoredProduct};
use secateur_store::tables::{Table, TableError};
use secateur_tensor::{Weight, WeightReadError};

mod decide;
mod ineffective;
mod sizes;
pub use sizes::PruneSizesRow;

pub static TYPE: StageType = StageType {
    needs: &[ValueKind::Model, ValueKind::Graph, ValueKind::GroupScores],
    uses: &[ValueKind::Plan],
    makes: &[ValueKind::Model, ValueKind::Plan],
    spends: &[
        ValueKind::Graph,
        ValueKind::Scores,
        ValueKind::GroupScores,
        ValueKind::Adapter,
    ],
    uses_repeat_position: true,
    summary: |options| describe_options(options, &["ratio", "scope"]),
    ..StageType::new::<Options>("prune")
};

/// Removes the least important units.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Share of the units of each group that is removed, strictly between 0 and 1.
    pub ratio: f64,
    /// Whether each group loses the same share, or all groups are ranked together. Default `local`.
    #[serde(default)]
    pub scope: Scope,
    /// Each group of MLP or hidden channels keeps a multiple of this many units, 1 to 1048576; a
    /// group with fewer is not pruned. Default 1: no rounding.
    #[serde(default = "one")]
    pub round_to: usize,
    /// How the mean output of the removed units is compensated. Default `none`.
    // Added after the first release: variants without it keep their ids.
    #[serde(default, skip_serializing_if = "Compensation::is_none")]
    pub compensation: Compensation,
    /// Which rule global ranking follows. Default `corrected`.
    #[serde(default)]
    pub compat: Compat,
}

fn one() -> usize {
    1
}

/// How the mean output of the removed units is compensated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Compensation {
    #[default]
    None,
    /// A bias on `o_proj` and `down_proj`: Σ over the removed input channels of the weight's column
    /// times the channel's mean over the calibration tokens (FLAP, AAAI 2024). Needs the means that
    /// `wifv` records.
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
    /// Every group alone.
    #[default]
    Local,
    /// All groups together: widths can differ between layers.
    Global,
}

impl Stage for Options {
    fn stage_type(&self) -> &'static StageType {
        &TYPE
    }

    fn option_faults(&self) -> Vec<OptionFault> {
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

    fn faults_after(&self, earlier: &EarlierStages) -> Vec<OptionFault> {
        let has_means = earlier
            .importance
            .is_none_or(|importance| importance.has_input_means);
        if self.compensation == Compensation::None || has_means {
            return Vec::new();
        }
        vec![OptionFault::new(
            "compensation",
            "a bias is computed from the means of activations, which this importance does not \
             record",
            "write method = \"wifv\" in the importance, or remove the line",
        )]
    }

    fn unused_options(&self, earlier: &EarlierStages) -> Vec<UnusedOption> {
        ineffective::unused_options(earlier)
    }

    fn environment_faults(&self, environment: &mut Environment) -> Vec<OptionFault> {
        environment.add_weights(2);
        ineffective::warnings(self, &environment.groups)
    }

    fn run(&self, context: &Context, inputs: &StageValues) -> Result<StageOutput, StageError> {
        let (model, pruning, tables) = run(
            self,
            context.repeat_position,
            inputs.require(MODEL)?,
            inputs.require(GRAPH)?,
            inputs.require(GROUP_SCORES)?,
            inputs.get(PLAN),
        )?;
        let values = StageValues::default()
            .with(MODEL, model)
            .with(PLAN, pruning);
        Ok(StageOutput { values, tables })
    }

    fn store(&self, values: &StageValues, draft: &ProductDraft) -> Result<(), StageError> {
        stored::write_value(draft, values.require(PLAN)?)
    }

    fn restore(&self, product: &StoredProduct) -> Result<StageValues, RestoreError> {
        Ok(StageValues::default().with(PLAN, stored::read_value(product)?))
    }

    fn restore_model_inputs(&self) -> &'static [ValueKind] {
        &[ValueKind::Model, ValueKind::Graph]
    }

    /// Cuts the model again by the stored result.
    fn restore_model(
        &self,
        product: &StoredProduct,
        inputs: &StageValues,
        _: MemoryBudget,
    ) -> Result<StageValues, RestoreError> {
        let pruning = stored::read_value(product)?;
        let model = apply_pruning(inputs.require(MODEL)?, inputs.require(GRAPH)?, &pruning);
        Ok(StageValues::default().with(MODEL, model))
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
    /// The score by which the unit was ranked; null for a unit that an earlier pruning removed.
    pub score: Option<f64>,
    /// Whether another program in float32 might decide otherwise: the score differs from the border
    /// between kept and removed by at most 3e-5 of the larger.
    pub near_tie: bool,
}

/// The model could not be pruned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Metrics(#[from] TableError),
    #[error(
        "a bias is computed from the means of activations, which this importance does not record; \
         write method = \"wifv\""
    )]
    NoMeans,
    #[error(transparent)]
    UnreadableWeight(#[from] WeightReadError),
}

/// Removes the least important units of every group.
///
/// `earlier`: the result of the pruning before this one.
pub fn run(
    options: &Options,
    repeat_position: Option<RepeatPosition>,
    model: &Model,
    graph: &DependencyGraph,
    scores: &GroupScores,
    earlier: Option<&PruningResult>,
) -> Result<(Model, PruningResult, Vec<Table>), Error> {
    let (mut plan, mut initial_units) = match earlier {
        Some(earlier) => (earlier.plan.clone(), earlier.initial_units.clone()),
        None => (PruningPlan::default(), InitialUnits::new()),
    };
    let initial_counts = initial_unit_counts(repeat_position, graph, &plan, &mut initial_units);
    let share = decide::scheduled_share(options.ratio, repeat_position);
    let selection = match options.scope {
        Scope::Local => {
            decide::select_per_group(options, share, model, graph, scores, &initial_counts)
        }
        Scope::Global => {
            decide::select_across_groups(options, share, graph, scores, &initial_counts)
        }
    };
    warn_about_selection(options, share, repeat_position, model, graph, &selection);

    let (mut rows, mut kept_units) = (Vec::new(), Vec::new());
    for (index, group) in graph.groups.iter().enumerate() {
        let removed = &selection.removed[index];
        let near_ties = &selection.is_near_tie[index];
        let kept: Vec<usize> = (0..group.unit_count)
            .filter(|unit| removed.binary_search(unit).is_err())
            .collect();
        rows.extend(table_rows(
            &plan,
            group,
            &scores.groups[index],
            removed,
            near_ties,
        ));
        plan.record_kept_units(group, &kept);
        kept_units.push(kept);
    }
    let added_biases = match options.compensation {
        Compensation::None => Vec::new(),
        Compensation::Bias => compensation_biases(model, graph, &kept_units, &scores.input_means)?,
    };
    let pruning = PruningResult {
        kept_units,
        plan,
        initial_units,
        added_biases,
    };
    let pruned = apply_pruning(model, graph, &pruning);
    let sizes = sizes::sizes_row(model, &pruned, graph, &selection.removed);
    tracing::info!(
        params = sizes.params_after,
        removed = format_percent(sizes.param_ratio),
        "pruned"
    );
    let tables = vec![
        Table::from_rows("prune", &rows)?,
        Table::from_rows("prune_sizes", &[sizes])?,
    ];
    Ok((pruned, pruning, tables))
}

/// Units of each group at the beginning of the `repeat`: those of `graph` if the stage is in no
/// `repeat` or in its first iteration. Updates `initial_units`, whose keys are the group's kind and
/// its layer in the dense model, because indices of layers change when layers are pruned.
fn initial_unit_counts(
    repeat_position: Option<RepeatPosition>,
    graph: &DependencyGraph,
    plan: &PruningPlan,
    initial_units: &mut InitialUnits,
) -> Vec<usize> {
    let is_first_pruning = repeat_position.is_none_or(|repeat| repeat.iteration == 1);
    let mut counts = Vec::with_capacity(graph.groups.len());
    for group in &graph.groups {
        let dense_layer = plan.dense_group_layer(group.kind, group.layer);
        let units = initial_units
            .entry((group.kind, dense_layer))
            .or_insert(group.unit_count);
        if is_first_pruning {
            *units = group.unit_count;
        }
        counts.push(*units);
    }
    counts
}

/// Warns if the reference implementation would remove other units, and if nothing is removed.
fn warn_about_selection(
    options: &Options,
    share: f64,
    repeat_position: Option<RepeatPosition>,
    model: &Model,
    graph: &DependencyGraph,
    selection: &decide::UnitSelection,
) {
    let has_grouped_queries = model
        .blocks
        .iter()
        .any(|block| block[BlockTensor::Q].rows() != block[BlockTensor::K].rows());
    let is_later_iteration = repeat_position.is_some_and(|repeat| repeat.iteration > 1);
    let prunes_heads = graph
        .groups
        .iter()
        .any(|group| group.kind == GroupKind::Attention);
    if options.compat == Compat::Reference
        && is_later_iteration
        && has_grouped_queries
        && prunes_heads
    {
        tracing::warn!(
            "the reference's second step separates grouped queries from their keys; here they are \
             removed together"
        );
    }
    if selection.removed.iter().all(Vec::is_empty) {
        tracing::warn!(
            ratio = share,
            "no group loses a unit: one unit is more than this share"
        );
    }
}

/// Units of a group that are kept if the share `ratio` is removed, as the reference counts them. A
/// unit has `unit_width` channels.
pub fn remaining_units(units: usize, unit_width: usize, ratio: f64) -> usize {
    units - decide::units_to_remove(units, units, unit_width, ratio)
}

/// The model with only the kept units of each group, and with the biases that compensate for the
/// removed ones.
pub fn apply_pruning(model: &Model, graph: &DependencyGraph, pruning: &PruningResult) -> Model {
    let mut pruned = model.clone();
    // Biases are added first: removing units also cuts the biases of the matrices that lose them.
    for (layer, tensor, added) in &pruning.added_biases {
        let block = &mut pruned.blocks[*layer];
        let bias = match block.bias(*tensor) {
            Some(present) => present
                .values()
                .iter()
                .zip(added)
                .map(|(a, b)| a + b)
                .collect(),
            None => added.clone(),
        };
        block.set_bias(*tensor, Weight::new(bias, 1, added.len()));
    }
    for (group, kept) in graph.groups.iter().zip(&pruning.kept_units) {
        pruned = plan::keep_units(&pruned, group, kept);
    }
    pruned
}

/// For each matrix W (outputs, inputs) that loses inputs: its layer, its name in the block, and the
/// bias (outputs) = Σ over the lost inputs c of W[·, c] · E[x_c].
fn compensation_biases(
    model: &Model,
    graph: &DependencyGraph,
    kept_units: &[Vec<usize>],
    input_means: &InputMeans,
) -> Result<Vec<(usize, BlockTensor, Vec<f32>)>, Error> {
    let mut biases = Vec::new();
    for (group, kept) in graph.groups.iter().zip(kept_units) {
        if kept.len() == group.unit_count {
            continue;
        }
        let Some(member) = group.members.iter().find(|member| member.is_output) else {
            continue;
        };
        let TensorId::Block(layer, tensor) = member.tensor_id else {
            continue;
        };
        let (_, _, means) = input_means
            .iter()
            .find(|(mean_layer, mean_tensor, _)| (*mean_layer, *mean_tensor) == (layer, tensor))
            .ok_or(Error::NoMeans)?;
        let weight = model.weight(member.tensor_id);
        let unit_width = group.channels_per_unit(model, member);
        let lost_inputs: Vec<usize> = (0..weight.cols())
            .filter(|channel| kept.binary_search(&(channel / unit_width)).is_err())
            .collect();
        // one row of W: the mean contribution of the lost inputs to that output
        let lost_mean = |row: &[f32]| {
            let products = lost_inputs.iter().map(|&c| f64::from(row[c]) * means[c]);
            products.sum::<f64>() as f32
        };
        let values = weight.read()?;
        let bias = values.chunks_exact(weight.cols()).map(lost_mean).collect();
        biases.push((layer, tensor, bias));
    }
    Ok(biases)
}

/// One row for each unit of the dense model's group. `plan`: the units kept by earlier prunings.
fn table_rows(
    plan: &PruningPlan,
    group: &Group,
    scores: &[f64],
    removed: &[usize],
    near_ties: &[bool],
) -> Vec<PruneRow> {
    let entry = plan.find_entry(group.kind, group.layer);
    let dense_layer = plan.dense_group_layer(group.kind, group.layer);
    let row = |unit, kept, score, near_tie| PruneRow {
        layer: dense_layer as u32,
        group: group.kind.name().to_owned(),
        unit,
        kept,
        score,
        near_tie,
    };
    // Rows of units that an earlier pruning removed; the others are replaced below.
    let dense_units = entry.map_or(group.unit_count, |entry| entry.units);
    let mut rows: Vec<PruneRow> = (0..dense_units)
        .map(|unit| row(unit as u32, false, None, false))
        .collect();
    for (unit, &score) in scores.iter().enumerate() {
        let dense_unit = entry.map_or(unit, |entry| entry.kept[unit]);
        let is_kept = removed.binary_search(&unit).is_err();
        rows[dense_unit] = row(dense_unit as u32, is_kept, Some(score), near_ties[unit]);
    }
    rows
}
