//! The way back of attention: probabilities are made again, tile by tile, from the scores and the kept normalisers.

use std::ops::Range;

use rayon::prelude::*;

use super::super::gemm::{Cores, Into, View, product_here, scaled_product};
use super::super::maths::{dot, exp};
use super::{Packed, TILE};
use crate::ops::simd::{rows_per_task, vectorised};
use crate::ops::{Heads, Layout};

/// The way back of one pack.
pub struct Back<'a> {
    pub packed: &'a Packed,
    pub outputs: &'a [f32],
    pub normalisers: &'a [f32],
    /// The output's gradient.
    pub delta: &'a [f32],
}

/// Gradients of one key/value head of one sequence and of the query heads that use it: (positions, dim) each.
struct HeadGradients {
    q: Vec<Vec<f32>>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Back<'_> {
    /// Gradients of rotated queries, of rotated keys, and of values, each as the projections laid them out.
    pub fn gradients(&self, layout: &Layout) -> [Vec<f32>; 3] {
        let heads = self.packed.heads;
        let parts: Vec<(Range<usize>, usize)> =
            layout.spans.iter().flat_map(|span| (0..heads.keys).map(|key| (span.rows.clone(), key))).collect();
        let parts: Vec<HeadGradients> = parts.into_par_iter().map(|(sequence, key)| self.head(sequence, key)).collect();
        let join = |count: usize, heads_of: fn(&HeadGradients) -> &[Vec<f32>]| join(&parts, layout, heads, count, heads_of);
        [
            join(heads.queries, |part| &part.q),
            join(heads.keys, |part| std::slice::from_ref(&part.k)),
            join(heads.keys, |part| std::slice::from_ref(&part.v)),
        ]
    }

    /// Scores of query rows with every key from the sequence's start to the tile's last row: (rows, keys), scaled.
    fn scores(&self, head: usize, start: usize, rows: &Range<usize>, to: &mut [f32]) {
        let (packed, keys) = (self.packed, rows.end - start);
        let key = packed.key(&packed.k, head / (packed.heads.queries / packed.heads.keys), start);
        let shape = (rows.len(), keys, packed.heads.dim);
        let keys_across = View { data: key.data, row: 1, col: key.row };
        scaled_product(Cores::One, packed.scale(), shape, to, keys, Into::Fresh, packed.query(head, rows.start), keys_across);
    }

    fn head(&self, sequence: Range<usize>, key: usize) -> HeadGradients {
        let Heads { queries, keys, dim } = self.packed.heads;
        let (n, width, start) = (sequence.len(), queries * dim, sequence.start);
        let (mut dk, mut dv) = (vec![0.0; n * dim], vec![0.0; n * dim]);
        let mut p = vec![0.0; TILE.min(n) * n];
        let mut ds = p.clone();
        let group = queries / keys;
        let of_query = |head: usize| {
            let mut dq = vec![0.0; n * dim];
            for first in sequence.clone().step_by(TILE) {
                let rows = first..(first + TILE).min(sequence.end);
                let (tile, seen) = (rows.len(), rows.end - start);
                let (p, ds) = (&mut p[..tile * seen], &mut ds[..tile * seen]);
                self.scores(head, start, &rows, p);
                let at = first * width + head * dim;
                let delta = View::rows(&self.delta[at..], width);
                let v = self.packed.key(&self.packed.v, key, start);
                let v_across = View { data: v.data, row: 1, col: v.row };
                product_here((tile, seen, dim), ds, seen, Into::Fresh, delta, v_across);
                for (i, (p, ds)) in p.chunks_exact_mut(seen).zip(ds.chunks_exact_mut(seen)).enumerate() {
                    let own = at + i * width..at + i * width + dim;
                    let row = ScoreRow {
                        at: first - start + i,
                        normaliser: self.normalisers[(first + i) * queries + head],
                        delta: &self.delta[own.clone()],
                        output: &self.outputs[own],
                        scale: self.packed.scale(),
                    };
                    vectorised(
                        #[inline(always)]
                        || softmax_backward(p, ds, row),
                    );
                }
                let (p_across, ds_across) = (View::transposed(p, seen), View::transposed(ds, seen));
                product_here((seen, dim, tile), &mut dv, dim, Into::Sum, p_across, delta);
                let k = self.packed.key(&self.packed.k, key, start);
                let dq = &mut dq[(first - start) * dim..(first - start + tile) * dim];
                product_here((tile, dim, seen), dq, dim, Into::Fresh, View::rows(ds, seen), k);
                product_here((seen, dim, tile), &mut dk, dim, Into::Sum, ds_across, self.packed.query(head, first));
            }
            dq
        };
        let q = (key * group..(key + 1) * group).map(of_query).collect();
        HeadGradients { q, k: dk, v: dv }
    }
}

/// What the way back of one row of scores needs to know.
#[derive(Clone, Copy)]
struct ScoreRow<'a> {
    /// Position of the query in its sequence.
    at: usize,
    /// ln Σ exp(score)
    normaliser: f32,
    /// The gradient of the head's output, and the output: (dim)
    delta: &'a [f32],
    output: &'a [f32],
    scale: f32,
}

/// Scores → probabilities again; the probabilities' gradient → the unscaled scores'.
#[inline(always)]
fn softmax_backward(p: &mut [f32], ds: &mut [f32], row: ScoreRow<'_>) {
    let mean = dot(row.delta, row.output);
    let ((p, p_future), (ds, ds_future)) = (p.split_at_mut(row.at + 1), ds.split_at_mut(row.at + 1));
    for (p, ds) in p.iter_mut().zip(ds) {
        *p = exp(*p - row.normaliser);
        *ds = *p * (*ds - mean) * row.scale;
    }
    p_future.fill(0.0);
    ds_future.fill(0.0);
}

/// The heads of every sequence beside each other again: (positions, count · dim). `parts` come sequence by sequence, key
/// head by key head.
fn join(
    parts: &[HeadGradients],
    layout: &Layout,
    Heads { keys, dim, .. }: Heads,
    count: usize,
    heads_of: fn(&HeadGradients) -> &[Vec<f32>],
) -> Vec<f32> {
    let width = count * dim;
    let mut out = vec![0.0; layout.spans.iter().map(|span| span.rows.len()).sum::<usize>() * width];
    let mut left = &mut out[..];
    let mut sequences = Vec::new();
    for (span, parts) in layout.spans.iter().zip(parts.chunks_exact(keys)) {
        let own;
        (own, left) = left.split_at_mut(span.rows.len() * width);
        sequences.push((own, parts));
    }
    sequences.into_par_iter().for_each(|(own, parts)| {
        let heads: Vec<&Vec<f32>> = parts.iter().flat_map(heads_of).collect();
        own.par_chunks_mut(width).enumerate().with_min_len(rows_per_task(width)).for_each(|(t, row)| {
            for (to, head) in row.chunks_exact_mut(dim).zip(&heads) {
                to.copy_from_slice(&head[t * dim..(t + 1) * dim]);
            }
        });
    });
    out
}
