//! Cross entropy and log probabilities straight from the final hidden states, on a GPU: logits are made in f32 for a tile of rows
//! at a time and only where a prediction is asked for, and only a few numbers of each row leave the GPU.

use dfdx::prelude::*;

use super::gradient::sum_sample_gradients;
use super::product::{broadcast_per_row, column_sums, row_sum_matrix, transpose};
use super::rows::{RowPlacement, row_index};
use crate::Weight;
use crate::activations::gpu::{Gpu, GpuActivations, GpuMatrix, add_or_start, selected_device};
use crate::ops::{
    AxisSums, GradientQuery, GradientRequest, GradientResult, SumAxes, TokenScore, TokenTarget,
};

/// Elements of a tile of logits on a GPU.
pub const GPU_LOGIT_TILE_ELEMENTS: usize = 1 << 26;

/// Rates the targets. x is the normed final hidden state, (positions, hidden); the head is (vocabulary, hidden).
pub fn token_scores(x: &GpuActivations, head: &Weight, targets: &[TokenTarget]) -> Vec<TokenScore> {
    let head = head.to_gpu_f32();
    let vocabulary = head.shape().0;
    let mut scores = Vec::with_capacity(targets.len());
    for tile in targets.chunks((GPU_LOGIT_TILE_ELEMENTS / vocabulary).max(1)) {
        let row = LogitRows::new(tile, target_rows(x, tile).matmul(transpose(&head)));
        let (logits, most, sums, first) = (
            row.target_logits(),
            row.row_max.as_vec(),
            row.exponential_sums.as_vec(),
            row.argmax(),
        );
        for (i, target) in tile.iter().enumerate() {
            let log_probability =
                f64::from(logits[i]) - f64::from(most[i]) - f64::from(sums[i]).ln();
            // the first of equals counts
            scores.push(TokenScore {
                log_probability,
                is_greedy: first[i] == target.token_id as usize,
            });
        }
    }
    scores
}

/// The summed cross entropy of the targets, and the gradient of `scale` times it with respect to x. Two targets never share
/// a position.
pub fn cross_entropy(
    x: &GpuActivations,
    head: &Weight,
    targets: &[TokenTarget],
    scale: f32,
    slot: Option<&GradientRequest>,
) -> (f64, GpuActivations) {
    let (weight, (positions, _)) = (head.to_gpu_f32(), x.shape());
    let vocabulary = head.rows();
    let mut nll = 0.0;
    let (mut down, mut seen): (Option<GpuMatrix>, usize) = (None, 0);
    let mut deltas = Vec::new();
    for tile in targets.chunks((GPU_LOGIT_TILE_ELEMENTS / vocabulary).max(1)) {
        let from = target_rows(x, tile);
        let row = LogitRows::new(tile, from.clone().matmul(transpose(&weight)));
        let logits = row
            .target_logits()
            .into_iter()
            .zip(row.row_max.as_vec())
            .zip(row.exponential_sums.as_vec());
        nll += logits
            .map(|((logit, most), sum)| f64::from(most) + f64::from(sum).ln() - f64::from(logit))
            .sum::<f64>();
        let delta = row.into_logit_gradient(scale);
        // what a tile gives comes back to its own positions
        let mut back = vec![None; positions];
        tile.iter()
            .enumerate()
            .for_each(|(i, target)| back[target.position] = Some(i));
        let part = RowPlacement::new(&back).place_rows(delta.clone().matmul(weight.clone()));
        down = Some(add_or_start(down, part));
        if slot.is_some() {
            deltas.push((seen, delta, from));
        }
        seen += tile.len();
    }
    let dx = down.unwrap_or_else(|| selected_device().zeros_like(&x.shape()));
    if let Some(slot) = slot {
        resolve_head_query(slot, head, x, &dx, targets, deltas);
    }
    (nll, dx.into())
}

/// Answers what is asked of the head's gradient. Tiles: their first target, δ of their logits, and their rows of x.
fn resolve_head_query(
    slot: &GradientRequest,
    head: &Weight,
    x: &GpuActivations,
    dx: &GpuMatrix,
    targets: &[TokenTarget],
    tiles: Vec<(usize, GpuMatrix, GpuMatrix)>,
) {
    if let GradientQuery::WeightTimesGradientSums(SumAxes { rows: false, .. }) = slot.query {
        // Σ over the rows of W∘G is Σ over the targets of x times its gradient
        let cols = column_sums(x.matrix().clone() * dx.clone());
        return slot.set_result(GradientResult::Sums(AxisSums {
            rows: Vec::new(),
            cols,
        }));
    }
    let over = |of: std::ops::Range<usize>| {
        let part = |(first, delta, from): &(usize, GpuMatrix, GpuMatrix)| {
            let rows = of.start.max(*first)..of.end.min(*first + from.shape().0);
            let own = |x: &GpuMatrix| -> GpuMatrix {
                x.clone().slice((rows.start - first..rows.end - first, ..))
            };
            (rows.start < rows.end).then(|| transpose(&own(delta)).matmul(own(from)))
        };
        let sum = tiles.iter().filter_map(part).reduce(|sum, part| sum + part);
        sum.unwrap_or_else(|| selected_device().zeros_like(&(head.rows(), head.cols())))
    };
    let (gradient, squares) = match slot.query.samples() {
        None => (over(0..targets.len()), None),
        Some(samples) => sum_sample_gradients(samples, |sample| {
            let before =
                |position: usize| targets.partition_point(|target| target.position < position);
            over(before(sample.positions.start)..before(sample.positions.end))
        }),
    };
    let whole = |of: GpuMatrix| GpuActivations::from(of).into();
    slot.set_from_gradient(head, whole(gradient), squares.map(whole));
}

/// The rows of the positions that are asked.
fn target_rows(x: &GpuActivations, targets: &[TokenTarget]) -> GpuMatrix {
    x.matrix().clone().gather(row_index(
        targets.iter().map(|target| target.position).collect(),
    ))
}

/// Rows of logits, (targets, vocabulary), and what was found out about them.
struct LogitRows<'a> {
    targets: &'a [TokenTarget],
    logits: GpuMatrix,
    /// The largest logit of each.
    row_max: Tensor<(usize,), f32, Gpu>,
    /// exp(logit − the largest)
    exponentials: GpuMatrix,
    /// Σ of these, (targets, 1).
    exponential_sums: GpuMatrix,
}

impl<'a> LogitRows<'a> {
    fn new(targets: &'a [TokenTarget], logits: GpuMatrix) -> Self {
        let shape = *logits.shape();
        let most: Tensor<(usize,), f32, Gpu> = logits.clone().max::<_, Axis<1>>();
        let raised = (logits.clone() - most.clone().broadcast_like::<_, Axis<1>>(&shape)).exp();
        let sums = row_sum_matrix(raised.clone());
        Self {
            targets,
            logits,
            row_max: most,
            exponentials: raised,
            exponential_sums: sums,
        }
    }

    /// The targets' own logits.
    fn target_logits(&self) -> Vec<f32> {
        let ids = row_index(
            self.targets
                .iter()
                .map(|target| target.token_id as usize)
                .collect(),
        );
        self.logits.clone().select(ids).as_vec()
    }

    /// The first token with the largest logit, of each row.
    fn argmax(&self) -> Vec<usize> {
        let shape = *self.logits.shape();
        let is_largest = self
            .logits
            .eq(&self.row_max.clone().broadcast_like::<_, Axis<1>>(&shape));
        // the earlier a token, the larger its number; these are exact up to 2^24
        let from_the_end = selected_device().tensor_from_vec(
            (0..shape.1).rev().map(|left| left as f32 + 1.0).collect(),
            (shape.1,),
        );
        let none: Tensor<Rank0, f32, Gpu> = selected_device().tensor_from_vec(vec![0.0], ());
        let places: GpuMatrix = is_largest.choose(
            from_the_end.broadcast_like::<_, Axis<0>>(&shape),
            none.broadcast_like::<_, Axes2<0, 1>>(&shape),
        );
        let largest: Tensor<(usize,), f32, Gpu> = places.max::<_, Axis<1>>();
        largest
            .as_vec()
            .into_iter()
            .map(|left| shape.1 - left as usize)
            .collect()
    }

    /// scale · (p − 1 at the target)
    fn into_logit_gradient(self, scale: f32) -> GpuMatrix {
        let shape = *self.exponentials.shape();
        let p = self.exponentials * broadcast_per_row(self.exponential_sums.recip() * scale, shape);
        let numbers = |of: Vec<f32>| -> Tensor<(usize,), f32, Gpu> {
            let len = of.len();
            selected_device().tensor_from_vec(of, (len,))
        };
        let ids = numbers(
            self.targets
                .iter()
                .map(|target| target.token_id as f32)
                .collect(),
        );
        let all = numbers((0..shape.1).map(|id| id as f32).collect());
        let is_target = ids
            .broadcast_like::<_, Axis<1>>(&shape)
            .eq(&all.broadcast_like::<_, Axis<0>>(&shape));
        is_target.choose(p.clone() - scale, p)
    }
}
