//! The backward step of attention. For each query head of one sequence, Q, K, V, O and their
//! gradients are (positions, head_dim), S, P and their gradients (positions, positions). With
//! S = scale · Q · Kᵀ and L = ln Σ exp(S) of each row:
//!
//! - P = exp(S − L), recomputed from Q, K and the kept L;
//! - dP = dO · Vᵀ;
//! - dS = scale · P ∘ (dP − rowsum(dO ∘ O)), where rowsum(dO ∘ O) = rowsum(dP ∘ P), which needs no
//!   second pass over the keys;
//! - dQ = dS · K, dK = dSᵀ · Q, dV = Pᵀ · dO, with dK and dV summed over the query heads of the
//!   group.
//!
//! One core computes one key/value head of one sequence, a tile of queries at a time. dK and dV are
//! sums over the query heads of the group and over their tiles; as one core adds all of them, in
//! that order, the bits do not depend on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::super::gemm::{
    MatrixView, OutputMode, Parallelism, matmul_single_thread, scaled_matmul,
};
use super::super::maths::{dot, exp};
use super::forward::TILE_QUERIES;
use super::packed_heads::PackedHeads;
use crate::ops::layout::{AttentionHeads, PackLayout};
use crate::ops::simd::{dispatch_simd, rows_per_task};

/// The operands of the backward step of one pack.
pub(super) struct AttentionBackward<'a> {
    pub(super) packed: &'a PackedHeads,
    /// O, (rows, query_heads · head_dim)
    pub(super) outputs: &'a [f32],
    /// L, (rows, query_heads)
    pub(super) log_sum_exp: &'a [f32],
    /// dO, as `outputs`
    pub(super) output_gradient: &'a [f32],
}

/// Gradients of one key/value head of one sequence, and of the query heads that read it:
/// (positions, head_dim) each.
struct HeadGradients {
    q: Vec<Vec<f32>>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl AttentionBackward<'_> {
    /// Gradients of the rotated queries, of the rotated keys, and of the values, laid out as these.
    pub(super) fn gradients(&self, layout: &PackLayout) -> [Vec<f32>; 3] {
        let AttentionHeads {
            query_heads,
            key_value_heads,
            ..
        } = self.packed.heads;
        let tasks: Vec<(Range<usize>, usize)> = layout
            .spans
            .iter()
            .flat_map(|span| (0..key_value_heads).map(|key_head| (span.rows.clone(), key_head)))
            .collect();
        let head_gradients: Vec<HeadGradients> = tasks
            .into_par_iter()
            .map(|(sequence, key_head)| self.head_gradients(sequence, key_head))
            .collect();
        let join = |head_count: usize, select: fn(&HeadGradients) -> &[Vec<f32>]| {
            join_heads(
                &head_gradients,
                layout,
                self.packed.heads,
                head_count,
                select,
            )
        };
        [
            join(query_heads, |gradients| &gradients.q),
            join(key_value_heads, |gradients| {
                std::slice::from_ref(&gradients.k)
            }),
            join(key_value_heads, |gradients| {
                std::slice::from_ref(&gradients.v)
            }),
        ]
    }

    /// The gradients of one key/value head and its query heads, over the rows of one sequence.
    fn head_gradients(&self, sequence: Range<usize>, key_head: usize) -> HeadGradients {
        let (positions, head_dim) = (sequence.len(), self.packed.heads.head_dim);
        let mut key_gradient = vec![0.0; positions * head_dim];
        let mut value_gradient = vec![0.0; positions * head_dim];
        // Memory for P and dS of any tile, (tile rows, keys): at most TILE_QUERIES rows, and only
        // the keys up to the tile's last row.
        let mut p = vec![0.0; TILE_QUERIES.min(positions) * positions];
        let mut ds = p.clone();
        let group = self.packed.group_size();
        let mut query_gradients = Vec::with_capacity(group);
        for head in key_head * group..(key_head + 1) * group {
            let mut query_gradient = vec![0.0; positions * head_dim];
            for first in sequence.clone().step_by(TILE_QUERIES) {
                let rows = first..(first + TILE_QUERIES).min(sequence.end);
                let (tile_rows, keys) = (rows.len(), rows.end - sequence.start);
                let (p, ds) = (&mut p[..tile_rows * keys], &mut ds[..tile_rows * keys]);
                self.probabilities_and_score_gradients(head, sequence.start, &rows, p, ds);
                // dV += Pᵀ · dO
                matmul_single_thread(
                    (keys, head_dim, tile_rows),
                    &mut value_gradient,
                    head_dim,
                    OutputMode::Accumulate,
                    MatrixView::column_major(p, keys),
                    self.output_gradient_view(head, first),
                );
                // dQ = dS · K
                let tile_start = (first - sequence.start) * head_dim;
                matmul_single_thread(
                    (tile_rows, head_dim, keys),
                    &mut query_gradient[tile_start..tile_start + tile_rows * head_dim],
                    head_dim,
                    OutputMode::Overwrite,
                    MatrixView::row_major(ds, keys),
                    self.packed
                        .key_view(&self.packed.k, key_head, sequence.start),
                );
                // dK += dSᵀ · Q
                matmul_single_thread(
                    (keys, head_dim, tile_rows),
                    &mut key_gradient,
                    head_dim,
                    OutputMode::Accumulate,
                    MatrixView::column_major(ds, keys),
                    self.packed.query_view(head, first),
                );
            }
            query_gradients.push(query_gradient);
        }
        HeadGradients {
            q: query_gradients,
            k: key_gradient,
            v: value_gradient,
        }
    }

    /// Writes P and dS of a tile of query rows: (rows, keys), for the keys from the sequence's
    /// first row to the tile's last.
    fn probabilities_and_score_gradients(
        &self,
        head: usize,
        first_key: usize,
        rows: &Range<usize>,
        p: &mut [f32],
        ds: &mut [f32],
    ) {
        let AttentionHeads {
            query_heads,
            head_dim,
            ..
        } = self.packed.heads;
        let (keys, key_head) = (rows.end - first_key, head / self.packed.group_size());
        let shape = (rows.len(), keys, head_dim);
        // S = scale · Q · Kᵀ
        scaled_matmul(
            Parallelism::CurrentThread,
            self.packed.scale(),
            shape,
            p,
            keys,
            OutputMode::Overwrite,
            self.packed.query_view(head, rows.start),
            self.packed
                .key_view(&self.packed.k, key_head, first_key)
                .transposed(),
        );
        // dP = dO · Vᵀ
        matmul_single_thread(
            shape,
            ds,
            keys,
            OutputMode::Overwrite,
            self.output_gradient_view(head, rows.start),
            self.packed
                .key_view(&self.packed.v, key_head, first_key)
                .transposed(),
        );
        let width = query_heads * head_dim;
        let score_rows = p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys));
        for (row, (p, ds)) in rows.clone().zip(score_rows) {
            let head_start = row * width + head * head_dim;
            let channels = head_start..head_start + head_dim;
            let score_row = ScoreRow {
                query_position: row - first_key,
                log_sum_exp: self.log_sum_exp[row * query_heads + head],
                output_gradient: &self.output_gradient[channels.clone()],
                output: &self.outputs[channels],
                scale: self.packed.scale(),
            };
            dispatch_simd(
                #[inline(always)]
                || softmax_backward(p, ds, score_row),
            );
        }
    }

    /// dO of a head from a row on: (rows, head_dim).
    fn output_gradient_view(&self, head: usize, first_row: usize) -> MatrixView<'_> {
        let AttentionHeads {
            query_heads,
            head_dim,
            ..
        } = self.packed.heads;
        let width = query_heads * head_dim;
        MatrixView::row_major(
            &self.output_gradient[first_row * width + head * head_dim..],
            width,
        )
    }
}

/// What [`softmax_backward`] needs of one row of scores.
#[derive(Clone, Copy)]
struct ScoreRow<'a> {
    /// Position of the query in its sequence.
    query_position: usize,
    /// ln Σ exp(score)
    log_sum_exp: f32,
    /// dO of the head, (head_dim)
    output_gradient: &'a [f32],
    /// O of the head, (head_dim)
    output: &'a [f32],
    scale: f32,
}

/// Computes one row in place. `p` holds S and becomes P = exp(S − L); `ds` holds dP and becomes
/// dS = scale · P ∘ (dP − Σ dO∘O). Both are 0 for keys after the query.
#[inline(always)]
fn softmax_backward(p: &mut [f32], ds: &mut [f32], row: ScoreRow<'_>) {
    // Σ dO∘O = Σ_j P_j · dP_j: the mean of dP under the probabilities P.
    let mean_gradient = dot(row.output_gradient, row.output);
    let (p_visible, p_future) = p.split_at_mut(row.query_position + 1);
    let (ds_visible, ds_future) = ds.split_at_mut(row.query_position + 1);
    for (p, ds) in p_visible.iter_mut().zip(ds_visible) {
        *p = exp(*p - row.log_sum_exp);
        *ds = *p * (*ds - mean_gradient) * row.scale;
    }
    p_future.fill(0.0);
    ds_future.fill(0.0);
}

/// Puts the heads of every sequence beside each other: (rows, head_count · head_dim).
/// `head_gradients` are in the order of the sequences, and of the key/value heads within each;
/// `select` returns the heads of one.
fn join_heads(
    head_gradients: &[HeadGradients],
    layout: &PackLayout,
    heads: AttentionHeads,
    head_count: usize,
    select: fn(&HeadGradients) -> &[Vec<f32>],
) -> Vec<f32> {
    let (width, head_dim) = (head_count * heads.head_dim, heads.head_dim);
    let rows: usize = layout.spans.iter().map(|span| span.rows.len()).sum();
    let mut joined = vec![0.0; rows * width];
    let mut remaining = &mut joined[..];
    let mut sequences = Vec::new();
    let by_sequence = head_gradients.chunks_exact(heads.key_value_heads);
    for (span, gradients) in layout.spans.iter().zip(by_sequence) {
        let sequence_rows;
        (sequence_rows, remaining) = remaining.split_at_mut(span.rows.len() * width);
        sequences.push((sequence_rows, gradients));
    }
    sequences
        .into_par_iter()
        .for_each(|(sequence_rows, gradients)| {
            let heads: Vec<&Vec<f32>> = gradients.iter().flat_map(select).collect();
            sequence_rows
                .par_chunks_mut(width)
                .enumerate()
                .with_min_len(rows_per_task(width))
                .for_each(|(position, row)| {
                    let elements = position * head_dim..(position + 1) * head_dim;
                    for (channels, head) in row.chunks_exact_mut(head_dim).zip(&heads) {
                        channels.copy_from_slice(&head[elements.clone()]);
                    }
                });
        });
    joined
}
