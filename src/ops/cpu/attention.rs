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

use super::gemm::{Cores, FEWEST_ROWS, Into, LONGEST_SUM, SMALLEST, View, product_here, scaled_product};
use super::maths::{exp, largest, total};
use crate::ops::simd::{rows_per_task, vectorised};
use crate::ops::{Heads, Layout, Rotary, Span};
use crate::tensor::AnyTape;
use crate::tensor::cpu::{Hidden, hidden};

mod backward;

/// Queries of a tile.
const TILE: usize = 64;

/// See [`crate::ops::attention`].
pub fn attention<T: AnyTape>(
    q: Hidden<T>,
    k: Hidden<T>,
    v: Hidden<T>,
    heads: Heads,
    layout: &Layout,
    past: Option<&mut Past>,
) -> Hidden<T> {
    let (q, tape) = q.split_tape();
    let (k, k_tape) = k.split_tape();
    let (v, v_tape) = v.split_tape();
    let mut tape = tape.merge(k_tape).merge(v_tape);
    let (n, width) = *q.shape();
    let (q_node, k_node, v_node) = (q.node(), k.node(), v.node());
    let read = |span: &Span| past.as_deref().map_or(0, |past| past.len(span.past));
    let starts: Vec<usize> = layout.spans.iter().map(|span| span.start(read(span))).collect();
    let packed = Packed {
        q: turned(q.into_vec(), width, heads.dim, layout, &starts, 1.0),
        k: turned(k.into_vec(), heads.keys * heads.dim, heads.dim, layout, &starts, 1.0),
        v: v.shared(),
        heads,
    };
    let past = past.map(|past| packed.remember(layout, past));
    let mut outputs = vec![0.0; n * width];
    let mut normalisers = vec![0.0; n * heads.queries]; // ln Σ exp(score), (positions, queries)
    let mut tasks = Vec::new();
    let (mut o_left, mut z_left) = (&mut outputs[..], &mut normalisers[..]);
    for (span, start) in layout.spans.iter().zip(starts) {
        let before = match past {
            Some(past) => Before::Remembered(&past.sequences[span.past]),
            None if span.before.is_empty() => Before::Nothing,
            None => Before::Shared(&span.before),
        };
        // what must be gathered is gathered once
        let step = if matches!(before, Before::Shared(_)) { span.rows.len().max(1) } else { TILE };
        for first in span.rows.clone().step_by(step) {
            let rows = first..(first + step).min(span.rows.end);
            let (o, z);
            (o, o_left) = o_left.split_at_mut(rows.len() * width);
            (z, z_left) = z_left.split_at_mut(rows.len() * heads.queries);
            tasks.push((Task { before, span: span.rows.start, start, rows }, o, z));
        }
    }
    tasks.into_par_iter().for_each(|(task, o, z)| packed.forward(&task, o, z));
    let o = hidden(outputs, n, width);
    if !T::OWNS_TAPE {
        return o.put_tape(tape);
    }

    assert!(past.is_none() && layout.spans.iter().all(|span| span.before.is_empty()), "there is no way back to what is shared");
    let (o_node, o_values, layout) = (o.node(), o.shared(), layout.clone());
    tape.add_backward_op(move |gradients| {
        let delta = o_node.take(gradients)?;
        let back = backward::Back { packed: &packed, outputs: &o_values, normalisers: &normalisers, delta: &delta };
        let [dq, dk, dv] = back.gradients(&layout);
        let starts = vec![0; layout.spans.len()];
        q_node.add(gradients, turned(dq, width, heads.dim, &layout, &starts, -1.0))?;
        k_node.add(gradients, turned(dk, heads.keys * heads.dim, heads.dim, &layout, &starts, -1.0))?;
        v_node.add(gradients, dv)
    });
    o.put_tape(tape)
}

/// Keys, rotated, and values of what was read before, sequence by sequence: a layer's part of a KV cache.
#[derive(Clone, Debug)]
pub struct Past {
    /// (positions, keys · dim) each.
    sequences: Vec<(Vec<f32>, Vec<f32>)>,
    /// keys · dim
    width: usize,
}

impl Past {
    /// Of so many sequences nothing was read; keys and values of a position have so many numbers each.
    pub fn new(sequences: usize, width: usize) -> Self {
        Self { sequences: vec![(Vec::new(), Vec::new()); sequences], width }
    }

    /// Positions of a sequence.
    fn len(&self, sequence: usize) -> usize {
        self.sequences[sequence].0.len() / self.width
    }
}

/// Rotated queries and keys, and values, as the projections laid them out.
struct Packed {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Arc<Vec<f32>>,
    heads: Heads,
}

/// What stands before a span's first row, in its sequence.
#[derive(Clone, Copy)]
enum Before<'a> {
    Nothing,
    /// These rows of the pack.
    Shared(&'a [Range<usize>]),
    /// A cache, which the span's own rows have been added to.
    Remembered(&'a (Vec<f32>, Vec<f32>)),
}

/// Some rows of a span.
struct Task<'a> {
    before: Before<'a>,
    /// The span's first row.
    span: usize,
    /// Its position in its sequence.
    start: usize,
    rows: Range<usize>,
}

impl Packed {
    fn scale(&self) -> f32 {
        1.0 / (self.heads.dim as f32).sqrt()
    }

    /// The rows of a query head from a position on.
    fn query(&self, of: usize, from: usize) -> View<'_> {
        let width = self.heads.queries * self.heads.dim;
        View::rows(&self.q[from * width + of * self.heads.dim..], width)
    }

    /// The same of a key head.
    fn key<'a>(&self, values: &'a [f32], of: usize, from: usize) -> View<'a> {
        let width = self.heads.keys * self.heads.dim;
        View::rows(&values[from * width + of * self.heads.dim..], width)
    }

    /// Adds the rows of every span to what is remembered of its sequence.
    fn remember<'p>(&self, layout: &Layout, past: &'p mut Past) -> &'p Past {
        let width = self.heads.keys * self.heads.dim;
        for span in layout.spans.iter() {
            let (keys, values) = &mut past.sequences[span.past];
            let own = span.rows.start * width..span.rows.end * width;
            keys.extend(&self.k[own.clone()]);
            values.extend(&self.v[own]);
        }
        past
    }

    /// All heads of some rows; o is (rows, queries · dim), z is (rows, queries).
    fn forward(&self, task: &Task<'_>, o: &mut [f32], z: &mut [f32]) {
        let queries = self.heads.queries;
        let (keys, values) = self.seen_by(task);
        for first in task.rows.clone().step_by(TILE) {
            let rows = first..(first + TILE).min(task.rows.end);
            let at = first - task.rows.start;
            let (o, z) = (&mut o[at * queries * self.heads.dim..], &mut z[at * queries..]);
            self.tile((&keys, &values), task.start + first - task.span, rows, o, z);
        }
    }

    /// Keys and values from a sequence's beginning to the task's last row, at least [`FEWEST_ROWS`] of them: as they lie, or
    /// brought together.
    fn seen_by<'a>(&'a self, task: &Task<'a>) -> (Cow<'a, [f32]>, Cow<'a, [f32]>) {
        let width = self.heads.keys * self.heads.dim;
        let seen = task.start + task.rows.end - task.span;
        let shared: &[Range<usize>] = if let Before::Shared(rows) = task.before { rows } else { &[] };
        let (keys, values, own) = match task.before {
            Before::Remembered((keys, values)) => (&keys[..], &values[..], 0..seen),
            Before::Nothing | Before::Shared(_) => (&self.k[..], &self.v[..], task.span..task.rows.end),
        };
        let together = |from: &'a [f32]| {
            if shared.is_empty() && seen >= FEWEST_ROWS {
                return Cow::Borrowed(&from[own.start * width..]);
            }
            let mut all = Vec::with_capacity(seen.max(FEWEST_ROWS) * width);
            for rows in shared.iter().chain(std::iter::once(&own)) {
                all.extend_from_slice(&from[rows.start * width..rows.end * width]);
            }
            all.resize(seen.max(FEWEST_ROWS) * width, 0.0);
            Cow::Owned(all)
        };
        (together(keys), together(values))
    }

    /// A tile of rows, the first of which stands at `position`; k and v begin at position 0 and hold at least [`FEWEST_ROWS`].
    fn tile(&self, (k, v): (&[f32], &[f32]), position: usize, rows: Range<usize>, o: &mut [f32], z: &mut [f32]) {
        let Heads { queries, keys, dim } = self.heads;
        let (n, seen) = (rows.len().max(FEWEST_ROWS), (position + rows.len()).max(FEWEST_ROWS));
        // gemm sums one or two terms in a way of its own, and the last part of a long sum may be that short: it is padded
        let (last, few_keys) = (seen / LONGEST_SUM * LONGEST_SUM, matches!(seen % LONGEST_SUM, 1 | 2));
        let stride = if few_keys { last + FEWEST_ROWS } else { seen };
        let mut few_v = if few_keys { v[last * keys * dim..seen * keys * dim].to_vec() } else { Vec::new() };
        few_v.resize(if few_keys { FEWEST_ROWS * keys * dim } else { 0 }, 0.0);
        let mut p = vec![0.0; n * stride];
        // few rows are brought to where gemm sums as it does for many: padded, and a small product with its queries transposed
        let few = if rows.len() < n || n * seen <= SMALLEST { n * dim } else { 0 };
        let (mut few_q, mut few_o) = (vec![0.0; few], vec![0.0; few]);
        for head in 0..queries {
            let (mut q, own) = (self.query(head, rows.start), head / (queries / keys));
            for (c, column) in few_q.chunks_exact_mut(n).enumerate() {
                column.iter_mut().take(rows.len()).enumerate().for_each(|(i, to)| *to = q.data[i * q.row + c]);
            }
            if few > 0 {
                q = View::transposed(&few_q, n);
            }
            let key = self.key(k, own, 0);
            let across = View { data: key.data, row: 1, col: key.row };
            scaled_product(Cores::One, self.scale(), (n, seen, dim), &mut p, stride, Into::Fresh, q, across);
            let normalisers = z.iter_mut().skip(head).step_by(queries);
            for (i, (row, z)) in p.chunks_exact_mut(stride).take(rows.len()).zip(normalisers).enumerate() {
                *z = vectorised(
                    #[inline(always)]
                    || causal_softmax(row, position + i),
                );
            }
            let (to, apart) = if few_o.is_empty() { (&mut o[head * dim..], queries * dim) } else { (&mut few_o[..], dim) };
            for part in (0..stride).step_by(LONGEST_SUM) {
                let length = LONGEST_SUM.min(stride - part);
                let into = if part == 0 { Into::Fresh } else { Into::Sum };
                let values = if few_keys && part == last { self.key(&few_v, own, 0) } else { self.key(v, own, part) };
                product_here((n, dim, length), to, apart, into, View::rows(&p[part..], stride), values);
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
    let most = largest(seen);
    for s in seen.iter_mut() {
        *s = exp(*s - most);
    }
    let sum = total(seen);
    let inverse = 1.0 / sum;
    for s in seen.iter_mut() {
        *s *= inverse;
    }
    future.fill(0.0);
    most + sum.ln()
}

/// Turns the pairs (i, i + half) of every head of every row by its position's angles; `starts` are the positions of the
/// spans' first rows; `direction` −1 turns back.
fn turned(mut x: Vec<f32>, width: usize, dim: usize, layout: &Layout, starts: &[usize], direction: f32) -> Vec<f32> {
    let positions: Vec<usize> =
        layout.spans.iter().zip(starts).flat_map(|(span, &start)| (0..span.rows.len()).map(move |i| start + i)).collect();
    let task = rows_per_task(width);
    x.par_chunks_mut(task * width).zip(positions.par_chunks(task)).for_each(|(rows, positions)| {
        for (row, &position) in rows.chunks_exact_mut(width).zip(positions) {
            vectorised(
                #[inline(always)]
                || rotate(row, dim, &layout.rotary, position, direction),
            );
        }
    });
    x
}

#[inline(always)]
fn rotate(row: &mut [f32], dim: usize, rotary: &Rotary, position: usize, direction: f32) {
    let half = rotary.half;
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
