//! Cross entropy and log probabilities straight from the final hidden states, on a GPU.
//!
//! Logits are computed in f32, only at the positions of targets, for a tile of them at a time. Only
//! a few numbers of each row leave the GPU.

use std::ops::Range;

use dfdx::prelude::*;

use super::gradient::sum_sample_gradients;
use super::product::{broadcast_per_row, column_sums, row_sum_matrix, transpose};
use super::rows::{RowPlacement, row_index};
use crate::activations::GpuActivations;
use crate::gpu::{Gpu, GpuMatrix, add_or_start, selected_device};
use crate::ops::gradient_query::{
    AxisSums, GradientQuery, GradientRequest, GradientResult, SumAxes,
};
use crate::ops::token_loss::{TokenScore, TokenTarget};
use crate::weight::Weight;

/// Elements of a tile of logits on a GPU: 256 MiB of f32.
pub const GPU_LOGIT_TILE_ELEMENTS: usize = 1 << 26;

/// A vector on the GPU.
type GpuVector = Tensor<(usize,), f32, Gpu>;

/// Scores the targets. x is the final hidden state after its norm, (positions, hidden); the head is
/// (vocabulary, hidden).
pub(crate) fn token_scores(
    x: &GpuActivations,
    head: &Weight,
    targets: &[TokenTarget],
) -> Vec<TokenScore> {
    let w = head.to_gpu_f32();
    let (vocabulary, _) = *w.shape();
    let mut scores = Vec::with_capacity(targets.len());
    for tile in targets.chunks(tile_rows(vocabulary)) {
        let rows = LogitRows::new(tile, target_rows(x, tile).matmul(transpose(&w)));
        let target_logits = rows.target_logits();
        let row_max = rows.row_max.as_vec();
        let exponential_sums = rows.exponential_sums.as_vec();
        let argmax = rows.argmax();
        for (i, target) in tile.iter().enumerate() {
            scores.push(TokenScore {
                log_probability: f64::from(target_logits[i])
                    - f64::from(row_max[i])
                    - f64::from(exponential_sums[i]).ln(),
                is_greedy: argmax[i] == target.token_id as usize,
            });
        }
    }
    scores
}

/// The cross entropy of the targets, summed, and the gradient of `scale` times it with respect to
/// x. The targets are in the order of their positions, at most one for each.
pub(crate) fn cross_entropy(
    x: &GpuActivations,
    head: &Weight,
    targets: &[TokenTarget],
    scale: f32,
    request: Option<&GradientRequest>,
) -> (f64, GpuActivations) {
    let (w, (positions, _)) = (head.to_gpu_f32(), x.shape());
    let mut nll = 0.0;
    let mut dx: Option<GpuMatrix> = None;
    let mut tile_gradients = Vec::new();
    let mut first_target = 0;
    for tile in targets.chunks(tile_rows(head.rows())) {
        let x_rows = target_rows(x, tile);
        let rows = LogitRows::new(tile, x_rows.clone().matmul(transpose(&w)));
        nll += rows.negative_log_likelihood();
        let delta = rows.into_logit_gradient(scale);
        // The rows of dx are δ · W, (targets, hidden), placed at the targets' positions.
        let mut source_rows = vec![None; positions];
        for (i, target) in tile.iter().enumerate() {
            source_rows[target.position] = Some(i);
        }
        let dx_rows = delta.clone().matmul(w.clone());
        let placed = RowPlacement::new(&source_rows).place_rows(dx_rows);
        dx = Some(add_or_start(dx, placed));
        if request.is_some() {
            tile_gradients.push(TileGradient {
                first_target,
                delta,
                x_rows,
            });
        }
        first_target += tile.len();
    }
    let dx = dx.unwrap_or_else(|| selected_device().zeros_like(&x.shape()));
    if let Some(request) = request {
        resolve_head_request(request, head, x, &dx, targets, &tile_gradients);
    }
    (nll, dx.into())
}

/// Targets of a tile.
fn tile_rows(vocabulary: usize) -> usize {
    (GPU_LOGIT_TILE_ELEMENTS / vocabulary).max(1)
}

/// The rows of x at the targets' positions, (targets, hidden).
fn target_rows(x: &GpuActivations, targets: &[TokenTarget]) -> GpuMatrix {
    let positions = targets.iter().map(|target| target.position).collect();
    x.matrix().clone().gather(row_index(positions))
}

/// The operands of a tile's part of the head's gradient, G = δᵀ · x.
struct TileGradient {
    /// Index of the tile's first target.
    first_target: usize,
    /// (targets, vocabulary)
    delta: GpuMatrix,
    /// (targets, hidden)
    x_rows: GpuMatrix,
}

impl TileGradient {
    /// δᵀ · x over those of these targets that are in the tile. None if there are none.
    fn gradient(&self, targets: &Range<usize>) -> Option<GpuMatrix> {
        let (tile_len, _) = *self.x_rows.shape();
        let start = targets.start.max(self.first_target);
        let end = targets.end.min(self.first_target + tile_len);
        if start >= end {
            return None;
        }
        let rows = start - self.first_target..end - self.first_target;
        let slice = |x: &GpuMatrix| -> GpuMatrix { x.clone().slice((rows.clone(), ..)) };
        Some(transpose(&slice(&self.delta)).matmul(slice(&self.x_rows)))
    }
}

/// Sets the result of a request for the head's gradient.
fn resolve_head_request(
    request: &GradientRequest,
    head: &Weight,
    x: &GpuActivations,
    dx: &GpuMatrix,
    targets: &[TokenTarget],
    tiles: &[TileGradient],
) {
    if let GradientQuery::WeightTimesGradientSums(SumAxes { rows: false, .. }) = request.query {
        // Σ_r W[r,c]·G[r,c] = Σ_t x[t,c]·dx[t,c], over all positions: dx is 0 where there is no
        // target
        let cols = column_sums(x.matrix().clone() * dx.clone());
        let rows = Vec::new();
        return request.set_result(GradientResult::Sums(AxisSums { rows, cols }));
    }
    let gradient_over = |targets: Range<usize>| {
        tiles
            .iter()
            .filter_map(|tile| tile.gradient(&targets))
            .reduce(|sum, part| sum + part)
            .unwrap_or_else(|| selected_device().zeros_like(&(head.rows(), head.cols())))
    };
    let (gradient, squares) = match request.query.samples() {
        None => (gradient_over(0..targets.len()), None),
        Some(samples) => sum_sample_gradients(samples, |sample| {
            let targets_before =
                |position: usize| targets.partition_point(|target| target.position < position);
            let start = targets_before(sample.positions.start);
            gradient_over(start..targets_before(sample.positions.end))
        }),
    };
    let to_gradient = |matrix: GpuMatrix| GpuActivations::from(matrix).into();
    request.set_from_gradient(head, to_gradient(gradient), squares.map(to_gradient));
}

/// Logits of a tile, and the parts of their softmax.
struct LogitRows<'a> {
    targets: &'a [TokenTarget],
    /// (targets, vocabulary)
    logits: GpuMatrix,
    /// The largest logit of each row.
    row_max: GpuVector,
    /// exp(logit − row_max)
    exponentials: GpuMatrix,
    /// The sum of each row of these, (targets, 1).
    exponential_sums: GpuMatrix,
}

impl<'a> LogitRows<'a> {
    fn new(targets: &'a [TokenTarget], logits: GpuMatrix) -> Self {
        let shape = *logits.shape();
        let row_max: GpuVector = logits.clone().max::<_, Axis<1>>();
        let exponentials =
            (logits.clone() - row_max.clone().broadcast_like::<_, Axis<1>>(&shape)).exp();
        let exponential_sums = row_sum_matrix(exponentials.clone());
        Self {
            targets,
            logits,
            row_max,
            exponentials,
            exponential_sums,
        }
    }

    /// Σ −log p of the targets = Σ (row_max + ln Σ exp(logit − row_max) − target's logit).
    fn negative_log_likelihood(&self) -> f64 {
        let target_logits = self.target_logits().into_iter();
        let row_max = self.row_max.as_vec();
        let exponential_sums = self.exponential_sums.as_vec();
        target_logits
            .zip(row_max)
            .zip(exponential_sums)
            .map(|((logit, max), sum)| f64::from(max) + f64::from(sum).ln() - f64::from(logit))
            .sum()
    }

    /// The logit of each target's token.
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
        let (_, vocabulary) = shape;
        let is_largest = self
            .logits
            .eq(&self.row_max.clone().broadcast_like::<_, Axis<1>>(&shape));
        // Token i has the rank vocabulary − i. The largest rank among the tokens with the largest
        // logit belongs to the first of them. Ranks are exact in f32 up to 2²⁴ tokens.
        let ranks = vector(
            (0..vocabulary)
                .map(|token| (vocabulary - token) as f32)
                .collect(),
        );
        let zero: Tensor<Rank0, f32, Gpu> = selected_device().tensor_from_vec(vec![0.0], ());
        let candidate_ranks: GpuMatrix = is_largest.choose(
            ranks.broadcast_like::<_, Axis<0>>(&shape),
            zero.broadcast_like::<_, Axes2<0, 1>>(&shape),
        );
        let first_ranks: GpuVector = candidate_ranks.max::<_, Axis<1>>();
        first_ranks
            .as_vec()
            .into_iter()
            .map(|rank| vocabulary - rank as usize)
            .collect()
    }

    /// The gradient of `scale` · nll with respect to the logits: scale · (p − one_hot(target)).
    fn into_logit_gradient(self, scale: f32) -> GpuMatrix {
        let shape = *self.exponentials.shape();
        let row_factor = self.exponential_sums.recip() * scale;
        let p = self.exponentials * broadcast_per_row(row_factor, shape);
        let target_ids = vector(
            self.targets
                .iter()
                .map(|target| target.token_id as f32)
                .collect(),
        );
        // Token ids are exact in f32 up to 2²⁴.
        let all_ids = vector((0..shape.1).map(|id| id as f32).collect());
        let is_target = target_ids
            .broadcast_like::<_, Axis<1>>(&shape)
            .eq(&all_ids.broadcast_like::<_, Axis<0>>(&shape));
        is_target.choose(p.clone() - scale, p)
    }
}

fn vector(values: Vec<f32>) -> GpuVector {
    let len = values.len();
    selected_device().tensor_from_vec(values, (len,))
}
