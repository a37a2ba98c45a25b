//! Causal attention with rotary positions and grouped queries over packed sequences, fused, on the CPU (Vaswani et al. 2017;
//! Ainslie et al. 2023 for the groups; in tiles and with recomputed probabilities as in FlashAttention, Dao et al. 2022).
//! A tile of queries meets all keys before it at once, so its softmax is exact and memory grows with the length, not its
//! square.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::gemm::{Cores, Into, View, product_here, scaled_product};
use super::maths::{dot, exp, largest, total};
use super::simd::{rows_per_task, vectorised};
use super::{Heads, Layout, Rotary};
use crate::tensor::{AnyTape, Hidden, hidden};

/// Queries of a tile.
const TILE: usize = 64;

/// softmax(q·kᵀ / √dim + causal mask) · v, head by head, after the rotation of q and k; every sequence of the layout for
/// itself. q is (positions, queries · dim), k and v are (positions, keys · dim), the output is as q.
pub fn attention<T: AnyTape>(q: Hidden<T>, k: Hidden<T>, v: Hidden<T>, heads: Heads, layout: &Layout) -> Hidden<T> {
    let (q, tape) = q.split_tape();
    let (k, k_tape) = k.split_tape();
    let (v, v_tape) = v.split_tape();
    let mut tape = tape.merge(k_tape).merge(v_tape);
    let (n, width) = *q.shape();
    let (q_node, k_node, v_node) = (q.node(), k.node(), v.node());
    let packed = Packed {
        q: turned(q.into_vec(), width, heads.dim, layout, 1.0),
        k: turned(k.into_vec(), heads.keys * heads.dim, heads.dim, layout, 1.0),
        v: v.shared(),
        heads,
    };
    let mut outputs = vec![0.0; n * width];
    let mut normalisers = vec![0.0; n * heads.queries]; // ln Σ exp(score), (positions, queries)
    let mut tiles = Vec::new();
    let (mut o_left, mut z_left) = (&mut outputs[..], &mut normalisers[..]);
    for sequence in layout.sequences.iter() {
        for first in sequence.clone().step_by(TILE) {
            let rows = first..(first + TILE).min(sequence.end);
            let (o, z);
            (o, o_left) = o_left.split_at_mut(rows.len() * width);
            (z, z_left) = z_left.split_at_mut(rows.len() * heads.queries);
            tiles.push((sequence.start, rows, o, z));
        }
    }
    tiles.into_par_iter().for_each(|(start, rows, o, z)| packed.tile_forward(start, rows, o, z));
    let o = hidden(outputs, n, width);
    if !T::OWNS_TAPE {
        return o.put_tape(tape);
    }

    let (o_node, o_values, layout) = (o.node(), o.shared(), layout.clone());
    tape.add_backward_op(move |gradients| {
        let delta = o_node.take(gradients)?;
        let back = Back { packed: &packed, outputs: &o_values, normalisers: &normalisers, delta: &delta };
        let parts: Vec<(Range<usize>, usize)> =
            layout.sequences.iter().flat_map(|s| (0..heads.keys).map(|key| (s.clone(), key))).collect();
        let parts: Vec<HeadGradients> = parts.into_par_iter().map(|(sequence, key)| back.head(sequence, key)).collect();
        let join = |count: usize, heads_of: fn(&HeadGradients) -> &[Vec<f32>]| join(&parts, &layout, heads, count, heads_of);
        let dq = join(heads.queries, |part| &part.q);
        let dk = join(heads.keys, |part| std::slice::from_ref(&part.k));
        q_node.add(gradients, turned(dq, width, heads.dim, &layout, -1.0))?;
        k_node.add(gradients, turned(dk, heads.keys * heads.dim, heads.dim, &layout, -1.0))?;
        v_node.add(gradients, join(heads.keys, |part| std::slice::from_ref(&part.v)))
    });
    o.put_tape(tape)
}

/// Rotated queries and keys, and values, as the projections laid them out.
struct Packed {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Arc<Vec<f32>>,
    heads: Heads,
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

    /// Scores of query rows with every key from the sequence's start to the tile's last row: (rows, keys), scaled.
    fn scores(&self, head: usize, start: usize, rows: &Range<usize>, to: &mut [f32]) {
        let keys = rows.end - start;
        let key = self.key(&self.k, head / (self.heads.queries / self.heads.keys), start);
        let shape = (rows.len(), keys, self.heads.dim);
        let keys_across = View { data: key.data, row: 1, col: key.row };
        scaled_product(Cores::One, self.scale(), shape, to, keys, Into::Fresh, self.query(head, rows.start), keys_across);
    }

    /// All heads of a tile of rows; o is (rows, queries · dim), z is (rows, queries).
    fn tile_forward(&self, start: usize, rows: Range<usize>, o: &mut [f32], z: &mut [f32]) {
        let Heads { queries, keys, dim } = self.heads;
        let seen = rows.end - start;
        let mut p = vec![0.0; rows.len() * seen];
        for head in 0..queries {
            self.scores(head, start, &rows, &mut p);
            let own = z.iter_mut().skip(head).step_by(queries);
            for (i, (row, z)) in p.chunks_exact_mut(seen).zip(own).enumerate() {
                *z = vectorised(
                    #[inline(always)]
                    || causal_softmax(row, rows.start - start + i),
                );
            }
            let v = self.key(&self.v, head / (queries / keys), start);
            product_here((rows.len(), dim, seen), &mut o[head * dim..], queries * dim, Into::Fresh, View::rows(&p, seen), v);
        }
    }
}

/// The way back of one pack.
struct Back<'a> {
    packed: &'a Packed,
    outputs: &'a [f32],
    normalisers: &'a [f32],
    /// The output's gradient.
    delta: &'a [f32],
}

/// Gradients of one key/value head of one sequence and of the query heads that use it: (positions, dim) each.
struct HeadGradients {
    q: Vec<Vec<f32>>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Back<'_> {
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
                self.packed.scores(head, start, &rows, p);
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

/// Turns the pairs (i, i + half) of every head of every row by its position's angles; `direction` −1 turns back.
fn turned(mut x: Vec<f32>, width: usize, dim: usize, layout: &Layout, direction: f32) -> Vec<f32> {
    let positions: Vec<usize> = layout.sequences.iter().flat_map(|s| 0..s.len()).collect();
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
    let mut out = vec![0.0; layout.sequences.iter().map(Range::len).sum::<usize>() * width];
    let mut left = &mut out[..];
    let mut sequences = Vec::new();
    for (sequence, parts) in layout.sequences.iter().zip(parts.chunks_exact(keys)) {
        let own;
        (own, left) = left.split_at_mut(sequence.len() * width);
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
