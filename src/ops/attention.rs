//! Causal attention with rotary positions and grouped queries, fused, on the CPU (Vaswani et al. 2017; Ainslie et al.
//! 2023 for the groups). Heads are independent and run in parallel; every head's numbers are its own.

use dfdx::prelude::{HasShape, PutTape, SplitTape};
use rayon::prelude::*;

use super::cpu::{dot, take};
use super::gemm::{View, product};
use super::{Heads, Rotary};
use crate::tensor::{AnyTape, Hidden, hidden};

/// softmax(q·kᵀ / √dim + causal mask) · v, head by head, after the rotation of q and k.
/// q is (positions, queries · dim), k and v are (positions, keys · dim), the output is as q.
pub fn attention<T: AnyTape>(q: Hidden<T>, k: Hidden<T>, v: Hidden<T>, heads: Heads, rotary: &Rotary) -> Hidden<T> {
    let (q, tape) = q.split_tape();
    let (k, k_tape) = k.split_tape();
    let (v, v_tape) = v.split_tape();
    let mut tape = tape.merge(k_tape).merge(v_tape);
    let (n, Heads { queries, keys, dim }) = (q.shape().0, heads);
    let turned = |x: &Hidden, count| {
        let mut by_head = split(&x.as_vec(), n, count, dim);
        by_head.par_chunks_exact_mut(n * dim).for_each(|head| rotate(head, rotary, dim, 1.0));
        by_head
    };
    let (qs, ks, vs) = (turned(&q, queries), turned(&k, keys), split(&v.as_vec(), n, keys, dim)); // (heads, n, dim)
    let (group, scale) = (queries / keys, 1.0 / (dim as f32).sqrt());
    let head = move |h: usize| h * n * dim..(h + 1) * n * dim;

    let per_head: Vec<(Vec<f32>, Vec<f32>)> = (0..queries)
        .into_par_iter()
        .map(|h| {
            let (q, k, v) = (&qs[head(h)], &ks[head(h / group)], &vs[head(h / group)]);
            let mut p = vec![0.0; n * n];
            product((n, n, dim), &mut p, n, false, View::rows(q, dim), View::transposed(k, dim));
            p.chunks_exact_mut(n).enumerate().for_each(|(i, row)| causal_softmax(row, i, scale));
            let mut o = vec![0.0; n * dim];
            product((n, dim, n), &mut o, dim, false, View::rows(&p, n), View::rows(v, dim));
            (p, o)
        })
        .collect();
    let (probabilities, outputs): (Vec<_>, Vec<_>) = per_head.into_iter().unzip();
    let y = hidden(join(&outputs, n, dim), n, queries * dim);
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let (q_id, k_id, v_id, y_id) = (q.ghost(), k.ghost(), v.ghost(), y.ghost());
    let rotary = rotary.clone();
    tape.add_backward_op(move |gradients| {
        let dy = split(&take(gradients.get_or_alloc_mut(&y_id)?), n, queries, dim);
        // One key/value head with its query heads at a time: (dq of each, dk, dv).
        type Parts = (Vec<Vec<f32>>, Vec<f32>, Vec<f32>);
        let parts: Vec<Parts> = (0..keys)
            .into_par_iter()
            .map(|g| {
                let (k, v) = (&ks[head(g)], &vs[head(g)]);
                let (mut dk, mut dv) = (vec![0.0; n * dim], vec![0.0; n * dim]);
                let mut dqs = Vec::with_capacity(group);
                for h in g * group..(g + 1) * group {
                    let (q, p, dy) = (&qs[head(h)], &probabilities[h], &dy[head(h)]);
                    product((n, dim, n), &mut dv, dim, true, View::transposed(p, n), View::rows(dy, dim));
                    let mut ds = vec![0.0; n * n];
                    product((n, n, dim), &mut ds, n, false, View::rows(dy, dim), View::transposed(v, dim));
                    for ((i, ds), p) in ds.chunks_exact_mut(n).enumerate().zip(p.chunks_exact(n)) {
                        let mean = dot(&ds[..=i], &p[..=i]);
                        ds[..=i].iter_mut().zip(p).for_each(|(ds, p)| *ds = p * (*ds - mean) * scale);
                        ds[i + 1..].fill(0.0);
                    }
                    let mut dq = vec![0.0; n * dim];
                    product((n, dim, n), &mut dq, dim, false, View::rows(&ds, n), View::rows(k, dim));
                    product((n, dim, n), &mut dk, dim, true, View::transposed(&ds, n), View::rows(q, dim));
                    rotate(&mut dq, &rotary, dim, -1.0);
                    dqs.push(dq);
                }
                rotate(&mut dk, &rotary, dim, -1.0);
                (dqs, dk, dv)
            })
            .collect();
        let dq: Vec<&Vec<f32>> = parts.iter().flat_map(|(dqs, _, _)| dqs).collect();
        let dk: Vec<&Vec<f32>> = parts.iter().map(|(_, dk, _)| dk).collect();
        let dv: Vec<&Vec<f32>> = parts.iter().map(|(_, _, dv)| dv).collect();
        add(gradients.get_or_alloc_mut(&q_id)?, &join(&dq, n, dim));
        add(gradients.get_or_alloc_mut(&k_id)?, &join(&dk, n, dim));
        add(gradients.get_or_alloc_mut(&v_id)?, &join(&dv, n, dim));
        Ok(())
    });
    y.put_tape(tape)
}

fn add(sum: &mut [f32], part: &[f32]) {
    sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
}

/// Row i of the scores → probabilities over positions 0..=i; the future gets 0.
fn causal_softmax(row: &mut [f32], i: usize, scale: f32) {
    let (seen, future) = row.split_at_mut(i + 1);
    let largest = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for s in seen.iter_mut() {
        *s = ((*s - largest) * scale).exp();
        sum += *s;
    }
    seen.iter_mut().for_each(|s| *s /= sum);
    future.fill(0.0);
}

/// Turns the pairs (i, i + half) of every row of one head by its position's angles; `direction` −1 turns back.
fn rotate(head: &mut [f32], rotary: &Rotary, dim: usize, direction: f32) {
    let half = rotary.half;
    for (position, row) in head.chunks_exact_mut(dim).enumerate() {
        let at = position * half..(position + 1) * half;
        let (low, high) = row.split_at_mut(half);
        for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(&rotary.cos[at.clone()]).zip(&rotary.sin[at]) {
            let sin = sin * direction;
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// (positions, heads · dim) → (heads, positions, dim)
fn split(x: &[f32], n: usize, heads: usize, dim: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for h in 0..heads {
        for row in x.chunks_exact(heads * dim).take(n) {
            out.extend_from_slice(&row[h * dim..(h + 1) * dim]);
        }
    }
    out
}

/// heads of (positions, dim) → (positions, heads · dim)
fn join(heads: &[impl AsRef<[f32]>], n: usize, dim: usize) -> Vec<f32> {
    (0..n).flat_map(|p| heads.iter().flat_map(move |h| h.as_ref()[p * dim..(p + 1) * dim].iter().copied())).collect()
}
