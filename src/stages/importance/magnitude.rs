//! Criteria that look at no data: the weights' magnitudes, random numbers, the units' order.

use rand::RngExt;

use super::reduce;
use crate::model::Model;
use crate::model::groups::{DependencyGraph, Group, Lie, Member};
use crate::model::wiring::Place;
use crate::random::Seed;
use crate::stages::products::{Compat, MemberScores};

/// Σ f(w) over each row or column of each member. The reference forgets the embedding among the members of the residual
/// stream.
pub fn magnitudes(model: &Model, graph: &DependencyGraph, compat: Compat, f: fn(f64) -> f64) -> Vec<Vec<MemberScores>> {
    let members = |group: &Group| {
        let channels = |place: Place, lie| {
            let weight = model.weight(place);
            let values = weight.values();
            reduce(lie, weight.rows(), weight.cols(), |i| f(f64::from(values[i])))
        };
        let scores = |(member, at): (usize, &Member)| {
            let channels = match (at.lie, at.place) {
                (Lie::ByLayer, Place::Block(_, part)) => {
                    (0..group.units).flat_map(|layer| channels(Place::Block(layer, part), at.lie)).collect()
                }
                _ => channels(at.place, at.lie),
            };
            MemberScores { member, channels }
        };
        let scored = |(_, at): &(usize, &Member)| compat == Compat::Corrected || at.place != Place::Embedding;
        group.members.iter().enumerate().filter(scored).map(scores).collect()
    };
    graph.groups.iter().map(members).collect()
}

/// A uniform number in [0, 1) for each channel of each group's root, in the order of the groups.
pub fn random(model: &Model, graph: &DependencyGraph, seed: Seed) -> Vec<Vec<MemberScores>> {
    let mut stream = seed.stream();
    root(model, graph, |_, _| stream.random::<f64>())
}

/// Units in their order, the first the most important: unit u of n scores n − u, spread over its channels.
pub fn first(model: &Model, graph: &DependencyGraph) -> Vec<Vec<MemberScores>> {
    root(model, graph, |units, share| units as f64 - share.floor())
}

/// Scores for the channels of each group's root alone: `score(units, unit that the channel belongs to)`.
fn root(model: &Model, graph: &DependencyGraph, mut score: impl FnMut(usize, f64) -> f64) -> Vec<Vec<MemberScores>> {
    let groups = graph.groups.iter();
    let channels = |group: &Group| {
        let width = group.members.first().map_or(1, |root| group.channels_per_unit(model, root));
        (0..group.units * width).map(|c| score(group.units, (c / width) as f64)).collect()
    };
    groups.map(channels).map(|channels| vec![MemberScores { member: 0, channels }]).collect()
}
