//! Criteria that look at the inputs of the matrices on calibration data, forward only.
//!
//! Wanda (Sun et al., ICLR 2024): |w|·‖x‖₂ of the input channel, summed over a row or column.
//! WIFV (FLAP, An et al., AAAI 2024): the fluctuation of the input channel, its variance over the calibration tokens,
//! times the squared norm of the weight's column; defined for the matrix that reads the units, `o_proj`, `down_proj`.

use std::cell::RefCell;
use std::collections::BTreeMap;

use dfdx::prelude::HasShape;

use super::{Error, Method, reduce};
use crate::model::Model;
use crate::model::blocks::Lens;
use crate::model::groups::{DependencyGraph, Kind};
use crate::model::walk::{self, Sequence};
use crate::model::wiring::{Part, Place};
use crate::ops;
use crate::stages::Context;
use crate::stages::products::{Means, MemberScores};
use crate::tensor::{AnyTape, Hidden, Weight, for_each_sequence, sequences_at_once};

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
    seen: &'a RefCell<Seen>,
}

impl Lens for Watching<'_> {
    fn linear<T: AnyTape>(&self, part: Part, weight: &Weight, x: Hidden<T>) -> Hidden<T> {
        let width = x.shape().1;
        let mut moments = Moments { sums: vec![0.0; width], squares: vec![0.0; width] };
        for row in x.as_vec().chunks_exact(width) {
            for ((x, sum), square) in row.iter().zip(&mut moments.sums).zip(&mut moments.squares) {
                *sum += f64::from(*x);
                *square += f64::from(*x) * f64::from(*x);
            }
        }
        self.seen.borrow_mut().insert((self.layer, part), moments);
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

/// The moments of every matrix's inputs over all sequences, added in their order, and the number of tokens.
fn watch(context: &Context, model: &Model, sequences: &[Sequence]) -> Result<(Seen, f64), Error> {
    let mut all = Seen::new();
    let rotary = model.rotary(sequences.iter().map(|s| s.ids.len()).max().unwrap_or(0));
    let bar = context.progress.bar("importance", sequences.len() as u64);
    for wave in sequences.chunks(sequences_at_once(0)) {
        context.go_on()?;
        let seen = for_each_sequence(wave, |_, sequence| {
            let seen = RefCell::new(BTreeMap::new());
            walk::forward(model, &sequence.ids, &rotary, |layer| Watching { layer, seen: &seen });
            seen.into_inner()
        });
        for (at, moments) in seen.into_iter().flatten() {
            match all.get_mut(&at) {
                Some(sum) => {
                    sum.sums.iter_mut().zip(moments.sums).for_each(|(a, b)| *a += b);
                    sum.squares.iter_mut().zip(moments.squares).for_each(|(a, b)| *a += b);
                }
                None => drop(all.insert(at, moments)),
            }
        }
        wave.iter().for_each(|_| bar.step());
    }
    Ok((all, sequences.iter().map(|s| s.ids.len()).sum::<usize>() as f64))
}
