//! Cross entropy and log probabilities straight from the final hidden states, on the CPU.
//!
//! Logits are computed only at the positions of targets, for a tile of them at a time, so no matrix
//! of (positions, vocabulary) exists. Sums over the vocabulary are in f64.

use std::ops::Range;

use rayon::prelude::*;

use super::gemm::{MatrixView, OutputMode, matmul};
use super::gradient::{accumulate_sample_gradient, column_dot_products};
use super::linear::linear_values;
use super::maths::{exp, max_or_nan};
use crate::activations::CpuActivations;
use crate::ops::gradient_query::{
    AxisSums, GradientQuery, GradientRequest, GradientResult, SampleSpan, SumAxes,
};
use crate::ops::simd::{ELEMENTS_PER_TASK, LANES, dispatch_simd};
use crate::ops::token_loss::{TokenScore, TokenTarget};
use crate::weight::Weight;

/// Elements of a tile of logits on the CPU: 64 MiB of f32.
pub const CPU_LOGIT_TILE_ELEMENTS: usize = 1 << 24;

/// Scores the targets. x is the final hidden state after its norm, (positions, hidden); the head is
/// (vocabulary, hidden).
pub(crate) fn token_scores(
    x: &CpuActivations,
    head: &Weight,
    targets: &[TokenTarget],
) -> Vec<TokenScore> {
    let (w, vocabulary, width) = (head.shared_values(), head.rows(), head.cols());
    let mut scores = Vec::with_capacity(targets.len());
    for tile in targets.chunks(tile_rows(vocabulary)) {
        let x_rows = target_rows(x, tile);
        let logits = linear_values(&x_rows, tile.len(), &w, vocabulary, width);
        scores.par_extend(
            tile.par_iter()
                .zip(logits.par_chunks_exact(vocabulary))
                .map(|(target, row)| score(row, target.token_id as usize)),
        );
    }
    scores
}

/// log p = logit − ln Σ exp(logits), and whether the token is the first with the largest logit.
fn score(logits: &[f32], token_id: usize) -> TokenScore {
    let logit = logits[token_id];
    let (max, sum) = dispatch_simd(
        #[inline(always)]
        || max_and_exp_sum(logits),
    );
    TokenScore {
        log_probability: f64::from(logit) - f64::from(max) - sum.ln(),
        is_greedy: logit == max && !logits[..token_id].contains(&logit),
    }
}

/// The cross entropy of the targets, summed, and the gradient of `scale` times it with respect to
/// x. The targets are in the order of their positions, at most one for each.
pub(crate) fn cross_entropy(
    x: &CpuActivations,
    head: &Weight,
    targets: &[TokenTarget],
    scale: f32,
    request: Option<&GradientRequest>,
) -> (f64, CpuActivations) {
    let (w, vocabulary, width) = (head.shared_values(), head.rows(), head.cols());
    let (positions, _) = *x.shape();
    let mut dx = vec![0.0; positions * width];
    let mut nll = 0.0;
    let mut reduction =
        request.map(|request| HeadGradientReduction::new(request, vocabulary, width));
    for tile_range in tiles(targets, vocabulary, request) {
        let tile = &targets[tile_range];
        let x_rows = target_rows(x, tile);
        let mut logits = linear_values(&x_rows, tile.len(), &w, vocabulary, width);
        let losses: Vec<f64> = tile
            .par_iter()
            .zip(logits.par_chunks_exact_mut(vocabulary))
            .map(|(target, row)| {
                dispatch_simd(
                    #[inline(always)]
                    || loss_and_gradient(row, target.token_id as usize, scale),
                )
            })
            .collect();
        nll += losses.iter().sum::<f64>();
        // `loss_and_gradient` has turned the logits into their gradients δ, (targets, vocabulary).
        // The targets' rows of dx are δ · W, (targets, hidden).
        let delta = logits;
        let mut dx_rows = vec![0.0; x_rows.len()];
        matmul(
            (tile.len(), width, vocabulary),
            &mut dx_rows,
            width,
            OutputMode::Overwrite,
            MatrixView::row_major(&delta, vocabulary),
            MatrixView::row_major(&w, width),
        );
        for (target, row) in tile.iter().zip(dx_rows.chunks_exact(width)) {
            dx[target.position * width..(target.position + 1) * width].copy_from_slice(row);
        }
        if let Some(reduction) = &mut reduction {
            reduction.add_tile(tile, &delta, &x_rows, &dx_rows);
        }
    }
    if let (Some(reduction), Some(request)) = (reduction, request) {
        reduction.finish(request, head);
    }
    (nll, CpuActivations::from_vec(dx, positions, width))
}

/// Targets of a tile, 64 to 4096. The number depends on the vocabulary alone, so sums have the same
/// order on every machine.
fn tile_rows(vocabulary: usize) -> usize {
    (CPU_LOGIT_TILE_ELEMENTS / vocabulary).clamp(64, 4096)
}

/// Cuts the targets into tiles. If the query names samples, they cover all targets, and no tile has
/// targets of two of them.
fn tiles(
    targets: &[TokenTarget],
    vocabulary: usize,
    request: Option<&GradientRequest>,
) -> Vec<Range<usize>> {
    let samples = request.and_then(|request| request.query.samples());
    // Each pair of neighbouring bounds encloses the targets of one sample, or all targets. The
    // tiles are cut from one bound to the next.
    let bounds: Vec<usize> = match samples {
        // The samples are in the order of their positions, as the targets are.
        Some(samples) => {
            let ends = samples.iter().map(|sample| {
                targets.partition_point(|target| target.position < sample.positions.end)
            });
            std::iter::once(0).chain(ends).collect()
        }
        None => vec![0, targets.len()],
    };
    let rows = tile_rows(vocabulary);
    let mut tiles = Vec::new();
    for bound in bounds.windows(2) {
        let (start, end) = (bound[0], bound[1]);
        let starts = (start..end).step_by(rows);
        tiles.extend(starts.map(|first| first..(first + rows).min(end)));
    }
    tiles
}

/// The rows of x at the targets' positions, (targets, hidden).
fn target_rows(x: &CpuActivations, targets: &[TokenTarget]) -> Vec<f32> {
    let (_, width) = *x.shape();
    let mut rows = vec![0.0; targets.len() * width];
    rows.par_chunks_exact_mut(width)
        .zip(targets)
        .for_each(|(row, target)| {
            let elements = target.position * width..(target.position + 1) * width;
            row.copy_from_slice(&x.values()[elements]);
        });
    rows
}

/// The largest logit m, and Z = Σ exp(logit − m) in f64: each exponential is an f32, their sum has
/// LANES partial sums in f64.
#[inline(always)]
fn max_and_exp_sum(logits: &[f32]) -> (f32, f64) {
    let max = max_or_nan(logits);
    let mut sums = [0.0f64; LANES];
    let chunks = logits.chunks_exact(LANES);
    let mut remainder = 0.0;
    for &logit in chunks.remainder() {
        remainder += f64::from(exp(logit - max));
    }
    for chunk in chunks {
        for (sum, &logit) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(exp(logit - max));
        }
    }
    (max, sums.iter().sum::<f64>() + remainder)
}

/// Returns −log p(token) = m + ln Z − logit(token), with m and Z from [`max_and_exp_sum`]. In
/// place, the logits become the gradient of `scale` times that: scale · (p − one_hot(token)), where
/// p = exp(logit − m) / Z.
#[inline(always)]
fn loss_and_gradient(row: &mut [f32], token_id: usize, scale: f32) -> f64 {
    let token_logit = row[token_id];
    let (max, sum) = max_and_exp_sum(row);
    let factor = (f64::from(scale) / sum) as f32;
    for logit in row.iter_mut() {
        *logit = exp(*logit - max) * factor;
    }
    row[token_id] -= scale;
    f64::from(max) + sum.ln() - f64::from(token_logit)
}

/// What is accumulated, tile by tile, of the gradient G = δᵀ · x of the head W, both (vocabulary,
/// hidden).
enum HeadGradientReduction {
    /// Σ_r W[r,c]·G[r,c] = Σ_t x[t,c]·dx[t,c] over the targets t, (hidden). G is not computed.
    WeightTimesGradientColumnSums(Vec<f64>),
    /// G.
    FullGradient(HeadGradientAccumulator),
}

impl HeadGradientReduction {
    fn new(request: &GradientRequest, vocabulary: usize, width: usize) -> Self {
        match request.query {
            GradientQuery::WeightTimesGradientSums(SumAxes { rows: false, .. }) => {
                Self::WeightTimesGradientColumnSums(vec![0.0; width])
            }
            _ => Self::FullGradient(HeadGradientAccumulator::new(request, vocabulary, width)),
        }
    }

    /// Adds a tile: δ of its logits, (targets, vocabulary), and its rows of x and of dx, (targets,
    /// hidden).
    fn add_tile(&mut self, tile: &[TokenTarget], delta: &[f32], x_rows: &[f32], dx_rows: &[f32]) {
        match self {
            Self::WeightTimesGradientColumnSums(sums) => {
                let parts = column_dot_products(x_rows, dx_rows, sums.len());
                for (sum, part) in sums.iter_mut().zip(parts) {
                    *sum += part;
                }
            }
            Self::FullGradient(gradient) => gradient.add(tile, delta, x_rows),
        }
    }

    fn finish(self, request: &GradientRequest, head: &Weight) {
        match self {
            Self::WeightTimesGradientColumnSums(cols) => {
                let rows = Vec::new();
                request.set_result(GradientResult::Sums(AxisSums { rows, cols }));
            }
            Self::FullGradient(accumulator) => {
                let (gradient, squares) = accumulator.finish();
                let to_gradient =
                    |values| CpuActivations::from_vec(values, head.rows(), head.cols()).into();
                let squares = request.query.samples().map(|_| to_gradient(squares));
                request.set_from_gradient(head, to_gradient(gradient), squares);
            }
        }
    }
}

/// G = Σ_j G_j of the head over the samples j, and S = Σ_j (scale_j · G_j)² if the query names
/// samples.
struct HeadGradientAccumulator {
    vocabulary: usize,
    width: usize,
    /// Empty if the query names none.
    samples: Vec<SampleSpan>,
    /// G, (vocabulary, width). With samples, the sum over those that are complete.
    gradient: Vec<f32>,
    /// G_j of the current sample; empty without samples.
    sample_gradient: Vec<f32>,
    /// S of the complete samples; empty without samples.
    squares: Vec<f32>,
    current_sample: usize,
}

impl HeadGradientAccumulator {
    fn new(request: &GradientRequest, vocabulary: usize, width: usize) -> Self {
        let samples = request
            .query
            .samples()
            .map_or_else(Vec::new, |samples| samples.to_vec());
        let len = vocabulary * width;
        let sample_len = if samples.is_empty() { 0 } else { len };
        Self {
            vocabulary,
            width,
            samples,
            gradient: vec![0.0; len],
            sample_gradient: vec![0.0; sample_len],
            squares: vec![0.0; sample_len],
            current_sample: 0,
        }
    }

    /// G += δᵀ · x over a tile, whose targets belong to one sample if there are samples.
    fn add(&mut self, tile: &[TokenTarget], delta: &[f32], x_rows: &[f32]) {
        if !self.samples.is_empty() {
            let first_position = tile[0].position;
            let mut samples = self.samples.iter();
            let sample = samples
                .position(|sample| sample.positions.contains(&first_position))
                .unwrap_or(self.current_sample);
            // Targets are in the order of their positions: the samples before this are complete.
            if sample != self.current_sample {
                self.finish_sample();
                self.current_sample = sample;
            }
        }
        let sum = if self.samples.is_empty() {
            &mut self.gradient
        } else {
            &mut self.sample_gradient
        };
        matmul(
            (self.vocabulary, self.width, tile.len()),
            sum,
            self.width,
            OutputMode::Accumulate,
            MatrixView::column_major(delta, self.vocabulary),
            MatrixView::row_major(x_rows, self.width),
        );
    }

    /// Adds the current sample to G and S, and begins the next with zeros.
    fn finish_sample(&mut self) {
        let Some(sample) = self.samples.get(self.current_sample) else {
            return;
        };
        let scale = sample.gradient_scale;
        self.gradient
            .par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(self.squares.par_chunks_mut(ELEMENTS_PER_TASK))
            .zip(self.sample_gradient.par_chunks_mut(ELEMENTS_PER_TASK))
            .for_each(|((gradient, squares), sample_gradient)| {
                accumulate_sample_gradient(gradient, squares, sample_gradient, scale);
                sample_gradient.fill(0.0);
            });
    }

    fn finish(mut self) -> (Vec<f32>, Vec<f32>) {
        self.finish_sample();
        (self.gradient, self.squares)
    }
}
