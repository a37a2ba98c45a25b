//! Cross entropy and log probabilities straight from the final hidden states, on the CPU: logits are made for a tile of rows
//! at a time and only where a prediction is asked for, so no matrix of tokens × vocabulary exists. Sums are taken in f64.

use std::ops::Range;

use rayon::prelude::*;

use super::gemm::{Into, View, product};
use super::maths::{exp, largest};
use super::{gradient, linear};
use crate::ops::simd::{GRAIN, LANES, vectorised};
use crate::ops::slot::{Answer, Ask, SampleAt, SideSums, Sides, Slot, add_squared};
use crate::ops::{Target, TokenScore};
use crate::tensor::Weight;
use crate::tensor::cpu::{Hidden, hidden};

/// Elements of a tile of logits.
const TILE: usize = 1 << 24;

/// Rates the targets. x is the normed final hidden state, (positions, hidden); the head is (vocabulary, hidden).
pub fn token_scores(x: &Hidden, head: &Weight, targets: &[Target]) -> Vec<TokenScore> {
    let (weight, vocabulary) = (head.shared(), head.rows());
    let mut scores = Vec::with_capacity(targets.len());
    for tile in targets.chunks(tile_rows(vocabulary)) {
        let logits = linear::forward(&rows_of(x, tile), tile.len(), &weight, vocabulary, head.cols());
        let rated = tile.par_iter().zip(logits.par_chunks_exact(vocabulary)).map(|(target, row)| {
            let logit = row[target.id as usize];
            let (most, sum) = vectorised(
                #[inline(always)]
                || log_sum(row),
            );
            // the first of equals counts
            let greedy = logit == most && !row[..target.id as usize].contains(&logit);
            TokenScore { log_probability: f64::from(logit) - f64::from(most) - sum.ln(), greedy }
        });
        scores.par_extend(rated);
    }
    scores
}

/// The summed cross entropy of the targets, and the gradient of `scale` times it with respect to x. Two targets never share
/// a position.
pub fn cross_entropy(x: &Hidden, head: &Weight, targets: &[Target], scale: f32, slot: Option<&Slot>) -> (f64, Vec<f32>) {
    let (weight, vocabulary, width) = (head.shared(), head.rows(), head.cols());
    let mut dx = vec![0.0; x.values().len()];
    let mut nll = 0.0;
    let mut reduced = slot.map(|slot| match slot.ask {
        Ask::Products(Sides { rows: false, .. }) => Reduced::Products(vec![0.0; width]),
        _ => Reduced::Gradient(HeadGradient::new(slot, vocabulary * width)),
    });
    for tile in tiles(targets, vocabulary, slot) {
        let tile = &targets[tile];
        let from = rows_of(x, tile);
        let mut logits = linear::forward(&from, tile.len(), &weight, vocabulary, width);
        let losses: Vec<f64> = tile
            .par_iter()
            .zip(logits.par_chunks_exact_mut(vocabulary))
            .map(|(target, row)| {
                vectorised(
                    #[inline(always)]
                    || loss_and_gradient(row, target.id as usize, scale),
                )
            })
            .collect();
        nll += losses.iter().sum::<f64>();
        let mut down = vec![0.0; from.len()];
        let (delta, w) = (View::rows(&logits, vocabulary), View::rows(&weight, width));
        product((tile.len(), width, vocabulary), &mut down, width, Into::Fresh, delta, w);
        for (target, row) in tile.iter().zip(down.chunks_exact(width)) {
            dx[target.position * width..(target.position + 1) * width].copy_from_slice(row);
        }
        match &mut reduced {
            Some(Reduced::Products(cols)) => {
                let part = gradient::products_by_column(&from, &down, width);
                cols.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
            Some(Reduced::Gradient(gradient)) => gradient.add((vocabulary, width), tile, &logits, &from),
            None => {}
        }
    }
    match (reduced, slot) {
        (Some(Reduced::Products(cols)), Some(slot)) => slot.put(Answer::Sums(SideSums { rows: Vec::new(), cols })),
        (Some(Reduced::Gradient(gradient)), Some(slot)) => {
            let (sum, squares) = gradient.finish();
            let whole = |values| hidden(values, vocabulary, width).into();
            slot.put_whole(head, whole(sum), slot.ask.samples().map(|_| whole(squares)));
        }
        _ => {}
    }
    (nll, dx)
}

/// What is made of the head's gradient.
enum Reduced {
    /// Σ over the rows of W∘G, which is Σ over the targets of x times its gradient.
    Products(Vec<f64>),
    Gradient(HeadGradient),
}

/// Rows of a tile: depends on the vocabulary alone.
fn tile_rows(vocabulary: usize) -> usize {
    (TILE / vocabulary).clamp(64, 4096)
}

/// Targets in tiles; of one sample each where gradients of samples are squared.
fn tiles(targets: &[Target], vocabulary: usize, slot: Option<&Slot>) -> Vec<Range<usize>> {
    let samples = slot.and_then(|slot| slot.ask.samples());
    let bounds: Vec<usize> = match samples {
        Some(samples) => {
            let ends = samples.iter().map(|s| targets.partition_point(|t| t.position < s.positions.end));
            std::iter::once(0).chain(ends).collect()
        }
        None => vec![0, targets.len()],
    };
    let pieces = |b: &[usize]| {
        let end = b[1];
        (b[0]..end).step_by(tile_rows(vocabulary)).map(move |first| first..(first + tile_rows(vocabulary)).min(end))
    };
    bounds.windows(2).flat_map(pieces).collect()
}

/// The rows of the positions that are asked.
fn rows_of(x: &Hidden, targets: &[Target]) -> Vec<f32> {
    let width = x.shape().1;
    let mut rows = vec![0.0; targets.len() * width];
    rows.par_chunks_exact_mut(width).zip(targets).for_each(|(row, target)| {
        row.copy_from_slice(&x.values()[target.position * width..(target.position + 1) * width]);
    });
    rows
}

/// The largest logit, and Σ exp(logit − largest).
#[inline(always)]
fn log_sum(row: &[f32]) -> (f32, f64) {
    let most = largest(row);
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
    let (most, sum) = log_sum(row);
    let factor = (f64::from(scale) / sum) as f32;
    for l in row.iter_mut() {
        *l = exp(*l - most) * factor;
    }
    row[id] -= scale;
    f64::from(most) + sum.ln() - f64::from(logit)
}

/// The gradient of the head's weight, tile by tile; of each sample's own where they are squared.
struct HeadGradient {
    samples: Vec<SampleAt>,
    sum: Vec<f32>,
    own: Vec<f32>,
    squares: Vec<f32>,
    /// The sample that `own` belongs to.
    at: usize,
}

impl HeadGradient {
    fn new(slot: &Slot, len: usize) -> Self {
        let samples = slot.ask.samples().map_or_else(Vec::new, |samples| samples.to_vec());
        let second = if samples.is_empty() { 0 } else { len };
        Self { samples, sum: vec![0.0; len], own: vec![0.0; second], squares: vec![0.0; second], at: 0 }
    }

    fn add(&mut self, (vocabulary, width): (usize, usize), tile: &[Target], delta: &[f32], from: &[f32]) {
        let shape = (vocabulary, width, tile.len());
        let (delta, from) = (View::transposed(delta, vocabulary), View::rows(from, width));
        if self.samples.is_empty() {
            return product(shape, &mut self.sum, width, Into::Sum, delta, from);
        }
        let at = self.samples.iter().position(|s| s.positions.contains(&tile[0].position)).unwrap_or(self.at);
        if at != self.at {
            self.close();
            self.at = at;
        }
        product(shape, &mut self.own, width, Into::Sum, delta, from);
    }

    /// The sample at hand is complete.
    fn close(&mut self) {
        let Some(share) = self.samples.get(self.at).map(|sample| sample.share) else { return };
        let sums = self.sum.par_chunks_mut(GRAIN).zip(self.squares.par_chunks_mut(GRAIN));
        sums.zip(self.own.par_chunks_mut(GRAIN)).for_each(|((sum, squares), own)| {
            add_squared(sum, squares, own, share);
            own.fill(0.0);
        });
    }

    fn finish(mut self) -> (Vec<f32>, Vec<f32>) {
        self.close();
        (self.sum, self.squares)
    }
}
