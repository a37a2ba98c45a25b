//! Cross entropy and log probabilities straight from the final hidden states, on a GPU: logits are made in f32 for a tile of rows
//! at a time and only where a prediction is asked for, and only a few numbers of each row leave the GPU.

use dfdx::prelude::*;

use super::gradient::squared;
use super::product::{by_row, column_sums, sum_of_rows, transposed};
use super::rows::{Return, index};
use crate::ops::slot::{Answer, Ask, SideSums, Sides, Slot};
use crate::ops::{Target, TokenScore};
use crate::tensor::Weight;
use crate::tensor::gpu::{Gpu, Hidden, Matrix, added, device};

/// Elements of a tile of logits.
const TILE: usize = 1 << 26;

/// Rates the targets. x is the normed final hidden state, (positions, hidden); the head is (vocabulary, hidden).
pub fn token_scores(x: &Hidden, head: &Weight, targets: &[Target]) -> Vec<TokenScore> {
    let head = head.matrix();
    let vocabulary = head.shape().0;
    let mut scores = Vec::with_capacity(targets.len());
    for tile in targets.chunks((TILE / vocabulary).max(1)) {
        let row = Rows::of(tile, rows_of(x, tile).matmul(transposed(&head)));
        let (logits, most, sums, first) = (row.logits(), row.most.as_vec(), row.sums.as_vec(), row.first());
        for (i, target) in tile.iter().enumerate() {
            let log_probability = f64::from(logits[i]) - f64::from(most[i]) - f64::from(sums[i]).ln();
            // the first of equals counts
            scores.push(TokenScore { log_probability, greedy: first[i] == target.id as usize });
        }
    }
    scores
}

/// The summed cross entropy of the targets, and the gradient of `scale` times it with respect to x. Two targets never share
/// a position.
pub fn cross_entropy(x: &Hidden, head: &Weight, targets: &[Target], scale: f32, slot: Option<&Slot>) -> (f64, Hidden) {
    let (weight, (positions, _)) = (head.matrix(), x.shape());
    let vocabulary = head.rows();
    let mut nll = 0.0;
    let (mut down, mut seen): (Option<Matrix>, usize) = (None, 0);
    let mut deltas = Vec::new();
    for tile in targets.chunks((TILE / vocabulary).max(1)) {
        let from = rows_of(x, tile);
        let row = Rows::of(tile, from.clone().matmul(transposed(&weight)));
        let logits = row.logits().into_iter().zip(row.most.as_vec()).zip(row.sums.as_vec());
        nll += logits.map(|((logit, most), sum)| f64::from(most) + f64::from(sum).ln() - f64::from(logit)).sum::<f64>();
        let delta = row.gradient(scale);
        // what a tile gives comes back to its own positions
        let mut back = vec![None; positions];
        tile.iter().enumerate().for_each(|(i, target)| back[target.position] = Some(i));
        let part = Return::of(&back).rows(delta.clone().matmul(weight.clone()));
        down = Some(added(down, part));
        if slot.is_some() {
            deltas.push((seen, delta, from));
        }
        seen += tile.len();
    }
    let dx = down.unwrap_or_else(|| device().zeros_like(&x.shape()));
    if let Some(slot) = slot {
        answer(slot, head, x, &dx, targets, deltas);
    }
    (nll, dx.into())
}

/// Answers what is asked of the head's gradient. Tiles: their first target, δ of their logits, and their rows of x.
fn answer(slot: &Slot, head: &Weight, x: &Hidden, dx: &Matrix, targets: &[Target], tiles: Vec<(usize, Matrix, Matrix)>) {
    if let Ask::Products(Sides { rows: false, .. }) = slot.ask {
        // Σ over the rows of W∘G is Σ over the targets of x times its gradient
        let cols = column_sums(x.matrix().clone() * dx.clone());
        return slot.put(Answer::Sums(SideSums { rows: Vec::new(), cols }));
    }
    let over = |of: std::ops::Range<usize>| {
        let part = |(first, delta, from): &(usize, Matrix, Matrix)| {
            let rows = of.start.max(*first)..of.end.min(*first + from.shape().0);
            let own = |x: &Matrix| -> Matrix { x.clone().slice((rows.start - first..rows.end - first, ..)) };
            (rows.start < rows.end).then(|| transposed(&own(delta)).matmul(own(from)))
        };
        let sum = tiles.iter().filter_map(part).reduce(|sum, part| sum + part);
        sum.unwrap_or_else(|| device().zeros_like(&(head.rows(), head.cols())))
    };
    let (gradient, squares) = match slot.ask.samples() {
        None => (over(0..targets.len()), None),
        Some(samples) => squared(samples, |sample| {
            let before = |position: usize| targets.partition_point(|target| target.position < position);
            over(before(sample.positions.start)..before(sample.positions.end))
        }),
    };
    let whole = |of: Matrix| Hidden::from(of).into();
    slot.put_whole(head, whole(gradient), squares.map(whole));
}

/// The rows of the positions that are asked.
fn rows_of(x: &Hidden, targets: &[Target]) -> Matrix {
    x.matrix().clone().gather(index(targets.iter().map(|target| target.position).collect()))
}

/// Rows of logits, (targets, vocabulary), and what was found out about them.
struct Rows<'a> {
    targets: &'a [Target],
    logits: Matrix,
    /// The largest logit of each.
    most: Tensor<(usize,), f32, Gpu>,
    /// exp(logit − the largest)
    raised: Matrix,
    /// Σ of these, (targets, 1).
    sums: Matrix,
}

impl<'a> Rows<'a> {
    fn of(targets: &'a [Target], logits: Matrix) -> Self {
        let shape = *logits.shape();
        let most: Tensor<(usize,), f32, Gpu> = logits.clone().max::<_, Axis<1>>();
        let raised = (logits.clone() - most.clone().broadcast_like::<_, Axis<1>>(&shape)).exp();
        let sums = sum_of_rows(raised.clone());
        Self { targets, logits, most, raised, sums }
    }

    /// The targets' own logits.
    fn logits(&self) -> Vec<f32> {
        let ids = index(self.targets.iter().map(|target| target.id as usize).collect());
        self.logits.clone().select(ids).as_vec()
    }

    /// The first token with the largest logit, of each row.
    fn first(&self) -> Vec<usize> {
        let shape = *self.logits.shape();
        let is_largest = self.logits.eq(&self.most.clone().broadcast_like::<_, Axis<1>>(&shape));
        // the earlier a token, the larger its number; these are exact up to 2^24
        let from_the_end = device().tensor_from_vec((0..shape.1).rev().map(|left| left as f32 + 1.0).collect(), (shape.1,));
        let none: Tensor<Rank0, f32, Gpu> = device().tensor_from_vec(vec![0.0], ());
        let places: Matrix =
            is_largest.choose(from_the_end.broadcast_like::<_, Axis<0>>(&shape), none.broadcast_like::<_, Axes2<0, 1>>(&shape));
        let largest: Tensor<(usize,), f32, Gpu> = places.max::<_, Axis<1>>();
        largest.as_vec().into_iter().map(|left| shape.1 - left as usize).collect()
    }

    /// scale · (p − 1 at the target)
    fn gradient(self, scale: f32) -> Matrix {
        let shape = *self.raised.shape();
        let p = self.raised * by_row(self.sums.recip() * scale, shape);
        let numbers = |of: Vec<f32>| -> Tensor<(usize,), f32, Gpu> {
            let len = of.len();
            device().tensor_from_vec(of, (len,))
        };
        let ids = numbers(self.targets.iter().map(|target| target.id as f32).collect());
        let all = numbers((0..shape.1).map(|id| id as f32).collect());
        let is_target = ids.broadcast_like::<_, Axis<1>>(&shape).eq(&all.broadcast_like::<_, Axis<0>>(&shape));
        is_target.choose(p.clone() - scale, p)
    }
}
