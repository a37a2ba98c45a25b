//! The way back of attention: probabilities are made again, tile by tile, from the scores and the kept normalisers.

use std::ops::Range;

use rayon::prelude::*;

use super::super::gemm::{
    MatrixView, OutputMode, Parallelism, matmul_single_thread, scaled_matmul,
};
use super::super::maths::{dot, exp};
use super::{PackedHeads, TILE_QUERIES};
use crate::ops::simd::{dispatch_simd, rows_per_task};
use crate::ops::{AttentionHeads, PackLayout};

/// The way back of one pack.
pub struct AttentionBackward<'a> {
    pub packed: &'a PackedHeads,
    pub outputs: &'a [f32],
    pub log_sum_exp: &'a [f32],
    /// The output's gradient.
    pub output_gradient: &'a [f32],
}

/// Gradients of one key/value head of one sequence and of the query heads that use it: (positions, dim) each.
struct HeadGradients {
    q: Vec<Vec<f32>>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl AttentionBackward<'_> {
    /// Gradients of rotated queries, of rotated keys, and of values, each as the projections laid them out.
    pub fn gradients(&self, layout: &PackLayout) -> [Vec<f32>; 3] {
        let heads = self.packed.heads;
        let parts: Vec<(Range<usize>, usize)> = layout
            .spans
            .iter()
            .flat_map(|span| (0..heads.key_value_heads).map(|key| (span.rows.clone(), key)))
            .collect();
        let parts: Vec<HeadGradients> = parts
            .into_par_iter()
            .map(|(sequence, key)| self.head_gradients(sequence, key))
            .collect();
        let join = |count: usize, heads_of: fn(&HeadGradients) -> &[Vec<f32>]| {
            join_heads(&parts, layout, heads, count, heads_of)
        };
        [
            join(heads.query_heads, |part| &part.q),
            join(heads.key_value_heads, |part| std::slice::from_ref(&part.k)),
            join(heads.key_value_heads, |part| std::slice::from_ref(&part.v)),
        ]
    }

    /// Scores of query rows with every key from the sequence's start to the tile's last row: (rows, keys), scaled.
    fn scores(&self, head: usize, start: usize, rows: &Range<usize>, to: &mut [f32]) {
        let (packed, keys) = (self.packed, rows.end - start);
        let key = packed.key_view(
            &packed.k,
            head / (packed.heads.query_heads / packed.heads.key_value_heads),
            start,
        );
        let shape = (rows.len(), keys, packed.heads.head_dim);
        let keys_across = MatrixView {
            data: key.data,
            row_stride: 1,
            col_stride: key.row_stride,
        };
        scaled_matmul(
            Parallelism::CurrentThread,
            packed.scale(),
            shape,
            to,
            keys,
            OutputMode::Overwrite,
            packed.query_view(head, rows.start),
            keys_across,
        );
    }

    fn head_gradients(&self, sequence: Range<usize>, key: usize) -> HeadGradients {
        let AttentionHeads {
            query_heads: queries,
            key_value_heads: keys,
            head_dim: dim,
        } = self.packed.heads;
        let (n, width, start) = (sequence.len(), queries * dim, sequence.start);
        let (mut dk, mut dv) = (vec![0.0; n * dim], vec![0.0; n * dim]);
        let mut p = vec![0.0; TILE_QUERIES.min(n) * n];
        let mut ds = p.clone();
        let group = queries / keys;
        let of_query = |head: usize| {
            let mut dq = vec![0.0; n * dim];
            for first in sequence.clone().step_by(TILE_QUERIES) {
                let rows = first..(first + TILE_QUERIES).min(sequence.end);
                let (tile, seen) = (rows.len(), rows.end - start);
                let (p, ds) = (&mut p[..tile * seen], &mut ds[..tile * seen]);
                self.scores(head, start, &rows, p);
                let at = first * width + head * dim;
                let delta = MatrixView::row_major(&self.output_gradient[at..], width);
                let v = self.packed.key_view(&self.packed.v, key, start);
                let v_across = MatrixView {
                    data: v.data,
                    row_stride: 1,
                    col_stride: v.row_stride,
                };
                matmul_single_thread(
                    (tile, seen, dim),
                    ds,
                    seen,
                    OutputMode::Overwrite,
                    delta,
                    v_across,
                );
                for (i, (p, ds)) in p
                    .chunks_exact_mut(seen)
                    .zip(ds.chunks_exact_mut(seen))
                    .enumerate()
                {
                    let own = at + i * width..at + i * width + dim;
                    let row = ScoreRow {
                        query_position: first - start + i,
                        log_sum_exp: self.log_sum_exp[(first + i) * queries + head],
                        output_gradient: &self.output_gradient[own.clone()],
                        output: &self.outputs[own],
                        scale: self.packed.scale(),
                    };
                    dispatch_simd(
                        #[inline(always)]
                        || softmax_backward(p, ds, row),
                    );
                }
                let (p_across, ds_across) = (
                    MatrixView::column_major(p, seen),
                    MatrixView::column_major(ds, seen),
                );
                matmul_single_thread(
                    (seen, dim, tile),
                    &mut dv,
                    dim,
                    OutputMode::Accumulate,
                    p_across,
                    delta,
                );
                let k = self.packed.key_view(&self.packed.k, key, start);
                let dq = &mut dq[(first - start) * dim..(first - start + tile) * dim];
                matmul_single_thread(
                    (tile, dim, seen),
                    dq,
                    dim,
                    OutputMode::Overwrite,
                    MatrixView::row_major(ds, seen),
                    k,
                );
                matmul_single_thread(
                    (seen, dim, tile),
                    &mut dk,
                    dim,
                    OutputMode::Accumulate,
                    ds_across,
                    self.packed.query_view(head, first),
                );
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
    query_position: usize,
    /// ln Σ exp(score)
    log_sum_exp: f32,
    /// The gradient of the head's output, and the output: (dim)
    output_gradient: &'a [f32],
    output: &'a [f32],
    scale: f32,
}

/// Scores → probabilities again; the probabilities' gradient → the unscaled scores'.
#[inline(always)]
fn softmax_backward(p: &mut [f32], ds: &mut [f32], row: ScoreRow<'_>) {
    let mean = dot(row.output_gradient, row.output);
    let ((p, p_future), (ds, ds_future)) = (
        p.split_at_mut(row.query_position + 1),
        ds.split_at_mut(row.query_position + 1),
    );
    for (p, ds) in p.iter_mut().zip(ds) {
        *p = exp(*p - row.log_sum_exp);
        *ds = *p * (*ds - mean) * row.scale;
    }
    p_future.fill(0.0);
    ds_future.fill(0.0);
}

/// The heads of every sequence beside each other again: (positions, count · dim). `parts` come sequence by sequence, key
/// head by key head.
fn join_heads(
    parts: &[HeadGradients],
    layout: &PackLayout,
    AttentionHeads {
        key_value_heads: keys,
        head_dim: dim,
        ..
    }: AttentionHeads,
    count: usize,
    heads_of: fn(&HeadGradients) -> &[Vec<f32>],
) -> Vec<f32> {
    let width = count * dim;
    let mut out = vec![
        0.0;
        layout
            .spans
            .iter()
            .map(|span| span.rows.len())
            .sum::<usize>()
            * width
    ];
    let mut left = &mut out[..];
    let mut sequences = Vec::new();
    for (span, parts) in layout.spans.iter().zip(parts.chunks_exact(keys)) {
        let own;
        (own, left) = left.split_at_mut(span.rows.len() * width);
        sequences.push((own, parts));
    }
    sequences.into_par_iter().for_each(|(own, parts)| {
        let heads: Vec<&Vec<f32>> = parts.iter().flat_map(heads_of).collect();
        own.par_chunks_mut(width)
            .enumerate()
            .with_min_len(rows_per_task(width))
            .for_each(|(t, row)| {
                for (to, head) in row.chunks_exact_mut(dim).zip(&heads) {
                    to.copy_from_slice(&head[t * dim..(t + 1) * dim]);
                }
            });
    });
    out
}
