//! Causal attention with rotary positions and grouped queries over packed sequences, fused, on the CPU (Vaswani et al. 2017;
//! Ainslie et al. 2023 for the groups; in tiles and with recomputed probabilities as in FlashAttention, Dao et al. 2022).
//! A tile of queries meets all keys before it at once, so its softmax is exact and memory grows with the length, not its
//! square.
//!
//! Keys before a span may lie elsewhere in the pack (sequences that share their beginning) or in a [`Past`] (a cache). A
//! row's bits depend on its own query and the keys and values up to it, and on nothing else: not on where these lie, on what
//! shares its tile, or on what follows.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::gemm::{
    MIN_STABLE_ROWS, MatrixView, OutputMode, Parallelism, SMALL_PRODUCT_ELEMENTS, SUM_CHUNK_TERMS,
    matmul_single_thread, scaled_matmul,
};
use super::maths::{exp, max_or_nan, sum_f32};
use crate::AnyTape;
use crate::activations::cpu::{CpuActivations, activations_from_vec};
use crate::ops::simd::{dispatch_simd, rows_per_task};
use crate::ops::{AttentionHeads, PackLayout, RotaryTables, SequenceSpan};

mod backward;

/// Queries of a tile.
const TILE_QUERIES: usize = 64;

/// See [`crate::ops::attention`].
pub fn attention<T: AnyTape>(
    q: CpuActivations<T>,
    k: CpuActivations<T>,
    v: CpuActivations<T>,
    heads: AttentionHeads,
    layout: &PackLayout,
    past: Option<&mut CpuKvCache>,
) -> CpuActivations<T> {
    let (q, tape) = q.split_tape();
    let (k, k_tape) = k.split_tape();
    let (v, v_tape) = v.split_tape();
    let mut tape = tape.merge(k_tape).merge(v_tape);
    let (n, width) = *q.shape();
    let (q_node, k_node, v_node) = (q.node(), k.node(), v.node());
    let read = |span: &SequenceSpan| {
        past.as_deref()
            .map_or(0, |past| past.len(span.cache_sequence))
    };
    let starts: Vec<usize> = layout
        .spans
        .iter()
        .map(|span| span.first_position(read(span)))
        .collect();
    let packed = PackedHeads {
        q: apply_rotary(q.into_vec(), width, heads.head_dim, layout, &starts, 1.0),
        k: apply_rotary(
            k.into_vec(),
            heads.key_value_heads * heads.head_dim,
            heads.head_dim,
            layout,
            &starts,
            1.0,
        ),
        v: v.shared_values(),
        heads,
    };
    let past = past.map(|past| packed.append(layout, past));
    let mut outputs = vec![0.0; n * width];
    let mut normalisers = vec![0.0; n * heads.query_heads]; // ln Σ exp(score), (positions, queries)
    let mut tasks = Vec::new();
    let (mut o_left, mut z_left) = (&mut outputs[..], &mut normalisers[..]);
    for (span, start) in layout.spans.iter().zip(starts) {
        let before = match past {
            Some(past) => Prefix::Cached(&past.sequences[span.cache_sequence]),
            None if span.prefix.is_empty() => Prefix::Empty,
            None => Prefix::SharedRows(&span.prefix),
        };
        // what must be gathered is gathered once
        let step = if matches!(before, Prefix::SharedRows(_)) {
            span.rows.len().max(1)
        } else {
            TILE_QUERIES
        };
        for first in span.rows.clone().step_by(step) {
            let rows = first..(first + step).min(span.rows.end);
            let (o, z);
            (o, o_left) = o_left.split_at_mut(rows.len() * width);
            (z, z_left) = z_left.split_at_mut(rows.len() * heads.query_heads);
            tasks.push((
                AttentionTask {
                    prefix: before,
                    span_first_row: span.rows.start,
                    first_position: start,
                    rows,
                },
                o,
                z,
            ));
        }
    }
    tasks
        .into_par_iter()
        .for_each(|(task, o, z)| packed.attend(&task, o, z));
    let o = activations_from_vec(outputs, n, width);
    if !T::OWNS_TAPE {
        return o.put_tape(tape);
    }

    assert!(
        past.is_none() && layout.spans.iter().all(|span| span.prefix.is_empty()),
        "there is no way back to what is shared"
    );
    let (o_node, o_values, layout) = (o.node(), o.shared_values(), layout.clone());
    tape.add_backward_op(move |gradients| {
        let delta = o_node.take_gradient(gradients)?;
        let back = backward::AttentionBackward {
            packed: &packed,
            outputs: &o_values,
            log_sum_exp: &normalisers,
            output_gradient: &delta,
        };
        let [dq, dk, dv] = back.gradients(&layout);
        let starts = vec![0; layout.spans.len()];
        q_node.add_gradient(
            gradients,
            apply_rotary(dq, width, heads.head_dim, &layout, &starts, -1.0),
        )?;
        k_node.add_gradient(
            gradients,
            apply_rotary(
                dk,
                heads.key_value_heads * heads.head_dim,
                heads.head_dim,
                &layout,
                &starts,
                -1.0,
            ),
        )?;
        v_node.add_gradient(gradients, dv)
    });
    o.put_tape(tape)
}

/// Keys, rotated, and values of what was read before, sequence by sequence: a layer's part of a KV cache.
#[derive(Clone, Debug)]
pub struct CpuKvCache {
    /// (positions, keys · dim) each.
    sequences: Vec<(Vec<f32>, Vec<f32>)>,
    /// keys · dim
    row_width: usize,
}

impl CpuKvCache {
    /// Of so many sequences nothing was read; keys and values of a position have so many numbers each.
    pub fn new(sequences: usize, width: usize) -> Self {
        Self {
            sequences: vec![(Vec::new(), Vec::new()); sequences],
            row_width: width,
        }
    }

    /// Positions of a sequence.
    fn len(&self, sequence: usize) -> usize {
        self.sequences[sequence].0.len() / self.row_width
    }
}

/// Rotated queries and keys, and values, as the projections laid them out.
struct PackedHeads {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Arc<Vec<f32>>,
    heads: AttentionHeads,
}

/// What stands before a span's first row, in its sequence.
#[derive(Clone, Copy)]
enum Prefix<'a> {
    Empty,
    /// These rows of the pack.
    SharedRows(&'a [Range<usize>]),
    /// A cache, which the span's own rows have been added to.
    Cached(&'a (Vec<f32>, Vec<f32>)),
}

/// Some rows of a span.
struct AttentionTask<'a> {
    prefix: Prefix<'a>,
    /// The span's first row.
    span_first_row: usize,
    /// Its position in its sequence.
    first_position: usize,
    rows: Range<usize>,
}

impl PackedHeads {
    fn scale(&self) -> f32 {
        1.0 / (self.heads.head_dim as f32).sqrt()
    }

    /// The rows of a query head from a position on.
    fn query_view(&self, of: usize, from: usize) -> MatrixView<'_> {
        let width = self.heads.query_heads * self.heads.head_dim;
        MatrixView::row_major(&self.q[from * width + of * self.heads.head_dim..], width)
    }

    /// The same of a key head.
    fn key_view<'a>(&self, values: &'a [f32], of: usize, from: usize) -> MatrixView<'a> {
        let width = self.heads.key_value_heads * self.heads.head_dim;
        MatrixView::row_major(&values[from * width + of * self.heads.head_dim..], width)
    }

    /// Adds the rows of every span to what is remembered of its sequence.
    fn append<'p>(&self, layout: &PackLayout, past: &'p mut CpuKvCache) -> &'p CpuKvCache {
        let width = self.heads.key_value_heads * self.heads.head_dim;
        for span in layout.spans.iter() {
            let (keys, values) = &mut past.sequences[span.cache_sequence];
            let own = span.rows.start * width..span.rows.end * width;
            keys.extend(&self.k[own.clone()]);
            values.extend(&self.v[own]);
        }
        past
    }

    /// All heads of some rows; o is (rows, queries · dim), z is (rows, queries).
    fn attend(&self, task: &AttentionTask<'_>, o: &mut [f32], z: &mut [f32]) {
        let queries = self.heads.query_heads;
        let (keys, values) = self.gather_keys_values(task);
        for first in task.rows.clone().step_by(TILE_QUERIES) {
            let rows = first..(first + TILE_QUERIES).min(task.rows.end);
            let at = first - task.rows.start;
            let (o, z) = (
                &mut o[at * queries * self.heads.head_dim..],
                &mut z[at * queries..],
            );
            self.attend_tile(
                (&keys, &values),
                task.first_position + first - task.span_first_row,
                rows,
                o,
                z,
            );
        }
    }

    /// Keys and values from a sequence's beginning to the task's last row, at least [`FEWEST_ROWS`] of them: as they lie, or
    /// brought together.
    fn gather_keys_values<'a>(
        &'a self,
        task: &AttentionTask<'a>,
    ) -> (Cow<'a, [f32]>, Cow<'a, [f32]>) {
        let width = self.heads.key_value_heads * self.heads.head_dim;
        let seen = task.first_position + task.rows.end - task.span_first_row;
        let shared: &[Range<usize>] = if let Prefix::SharedRows(rows) = task.prefix {
            rows
        } else {
            &[]
        };
        let (keys, values, own) = match task.prefix {
            Prefix::Cached((keys, values)) => (&keys[..], &values[..], 0..seen),
            Prefix::Empty | Prefix::SharedRows(_) => {
                (&self.k[..], &self.v[..], task.span_first_row..task.rows.end)
            }
        };
        let together = |from: &'a [f32]| {
            if shared.is_empty() && seen >= MIN_STABLE_ROWS {
                return Cow::Borrowed(&from[own.start * width..]);
            }
            let mut all = Vec::with_capacity(seen.max(MIN_STABLE_ROWS) * width);
            for rows in shared.iter().chain(std::iter::once(&own)) {
                all.extend_from_slice(&from[rows.start * width..rows.end * width]);
            }
            all.resize(seen.max(MIN_STABLE_ROWS) * width, 0.0);
            Cow::Owned(all)
        };
        (together(keys), together(values))
    }

    /// A tile of rows, the first of which stands at `position`; k and v begin at position 0 and hold at least [`FEWEST_ROWS`].
    fn attend_tile(
        &self,
        (k, v): (&[f32], &[f32]),
        position: usize,
        rows: Range<usize>,
        o: &mut [f32],
        z: &mut [f32],
    ) {
        let AttentionHeads {
            query_heads: queries,
            key_value_heads: keys,
            head_dim: dim,
        } = self.heads;
        let (n, seen) = (
            rows.len().max(MIN_STABLE_ROWS),
            (position + rows.len()).max(MIN_STABLE_ROWS),
        );
        // gemm sums one or two terms in a way of its own, and the last part of a long sum may be that short: it is padded
        let (last, few_keys) = (
            seen / SUM_CHUNK_TERMS * SUM_CHUNK_TERMS,
            matches!(seen % SUM_CHUNK_TERMS, 1 | 2),
        );
        let stride = if few_keys {
            last + MIN_STABLE_ROWS
        } else {
            seen
        };
        let mut few_v = if few_keys {
            v[last * keys * dim..seen * keys * dim].to_vec()
        } else {
            Vec::new()
        };
        few_v.resize(
            if few_keys {
                MIN_STABLE_ROWS * keys * dim
            } else {
                0
            },
            0.0,
        );
        let mut p = vec![0.0; n * stride];
        // few rows are brought to where gemm sums as it does for many: padded, and a small product with its queries transposed
        let few = if rows.len() < n || n * seen <= SMALL_PRODUCT_ELEMENTS {
            n * dim
        } else {
            0
        };
        let (mut few_q, mut few_o) = (vec![0.0; few], vec![0.0; few]);
        for head in 0..queries {
            let (mut q, own) = (self.query_view(head, rows.start), head / (queries / keys));
            for (c, column) in few_q.chunks_exact_mut(n).enumerate() {
                column
                    .iter_mut()
                    .take(rows.len())
                    .enumerate()
                    .for_each(|(i, to)| *to = q.data[i * q.row_stride + c]);
            }
            if few > 0 {
                q = MatrixView::column_major(&few_q, n);
            }
            let key = self.key_view(k, own, 0);
            let across = MatrixView {
                data: key.data,
                row_stride: 1,
                col_stride: key.row_stride,
            };
            scaled_matmul(
                Parallelism::CurrentThread,
                self.scale(),
                (n, seen, dim),
                &mut p,
                stride,
                OutputMode::Overwrite,
                q,
                across,
            );
            let normalisers = z.iter_mut().skip(head).step_by(queries);
            for (i, (row, z)) in p
                .chunks_exact_mut(stride)
                .take(rows.len())
                .zip(normalisers)
                .enumerate()
            {
                *z = dispatch_simd(
                    #[inline(always)]
                    || causal_softmax(row, position + i),
                );
            }
            let (to, apart) = if few_o.is_empty() {
                (&mut o[head * dim..], queries * dim)
            } else {
                (&mut few_o[..], dim)
            };
            for part in (0..stride).step_by(SUM_CHUNK_TERMS) {
                let length = SUM_CHUNK_TERMS.min(stride - part);
                let into = if part == 0 {
                    OutputMode::Overwrite
                } else {
                    OutputMode::Accumulate
                };
                let values = if few_keys && part == last {
                    self.key_view(&few_v, own, 0)
                } else {
                    self.key_view(v, own, part)
                };
                matmul_single_thread(
                    (n, dim, length),
                    to,
                    apart,
                    into,
                    MatrixView::row_major(&p[part..], stride),
                    values,
                );
            }
            for (i, row) in few_o.chunks_exact(dim).take(rows.len()).enumerate() {
                o[(i * queries + head) * dim..][..dim].copy_from_slice(row);
            }
        }
    }
}

/// Row i of the scores → probabilities over keys 0..=i; the future gets 0. Returns ln Σ exp(score).
#[inline(always)]
fn causal_softmax(row: &mut [f32], i: usize) -> f32 {
    let (seen, future) = row.split_at_mut(i + 1);
    let most = max_or_nan(seen);
    for s in seen.iter_mut() {
        *s = exp(*s - most);
    }
    let sum = sum_f32(seen);
    let inverse = 1.0 / sum;
    for s in seen.iter_mut() {
        *s *= inverse;
    }
    future.fill(0.0);
    most + sum.ln()
}

/// Turns the pairs (i, i + half) of every head of every row by its position's angles; `starts` are the positions of the
/// spans' first rows; `direction` −1 turns back.
fn apply_rotary(
    mut x: Vec<f32>,
    width: usize,
    dim: usize,
    layout: &PackLayout,
    starts: &[usize],
    direction: f32,
) -> Vec<f32> {
    let positions: Vec<usize> = layout
        .spans
        .iter()
        .zip(starts)
        .flat_map(|(span, &start)| (0..span.rows.len()).map(move |i| start + i))
        .collect();
    let task = rows_per_task(width);
    x.par_chunks_mut(task * width)
        .zip(positions.par_chunks(task))
        .for_each(|(rows, positions)| {
            for (row, &position) in rows.chunks_exact_mut(width).zip(positions) {
                dispatch_simd(
                    #[inline(always)]
                    || rotate_row(row, dim, &layout.rotary, position, direction),
                );
            }
        });
    x
}

#[inline(always)]
fn rotate_row(row: &mut [f32], dim: usize, rotary: &RotaryTables, position: usize, direction: f32) {
    let half = rotary.half_dim;
    let at = position * half..(position + 1) * half;
    let (cos, sin) = (&rotary.cos[at.clone()], &rotary.sin[at]);
    for head in row.chunks_exact_mut(dim) {
        let (low, high) = head.split_at_mut(half);
        for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            let sin = sin * direction;
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}
