//! Criteria that look at no data: the weights' magnitudes, random numbers, the units' order.

use rand::RngExt;

use super::reduce_channels;
use crate::stages::products::{Compat, MemberScores};
use secateur_base::random::Seed;
use secateur_model::Model;
use secateur_model::groups::{DependencyGraph, Group, Member, UnitLayout};
use secateur_model::wiring::TensorId;

/// Σ f(w) over each row or column of each member. The reference forgets the embedding among the members of the residual
/// stream.
pub fn magnitude_scores(
    model: &Model,
    graph: &DependencyGraph,
    compat: Compat,
    f: fn(f64) -> f64,
) -> Vec<Vec<MemberScores>> {
    let members = |group: &Group| {
        let channels = |place: TensorId, lie| {
            let weight = model.weight(place);
            let values = weight.values();
            reduce_channels(lie, weight.rows(), weight.cols(), |i| {
                f(f64::from(values[i]))
            })
        };
        let scores = |(member, at): (usize, &Member)| {
            let channels = match (at.unit_layout, at.tensor_id) {
                (UnitLayout::WholeTensor, TensorId::Block(_, part)) => (0..group.unit_count)
                    .flat_map(|layer| channels(TensorId::Block(layer, part), at.unit_layout))
                    .collect(),
                _ => channels(at.tensor_id, at.unit_layout),
            };
            MemberScores {
                member_index: member,
                channels,
            }
        };
        let scored = |(_, at): &(usize, &Member)| {
            compat == Compat::Corrected || at.tensor_id != TensorId::Embedding
        };
        group
            .members
            .iter()
            .enumerate()
            .filter(scored)
            .map(scores)
            .collect()
    };
    graph.groups.iter().map(members).collect()
}

/// A uniform number in [0, 1) for each channel of each group's root, in the order of the groups.
pub fn random_scores(model: &Model, graph: &DependencyGraph, seed: Seed) -> Vec<Vec<MemberScores>> {
    let mut stream = seed.rng();
    root_member_scores(model, graph, |_, _| stream.random::<f64>())
}

/// Units in their order, the first the most important: unit u of n scores n − u, spread over its channels.
pub fn unit_order_scores(model: &Model, graph: &DependencyGraph) -> Vec<Vec<MemberScores>> {
    root_member_scores(model, graph, |units, share| units as f64 - share.floor())
}

/// Scores for the channels of each group's root alone: `score(units, unit that the channel belongs to)`.
fn root_member_scores(
    model: &Model,
    graph: &DependencyGraph,
    mut score: impl FnMut(usize, f64) -> f64,
) -> Vec<Vec<MemberScores>> {
    let groups = graph.groups.iter();
    let channels = |group: &Group| {
        let width = group
            .members
            .first()
            .map_or(1, |root| group.channels_per_unit(model, root));
        (0..group.unit_count * width)
            .map(|c| score(group.unit_count, (c / width) as f64))
            .collect()
    };
    groups
        .map(channels)
        .map(|channels| {
            vec![MemberScores {
                member_index: 0,
                channels,
            }]
        })
        .collect()
}
