//! Cross entropy and log probabilities straight from the final hidden states, on the CPU: logits are made for a tile of rows
//! at a time and only where a prediction is asked for, so no matrix of tokens × vocabulary exists. Sums are taken in f64.

use std::ops::Range;

use rayon::prelude::*;

use super::gemm::{MatrixView, OutputMode, matmul};
use super::gradient::accumulate_sample_gradient;
use super::maths::{exp, max_or_nan};
use super::{gradient, linear};
use crate::Weight;
use crate::activations::cpu::{CpuActivations, activations_from_vec};
use crate::ops::simd::{ELEMENTS_PER_TASK, LANES, dispatch_simd};
use crate::ops::{
    AxisSums, GradientQuery, GradientRequest, GradientResult, SampleSpan, SumAxes, TokenScore,
    TokenTarget,
};

/// Elements of a tile of logits on the CPU.
pub const CPU_LOGIT_TILE_ELEMENTS: usize = 1 << 24;

/// Rates the targets. x is the normed final hidden state, (positions, hidden); the head is (vocabulary, hidden).
pub fn token_scores(x: &CpuActivations, head: &Weight, targets: &[TokenTarget]) -> Vec<TokenScore> {
    let (weight, vocabulary) = (head.shared_values(), head.rows());
    let mut scores = Vec::with_capacity(targets.len());
    for tile in targets.chunks(tile_rows(vocabulary)) {
        let logits = linear::linear_values(
            &target_rows(x, tile),
            tile.len(),
            &weight,
            vocabulary,
            head.cols(),
        );
        let rated = tile
            .par_iter()
            .zip(logits.par_chunks_exact(vocabulary))
            .map(|(target, row)| {
                let logit = row[target.token_id as usize];
                let (most, sum) = dispatch_simd(
                    #[inline(always)]
                    || max_and_exp_sum(row),
                );
                // the first of equals counts
                let greedy = logit == most && !row[..target.token_id as usize].contains(&logit);
                TokenScore {
                    log_probability: f64::from(logit) - f64::from(most) - sum.ln(),
                    is_greedy: greedy,
                }
            });
        scores.par_extend(rated);
    }
    scores
}

/// The summed cross entropy of the targets, and the gradient of `scale` times it with respect to x. Two targets never share
/// a position.
pub fn cross_entropy(
    x: &CpuActivations,
    head: &Weight,
    targets: &[TokenTarget],
    scale: f32,
    slot: Option<&GradientRequest>,
) -> (f64, Vec<f32>) {
    let (weight, vocabulary, width) = (head.shared_values(), head.rows(), head.cols());
    let mut dx = vec![0.0; x.values().len()];
    let mut nll = 0.0;
    let mut reduced = slot.map(|slot| match slot.query {
        GradientQuery::WeightTimesGradientSums(SumAxes { rows: false, .. }) => {
            HeadGradientReduction::WeightTimesGradientColumnSums(vec![0.0; width])
        }
        _ => HeadGradientReduction::FullGradient(HeadGradientAccumulator::new(
            slot,
            vocabulary * width,
        )),
    });
    for tile in tiles(targets, vocabulary, slot) {
        let tile = &targets[tile];
        let from = target_rows(x, tile);
        let mut logits = linear::linear_values(&from, tile.len(), &weight, vocabulary, width);
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
        let mut down = vec![0.0; from.len()];
        let (delta, w) = (
            MatrixView::row_major(&logits, vocabulary),
            MatrixView::row_major(&weight, width),
        );
        matmul(
            (tile.len(), width, vocabulary),
            &mut down,
            width,
            OutputMode::Overwrite,
            delta,
            w,
        );
        for (target, row) in tile.iter().zip(down.chunks_exact(width)) {
            dx[target.position * width..(target.position + 1) * width].copy_from_slice(row);
        }
        match &mut reduced {
            Some(HeadGradientReduction::WeightTimesGradientColumnSums(cols)) => {
                let part = gradient::column_dot_products(&from, &down, width);
                cols.iter_mut()
                    .zip(part)
                    .for_each(|(sum, part)| *sum += part);
            }
            Some(HeadGradientReduction::FullGradient(gradient)) => {
                gradient.add((vocabulary, width), tile, &logits, &from)
            }
            None => {}
        }
    }
    match (reduced, slot) {
        (Some(HeadGradientReduction::WeightTimesGradientColumnSums(cols)), Some(slot)) => slot
            .set_result(GradientResult::Sums(AxisSums {
                rows: Vec::new(),
                cols,
            })),
        (Some(HeadGradientReduction::FullGradient(gradient)), Some(slot)) => {
            let (sum, squares) = gradient.finish();
            let whole = |values| activations_from_vec(values, vocabulary, width).into();
            slot.set_from_gradient(
                head,
                whole(sum),
                slot.query.samples().map(|_| whole(squares)),
            );
        }
        _ => {}
    }
    (nll, dx)
}

/// What is made of the head's gradient.
enum HeadGradientReduction {
    /// Σ over the rows of W∘G, which is Σ over the targets of x times its gradient.
    WeightTimesGradientColumnSums(Vec<f64>),
    FullGradient(HeadGradientAccumulator),
}

/// Rows of a tile: depends on the vocabulary alone.
fn tile_rows(vocabulary: usize) -> usize {
    (CPU_LOGIT_TILE_ELEMENTS / vocabulary).clamp(64, 4096)
}

/// Targets in tiles; of one sample each where gradients of samples are squared.
fn tiles(
    targets: &[TokenTarget],
    vocabulary: usize,
    slot: Option<&GradientRequest>,
) -> Vec<Range<usize>> {
    let samples = slot.and_then(|slot| slot.query.samples());
    let bounds: Vec<usize> = match samples {
        Some(samples) => {
            let ends = samples
                .iter()
                .map(|s| targets.partition_point(|t| t.position < s.positions.end));
            std::iter::once(0).chain(ends).collect()
        }
        None => vec![0, targets.len()],
    };
    let pieces = |b: &[usize]| {
        let end = b[1];
        (b[0]..end)
            .step_by(tile_rows(vocabulary))
            .map(move |first| first..(first + tile_rows(vocabulary)).min(end))
    };
    bounds.windows(2).flat_map(pieces).collect()
}

/// The rows of the positions that are asked.
fn target_rows(x: &CpuActivations, targets: &[TokenTarget]) -> Vec<f32> {
    let width = x.shape().1;
    let mut rows = vec![0.0; targets.len() * width];
    rows.par_chunks_exact_mut(width)
        .zip(targets)
        .for_each(|(row, target)| {
            row.copy_from_slice(
                &x.values()[target.position * width..(target.position + 1) * width],
            );
        });
    rows
}

/// The largest logit, and Σ exp(logit − largest).
#[inline(always)]
fn max_and_exp_sum(row: &[f32]) -> (f32, f64) {
    let most = max_or_nan(row);
    let mut sums = [0.0f64; LANES];
    let lanes = row.chunks_exact(LANES);
    let mut rest = 0.0;
    for &l in lanes.remainder() {
        rest += f64::from(exp(l - most));
    }
    for l in lanes {
        for (sum, &l) in sums.iter_mut().zip(l) {
            *sum += f64::from(exp(l - most));
        }
    }
    (most, sums.iter().sum::<f64>() + rest)
}

/// The loss of a row of logits, which become its gradient times `scale`.
#[inline(always)]
fn loss_and_gradient(row: &mut [f32], id: usize, scale: f32) -> f64 {
    let logit = row[id];
    let (most, sum) = max_and_exp_sum(row);
    let factor = (f64::from(scale) / sum) as f32;
    for l in row.iter_mut() {
        *l = exp(*l - most) * factor;
    }
    row[id] -= scale;
    f64::from(most) + sum.ln() - f64::from(logit)
}

/// The gradient of the head's weight, tile by tile; of each sample's own where they are squared.
struct HeadGradientAccumulator {
    samples: Vec<SampleSpan>,
    sum: Vec<f32>,
    sample_gradient: Vec<f32>,
    squares: Vec<f32>,
    /// The sample that `own` belongs to.
    current_sample: usize,
}

impl HeadGradientAccumulator {
    fn new(slot: &GradientRequest, len: usize) -> Self {
        let samples = slot
            .query
            .samples()
            .map_or_else(Vec::new, |samples| samples.to_vec());
        let second = if samples.is_empty() { 0 } else { len };
        Self {
            samples,
            sum: vec![0.0; len],
            sample_gradient: vec![0.0; second],
            squares: vec![0.0; second],
            current_sample: 0,
        }
    }

    fn add(
        &mut self,
        (vocabulary, width): (usize, usize),
        tile: &[TokenTarget],
        delta: &[f32],
        from: &[f32],
    ) {
        let shape = (vocabulary, width, tile.len());
        let (delta, from) = (
            MatrixView::column_major(delta, vocabulary),
            MatrixView::row_major(from, width),
        );
        if self.samples.is_empty() {
            return matmul(
                shape,
                &mut self.sum,
                width,
                OutputMode::Accumulate,
                delta,
                from,
            );
        }
        let at = self
            .samples
            .iter()
            .position(|s| s.positions.contains(&tile[0].position))
            .unwrap_or(self.current_sample);
        if at != self.current_sample {
            self.finish_sample();
            self.current_sample = at;
        }
        matmul(
            shape,
            &mut self.sample_gradient,
            width,
            OutputMode::Accumulate,
            delta,
            from,
        );
    }

    /// The sample at hand is complete.
    fn finish_sample(&mut self) {
        let Some(share) = self
            .samples
            .get(self.current_sample)
            .map(|sample| sample.gradient_scale)
        else {
            return;
        };
        let sums = self
            .sum
            .par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(self.squares.par_chunks_mut(ELEMENTS_PER_TASK));
        sums.zip(self.sample_gradient.par_chunks_mut(ELEMENTS_PER_TASK))
            .for_each(|((sum, squares), own)| {
                accumulate_sample_gradient(sum, squares, own, share);
                own.fill(0.0);
            });
    }

    fn finish(mut self) -> (Vec<f32>, Vec<f32>) {
        self.finish_sample();
        (self.sum, self.squares)
    }
}
