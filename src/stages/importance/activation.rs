//! Criteria that look at the inputs of the matrices on calibration data, forward only.
//!
//! Wanda (Sun et al., ICLR 2024): |w|·‖x‖₂ of the input channel, summed over a row or column.
//! WIFV (FLAP, An et al., AAAI 2024): the fluctuation of the input channel, its variance over the calibration tokens,
//! times the squared norm of the weight's column; defined for the matrix that reads the units, `o_proj`, `down_proj`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Mutex;

use super::{Error, Method, reduce_channels};
use crate::stages::Context;
use crate::stages::products::{InputMeans, MemberScores};
use secateur_model::Model;
use secateur_model::groups::{DependencyGraph, GroupKind};
use secateur_model::hooks::BlockHooks;
use secateur_model::walk::{self, Sequence};
use secateur_model::wiring::{BlockTensor, TensorId};
use secateur_tensor::ops;
use secateur_tensor::{Activations, AnyTape, Weight};

/// Sequences between two looks at a request to stop.
pub const CALIBRATION_BATCH: usize = 64;

/// Σx and Σx² of each input channel of a matrix.
#[derive(Clone, Debug, Default)]
struct InputMoments {
    sums: Vec<f64>,
    squares: Vec<f64>,
}

/// The moments of every matrix's inputs.
type MomentsByMatrix = BTreeMap<(usize, BlockTensor), InputMoments>;

/// Looks at what goes into each matrix of a block.
struct InputMomentRecorder<'a> {
    layer: usize,
    moments: &'a Mutex<MomentsByMatrix>,
}

impl BlockHooks for InputMomentRecorder<'_> {
    fn linear<T: AnyTape>(
        &self,
        part: BlockTensor,
        weight: &Weight,
        x: Activations<T>,
    ) -> Activations<T> {
        if let Ok(mut seen) = self.moments.lock() {
            let (sums, squares) = ops::column_moments(&x);
            match seen.entry((self.layer, part)) {
                Entry::Vacant(entry) => drop(entry.insert(InputMoments { sums, squares })),
                Entry::Occupied(mut entry) => {
                    let moments = entry.get_mut();
                    moments
                        .sums
                        .iter_mut()
                        .zip(sums)
                        .for_each(|(sum, own)| *sum += own);
                    moments
                        .squares
                        .iter_mut()
                        .zip(squares)
                        .for_each(|(sum, own)| *sum += own);
                }
            }
        }
        ops::linear(x, weight, None)
    }
}

/// Scores the members of block groups.
pub fn activation_scores(
    method: Method,
    context: &Context,
    model: &Model,
    graph: &DependencyGraph,
    sequences: &[Sequence],
) -> Result<(Vec<Vec<MemberScores>>, InputMeans), Error> {
    let name = if method == Method::Wanda {
        "wanda"
    } else {
        "wifv"
    };
    if graph
        .groups
        .iter()
        .any(|group| !matches!(group.kind, GroupKind::Attention | GroupKind::Mlp))
    {
        return Err(Error::NeedsBlockGrouping { method: name });
    }
    let (seen, tokens) = collect_input_moments(context, model, sequences)?;
    let score = |place: TensorId, lie| {
        let TensorId::Block(layer, part) = place else {
            return Vec::new();
        };
        let (weight, moments) = (model.weight(place), &seen[&(layer, part)]);
        let (values, cols) = (weight.values(), weight.cols());
        let norms: Vec<f64> = moments.squares.iter().map(|s| s.sqrt()).collect();
        let variances: Vec<f64> = moments
            .squares
            .iter()
            .zip(&moments.sums)
            .map(|(s, m)| (s / tokens - (m / tokens) * (m / tokens)).max(0.0))
            .collect();
        reduce_channels(lie, weight.rows(), cols, |i| {
            let w = f64::from(values[i]);
            if method == Method::Wanda {
                w.abs() * norms[i % cols]
            } else {
                w * w * variances[i % cols]
            }
        })
    };
    let groups = graph.groups.iter().map(|group| {
        let scored = group
            .members
            .iter()
            .enumerate()
            .filter(|(_, member)| method == Method::Wanda || member.is_output);
        scored
            .map(|(member, at)| MemberScores {
                member_index: member,
                channels: score(at.tensor_id, at.unit_layout),
            })
            .collect()
    });
    let means = seen.iter().filter(|((_, part), _)| {
        method == Method::Wifv && matches!(part, BlockTensor::O | BlockTensor::Down)
    });
    let means = means.map(|(&(layer, part), moments)| {
        (
            layer,
            part,
            moments.sums.iter().map(|sum| sum / tokens).collect(),
        )
    });
    Ok((groups.collect(), means.collect()))
}

/// The moments of every matrix's inputs over all sequences, added pack by pack, and the number of tokens.
fn collect_input_moments(
    context: &Context,
    model: &Model,
    sequences: &[Sequence],
) -> Result<(MomentsByMatrix, f64), Error> {
    let seen = Mutex::new(MomentsByMatrix::new());
    let bar = context.progress.bar("importance", sequences.len() as u64);
    for together in sequences.chunks(CALIBRATION_BATCH) {
        context.check_interrupt()?;
        drop(walk::forward(model, together, |layer, _| {
            InputMomentRecorder {
                layer,
                moments: &seen,
            }
        }));
        together.iter().for_each(|_| bar.step());
    }
    Ok((
        seen.into_inner().unwrap_or_default(),
        sequences.iter().map(|s| s.ids.len()).sum::<usize>() as f64,
    ))
}
