//! Criteria that look at the inputs of the matrices on calibration data, forward only.
//!
//! Wanda (Sun et al., ICLR 2024): |w|·‖x‖₂ of the input channel, summed over a row or column.
//! WIFV (FLAP, An et al., AAAI 2024): the fluctuation of the input channel, its variance over the calibration tokens,
//! times the squared norm of the weight's column; defined for the matrix that reads the units, `o_proj`, `down_proj`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Mutex;

use super::{Error, Method, reduce};
use crate::model::Model;
use crate::model::blocks::Lens;
use crate::model::groups::{DependencyGraph, Kind};
use crate::model::walk::{self, Sequence};
use crate::model::wiring::{Part, Place};
use crate::ops;
use crate::stages::Context;
use crate::stages::products::{Means, MemberScores};
use crate::tensor::{AnyTape, Hidden, Weight};

/// Sequences between two looks at a request to stop.
pub const TOGETHER: usize = 64;

/// Σx and Σx² of each input channel of a matrix.
#[derive(Clone, Debug, Default)]
struct Moments {
    sums: Vec<f64>,
    squares: Vec<f64>,
}

/// The moments of every matrix's inputs.
type Seen = BTreeMap<(usize, Part), Moments>;

/// Looks at what goes into each matrix of a block.
struct Watching<'a> {
    layer: usize,
    seen: &'a Mutex<Seen>,
}

impl Lens for Watching<'_> {
    fn linear<T: AnyTape>(&self, part: Part, weight: &Weight, x: Hidden<T>) -> Hidden<T> {
        if let Ok(mut seen) = self.seen.lock() {
            let (sums, squares) = ops::column_moments(&x);
            match seen.entry((self.layer, part)) {
                Entry::Vacant(entry) => drop(entry.insert(Moments { sums, squares })),
                Entry::Occupied(mut entry) => {
                    let moments = entry.get_mut();
                    moments.sums.iter_mut().zip(sums).for_each(|(sum, own)| *sum += own);
                    moments.squares.iter_mut().zip(squares).for_each(|(sum, own)| *sum += own);
                }
            }
        }
        ops::linear(x, weight, None)
    }
}

/// Scores the members of block groups.
pub fn scores(
    method: Method,
    context: &Context,
    model: &Model,
    graph: &DependencyGraph,
    sequences: &[Sequence],
) -> Result<(Vec<Vec<MemberScores>>, Means), Error> {
    let name = if method == Method::Wanda { "wanda" } else { "wifv" };
    if graph.groups.iter().any(|group| !matches!(group.kind, Kind::Attention | Kind::Mlp)) {
        return Err(Error::BlocksOnly { method: name });
    }
    let (seen, tokens) = watch(context, model, sequences)?;
    let score = |place: Place, lie| {
        let Place::Block(layer, part) = place else { return Vec::new() };
        let (weight, moments) = (model.weight(place), &seen[&(layer, part)]);
        let (values, cols) = (weight.values(), weight.cols());
        let norms: Vec<f64> = moments.squares.iter().map(|s| s.sqrt()).collect();
        let variances: Vec<f64> =
            moments.squares.iter().zip(&moments.sums).map(|(s, m)| (s / tokens - (m / tokens) * (m / tokens)).max(0.0)).collect();
        reduce(lie, weight.rows(), cols, |i| {
            let w = f64::from(values[i]);
            if method == Method::Wanda { w.abs() * norms[i % cols] } else { w * w * variances[i % cols] }
        })
    };
    let groups = graph.groups.iter().map(|group| {
        let scored = group.members.iter().enumerate().filter(|(_, member)| method == Method::Wanda || member.last);
        scored.map(|(member, at)| MemberScores { member, channels: score(at.place, at.lie) }).collect()
    });
    let means = seen.iter().filter(|((_, part), _)| method == Method::Wifv && matches!(part, Part::O | Part::Down));
    let means = means.map(|(&(layer, part), moments)| (layer, part, moments.sums.iter().map(|sum| sum / tokens).collect()));
    Ok((groups.collect(), means.collect()))
}

/// The moments of every matrix's inputs over all sequences, added pack by pack, and the number of tokens.
fn watch(context: &Context, model: &Model, sequences: &[Sequence]) -> Result<(Seen, f64), Error> {
    let seen = Mutex::new(Seen::new());
    let bar = context.progress.bar("importance", sequences.len() as u64);
    for together in sequences.chunks(TOGETHER) {
        context.go_on()?;
        drop(walk::forward(model, together, |layer, _| Watching { layer, seen: &seen }));
        together.iter().for_each(|_| bar.step());
    }
    Ok((seen.into_inner().unwrap_or_default(), sequences.iter().map(|s| s.ids.len()).sum::<usize>() as f64))
}
