//! `aggregate`: scores of channels → one score per unit of each group (LLM-Pruner, section 3.2, "group importance").

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::products::{ChannelScores, Compat, GroupScores, MemberScores};
use super::{Environment, InputFile, OptionFault};
use secateur_model::Model;
use secateur_model::groups::{DependencyGraph, Group};
use secateur_store::tables::{Table, TableError};

/// Reduces the members of a group to one score per unit.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How the members of a group are reduced. Default `sum`; magnitudes under `compat = "reference"`: `mean`.
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
    /// The member that writes back to the residual stream alone: `o_proj`, `down_proj` (the paper's "last-only").
    Last,
    /// The root of the group alone: `q_proj` (`k_proj` with grouped queries), `gate_proj`.
    First,
    /// The reference's second member: `o_proj`, `up_proj`. Only under `compat = "reference"` of the importance.
    Second,
}

/// Where the reduction takes place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Members are reduced channel by channel, then a unit's channels are summed, as the reference computes.
    #[default]
    Channel,
    /// Each member's whole share of the unit first, then the members, as the paper's equations say.
    Unit,
}

impl Options {
    /// What the stage reads: nothing.
    pub fn inputs(&self, _: Option<&Path>) -> Vec<InputFile> {
        Vec::new()
    }

    pub fn faults(&self) -> Vec<OptionFault> {
        Vec::new()
    }

    pub fn environment_faults(&self, world: &mut Environment) -> Vec<OptionFault> {
        world.add_weights(1);
        Vec::new()
    }
}

/// One row of `aggregate.parquet`: layers and units of the model as it is at this place of the pipeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AggregateRow {
    pub layer: u32,
    /// `attention`, `mlp`, `hidden` or `layer`.
    pub group: String,
    /// A head, a key/value head with its query heads, a channel, or a layer.
    pub unit: u32,
    pub score: f64,
}

/// Scores could not be aggregated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Metrics(#[from] TableError),
    #[error("`with = \"{with}\"` asks for a member that this importance does not score")]
    MemberNotScored { with: &'static str },
}

/// Reduces the scores of every group to one per unit.
pub fn run(
    options: &Options,
    model: &Model,
    graph: &DependencyGraph,
    scores: &ChannelScores,
) -> Result<(GroupScores, Vec<Table>), Error> {
    let with = options
        .with
        .unwrap_or(match (scores.is_magnitude, scores.compat) {
            (true, Compat::Reference) => Reduction::Mean,
            _ => Reduction::Sum,
        });
    let groups = graph.groups.iter().zip(&scores.groups);
    let groups = groups
        .map(|(group, members)| {
            unit_scores(
                group,
                members,
                with,
                options.level,
                scores,
                group.min_channels_per_unit(model),
            )
        })
        .collect::<Result<Vec<_>, _>>()?;
    tracing::info!(?with, groups = groups.len(), "aggregated");
    let rows = graph.groups.iter().zip(&groups).flat_map(|(group, units)| {
        units.iter().enumerate().map(|(unit, &score)| AggregateRow {
            layer: group.layer as u32,
            group: group.kind.name().to_owned(),
            unit: unit as u32,
            score,
        })
    });
    let table = Table::from_rows("aggregate", &rows.collect::<Vec<_>>())?;
    Ok((
        GroupScores {
            groups,
            input_means: scores.input_means.clone(),
        },
        vec![table],
    ))
}

/// The scores of one group's units. `width`: channels of a unit in the member with the fewest.
fn unit_scores(
    group: &Group,
    members: &[MemberScores],
    with: Reduction,
    level: Level,
    scores: &ChannelScores,
    width: usize,
) -> Result<Vec<f64>, Error> {
    // One entry per channel of a unit, or one per unit; summed over a unit at the end.
    let folded: Vec<Vec<f64>> = members
        .iter()
        .map(|member| {
            fold_into_unit_channels(&member.channels, group.unit_count, width, level, scores)
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
            let last = group
                .members
                .iter()
                .position(|m| m.is_output)
                .unwrap_or(group.members.len() - 1);
            select_member(members, &folded, "last", last)?
        }
    };
    Ok(reduced
        .chunks(reduced.len() / group.unit_count)
        .map(|unit| unit.iter().sum())
        .collect())
}

/// A member's channels laid onto those of a unit of `width` channels: several query heads share one key/value head.
/// Per channel, or summed over the unit; signed sums become magnitudes where no more is added to them.
fn fold_into_unit_channels(
    channels: &[f64],
    units: usize,
    width: usize,
    level: Level,
    scores: &ChannelScores,
) -> Vec<f64> {
    let (per_unit, all) = (channels.len() / units, units * width);
    let magnitude = |score: f64| if scores.is_signed { score.abs() } else { score };
    let home = |channel: usize| match scores.compat {
        Compat::Corrected => channel / per_unit * width + channel % per_unit % width,
        Compat::Reference => channel % all,
    };
    match level {
        Level::Channel => {
            let mut folded = vec![0.0; all];
            channels
                .iter()
                .enumerate()
                .for_each(|(c, &score)| folded[home(c)] += magnitude(score));
            folded
        }
        Level::Unit => {
            let mut folded = vec![0.0; units];
            channels
                .iter()
                .enumerate()
                .for_each(|(c, &score)| folded[home(c) / width] += score);
            folded.into_iter().map(magnitude).collect()
        }
    }
}

/// Π over members. Where a product would leave the range of numbers, each member is divided by its mean first: one factor
/// for the whole group, which changes no order inside it.
fn multiply_members(group: &Group, members: &[Vec<f64>]) -> Vec<f64> {
    let is_lost = |product: &f64| !product.is_normal();
    let plain = reduce_members(members, 1.0, |a, b| a * b);
    let lost = plain
        .iter()
        .enumerate()
        .filter(|(_, p)| is_lost(p))
        .any(|(i, _)| members.iter().all(|m| m[i] != 0.0));
    if !lost {
        return plain;
    }
    tracing::warn!(
        layer = group.layer,
        group = group.kind.name(),
        "the product leaves the range of numbers: members are scaled to a mean of 1"
    );
    let scaled = |member: &Vec<f64>| {
        let mean = member.iter().sum::<f64>() / member.len() as f64;
        member.iter().map(|score| score / mean).collect()
    };
    reduce_members(
        &members.iter().map(scaled).collect::<Vec<Vec<f64>>>(),
        1.0,
        |a, b| a * b,
    )
}

/// Reduces over members, entry by entry.
fn reduce_members(members: &[Vec<f64>], start: f64, f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    let entries = members.first().map_or(0, Vec::len);
    (0..entries)
        .map(|i| members.iter().fold(start, |sum, member| f(sum, member[i])))
        .collect()
}

/// The one member that is asked for. Random numbers and the units' order are scores of the group, not of a member.
fn select_member(
    members: &[MemberScores],
    folded: &[Vec<f64>],
    with: &'static str,
    member: usize,
) -> Result<Vec<f64>, Error> {
    let at = match members {
        [
            MemberScores {
                member_index: 0, ..
            },
        ] => Some(0),
        _ => members
            .iter()
            .position(|scored| scored.member_index == member),
    };
    at.map(|i| folded[i].clone())
        .ok_or(Error::MemberNotScored { with })
}
