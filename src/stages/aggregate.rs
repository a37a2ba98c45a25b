//! `aggregate`: scores of channels → one score per unit of each group (LLM-Pruner, section 3.2,
//! "group importance").

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Context;
use super::environment::{Environment, OptionFault, UnusedOption};
use super::error::{RestoreError, StageError};
use super::facts::EarlierStages;
use super::products::{ChannelScores, Compat, GroupScores, MemberScores};
use super::stage::{Stage, StageOutput, StageType, describe_options, option_text};
use super::stored;
use super::values::{GRAPH, GROUP_SCORES, MODEL, SCORES, StageValues, ValueKind};
use secateur_model::Model;
use secateur_model::groups::{DependencyGraph, Group};
use secateur_store::cache::{ProductDraft, StoredProduct};
use secateur_store::tables::{Table, TableError};

pub static TYPE: StageType = StageType {
    needs: &[ValueKind::Model, ValueKind::Graph, ValueKind::Scores],
    makes: &[ValueKind::GroupScores],
    summary: |options| describe_options(options, &["with", "level"]),
    ..StageType::new::<Options>("aggregate")
};

/// Reduces the members of a group to one score per unit.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How the members of a group are reduced. Default `sum`; magnitudes under `compat =
    /// "reference"`: `mean`.
    pub with: Option<Reduction>,
    /// Whether members are reduced per channel or per unit. Default `channel`.
    pub level: Level,
}

/// The reduction over the members of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Σ over the members.
    Sum,
    /// The arithmetic mean over the members.
    Mean,
    /// The largest member.
    Max,
    /// Π over the members.
    Product,
    /// Only the member that writes back to the residual stream: `o_proj`, `down_proj` (the paper's
    /// "last-only").
    Last,
    /// Only the root of the group: `q_proj` (`k_proj` with grouped queries), `gate_proj`.
    First,
    /// Only the reference's second member: `o_proj`, `up_proj`. Needs `compat = "reference"` in the
    /// importance.
    Second,
}

/// Whether members are reduced before or after the channels of a unit are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Members are reduced channel by channel, then the channels of a unit are summed, as the
    /// reference does.
    #[default]
    Channel,
    /// The channels of a unit are summed in each member, then the members are reduced, as in the
    /// paper's equations.
    Unit,
}

impl Stage for Options {
    fn stage_type(&self) -> &'static StageType {
        &TYPE
    }

    fn faults_after(&self, earlier: &EarlierStages) -> Vec<OptionFault> {
        let Some(importance) = &earlier.importance else {
            return Vec::new();
        };
        let mut faults = Vec::new();
        if self.with == Some(Reduction::Second) && importance.compat != Compat::Reference {
            faults.push(OptionFault::new(
                "with",
                "`second` exists only in the reference implementation",
                "write `last`, or compat = \"reference\" in the importance",
            ));
        }
        let reads_other_member = matches!(self.with, Some(Reduction::First | Reduction::Second));
        if importance.scores_output_member_only && reads_other_member {
            faults.push(OptionFault::new(
                "with",
                format!(
                    "`{}` scores only the last member of a group",
                    importance.method
                ),
                "write `last` or `sum`",
            ));
        }
        faults
    }

    fn unused_options(&self, earlier: &EarlierStages) -> Vec<UnusedOption> {
        let mut unused = Vec::new();
        let has_one_member = earlier
            .importance
            .is_some_and(|importance| importance.scores_output_member_only);
        let takes_one_member = matches!(
            self.with,
            Some(Reduction::Last | Reduction::First | Reduction::Second)
        );
        if takes_one_member || has_one_member {
            let reason = "the score of a unit comes from one member of its group";
            unused.push(UnusedOption::new("level", reason));
        }
        unused
    }

    fn environment_faults(&self, environment: &mut Environment) -> Vec<OptionFault> {
        environment.add_weights(1);
        Vec::new()
    }

    fn run(&self, _: &Context, inputs: &StageValues) -> Result<StageOutput, StageError> {
        let (group_scores, tables) = run(
            self,
            inputs.require(MODEL)?,
            inputs.require(GRAPH)?,
            inputs.require(SCORES)?,
        )?;
        Ok(StageOutput {
            values: StageValues::default().with(GROUP_SCORES, group_scores),
            tables,
        })
    }

    fn store(&self, values: &StageValues, draft: &ProductDraft) -> Result<(), StageError> {
        stored::write_value(draft, values.require(GROUP_SCORES)?)
    }

    fn restore(&self, product: &StoredProduct) -> Result<StageValues, RestoreError> {
        Ok(StageValues::default().with(GROUP_SCORES, stored::read_value(product)?))
    }
}

/// One row of `aggregate.parquet`. Layers and units are those of the stage's input model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AggregateRow {
    pub layer: u32,
    /// `attention`, `mlp`, `hidden` or `layer`.
    pub group: String,
    /// A head, a key/value head with its query heads, a channel, or a layer.
    pub unit: u32,
    pub score: f64,
}

/// The scores could not be aggregated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Metrics(#[from] TableError),
    #[error("`with = \"{with}\"` needs a member that this importance does not score")]
    MemberNotScored { with: &'static str },
}

/// Reduces the scores of every group to one per unit.
pub fn run(
    options: &Options,
    model: &Model,
    graph: &DependencyGraph,
    scores: &ChannelScores,
) -> Result<(GroupScores, Vec<Table>), Error> {
    let default_reduction = match (scores.is_magnitude, scores.compat) {
        (true, Compat::Reference) => Reduction::Mean,
        _ => Reduction::Sum,
    };
    let with = options.with.unwrap_or(default_reduction);
    let mut groups = Vec::with_capacity(graph.groups.len());
    let mut rows = Vec::new();
    for (group, members) in graph.groups.iter().zip(&scores.groups) {
        let unit_width = group.min_channels_per_unit(model);
        let units = unit_scores(group, members, with, options.level, scores, unit_width)?;
        rows.extend(units.iter().enumerate().map(|(unit, &score)| AggregateRow {
            layer: group.layer as u32,
            group: group.kind.name().to_owned(),
            unit: unit as u32,
            score,
        }));
        groups.push(units);
    }
    tracing::info!(
        with = option_text(&with),
        groups = groups.len(),
        "aggregated"
    );
    let table = Table::from_rows("aggregate", &rows)?;
    let input_means = scores.input_means.clone();
    Ok((
        GroupScores {
            groups,
            input_means,
        },
        vec![table],
    ))
}

/// The scores of one group's units. `unit_width`: channels of a unit in the member with the fewest
/// channels.
fn unit_scores(
    group: &Group,
    members: &[MemberScores],
    with: Reduction,
    level: Level,
    scores: &ChannelScores,
    unit_width: usize,
) -> Result<Vec<f64>, Error> {
    // For each member: units · unit_width entries at `Level::Channel`, one per unit at
    // `Level::Unit`.
    let folded: Vec<Vec<f64>> = members
        .iter()
        .map(|member| {
            fold_into_unit_channels(
                &member.channels,
                group.unit_count,
                unit_width,
                level,
                scores,
            )
        })
        .collect();
    let reduced = match with {
        Reduction::Sum => reduce_members(&folded, 0.0, |a, b| a + b),
        Reduction::Mean => reduce_members(&folded, 0.0, |a, b| a + b)
            .into_iter()
            .map(|sum| sum / folded.len() as f64)
            .collect(),
        Reduction::Max => reduce_members(&folded, f64::NEG_INFINITY, f64::max),
        Reduction::Product => multiply_members(group, &folded),
        Reduction::First => select_member(members, &folded, "first", 0)?,
        Reduction::Second => select_member(members, &folded, "second", 1)?,
        Reduction::Last => {
            let output_member = group
                .members
                .iter()
                .position(|member| member.is_output)
                .unwrap_or(group.members.len() - 1);
            select_member(members, &folded, "last", output_member)?
        }
    };
    // Sums the entries of each unit: unit_width of them, or one.
    let entries_per_unit = reduced.len() / group.unit_count;
    Ok(reduced
        .chunks(entries_per_unit)
        .map(|unit| unit.iter().sum())
        .collect())
}

/// Adds a member's channels into the entries of units that are `unit_width` channels wide.
///
/// A member may have more channels per unit than that: in grouped-query attention a unit is a
/// key/value head (`unit_width` channels of `k_proj`) with several query heads, whose channels are
/// added into the same entries. At [`Level::Unit`] a unit has one entry. Signed scores are replaced
/// by their magnitudes: each channel's before it is added, or each unit's sum.
fn fold_into_unit_channels(
    channels: &[f64],
    units: usize,
    unit_width: usize,
    level: Level,
    scores: &ChannelScores,
) -> Vec<f64> {
    let channels_per_unit = channels.len() / units;
    let entry_count = units * unit_width;
    let magnitude = |score: f64| if scores.is_signed { score.abs() } else { score };
    let entry_index = |channel: usize| match scores.compat {
        // the unit of the channel, and the channel's offset inside its head
        Compat::Corrected => {
            let unit = channel / channels_per_unit;
            let offset = channel % channels_per_unit % unit_width;
            unit * unit_width + offset
        }
        // The reference reshapes to [repeats, entries]: query head h is added to key/value head h
        // mod (number of key/value heads).
        Compat::Reference => channel % entry_count,
    };
    match level {
        Level::Channel => {
            let mut folded = vec![0.0; entry_count];
            for (channel, &score) in channels.iter().enumerate() {
                folded[entry_index(channel)] += magnitude(score);
            }
            folded
        }
        Level::Unit => {
            let mut folded = vec![0.0; units];
            for (channel, &score) in channels.iter().enumerate() {
                folded[entry_index(channel) / unit_width] += score;
            }
            folded.into_iter().map(magnitude).collect()
        }
    }
}

/// Π over members. If a product overflows or underflows although no factor is zero, each member is
/// divided by its mean first. All products of the group are then divided by the same number, so the
/// order of the units inside the group stays the same.
fn multiply_members(group: &Group, members: &[Vec<f64>]) -> Vec<f64> {
    let products = reduce_members(members, 1.0, |a, b| a * b);
    let is_out_of_range = |(entry, product): (usize, &f64)| {
        !product.is_normal() && members.iter().all(|member| member[entry] != 0.0)
    };
    if !products.iter().enumerate().any(is_out_of_range) {
        return products;
    }
    tracing::warn!(
        layer = group.layer,
        group = group.kind.name(),
        "a product is outside the range of float64: members are scaled to a mean of 1"
    );
    let scale_to_unit_mean = |member: &Vec<f64>| -> Vec<f64> {
        let mean = member.iter().sum::<f64>() / member.len() as f64;
        member.iter().map(|score| score / mean).collect()
    };
    let scaled: Vec<Vec<f64>> = members.iter().map(scale_to_unit_mean).collect();
    reduce_members(&scaled, 1.0, |a, b| a * b)
}

/// Reduces over members, entry by entry: `reduced[i] = f(… f(f(start, m₀[i]), m₁[i]) …)`.
fn reduce_members(members: &[Vec<f64>], start: f64, f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    let entry_count = members.first().map_or(0, Vec::len);
    let reduce_entry = |entry: usize| {
        let scores = members.iter().map(|member| member[entry]);
        scores.fold(start, &f)
    };
    (0..entry_count).map(reduce_entry).collect()
}

/// The entries of one member. Scores of the whole group (`random`, `first`) are recorded only for
/// member 0 and are used whichever member is selected.
fn select_member(
    members: &[MemberScores],
    folded: &[Vec<f64>],
    with: &'static str,
    member_index: usize,
) -> Result<Vec<f64>, Error> {
    let is_group_score = matches!(
        members,
        [MemberScores {
            member_index: 0,
            ..
        }]
    );
    let position = if is_group_score {
        Some(0)
    } else {
        members
            .iter()
            .position(|member| member.member_index == member_index)
    };
    match position {
        Some(position) => Ok(folded[position].clone()),
        None => Err(Error::MemberNotScored { with }),
    }
}
