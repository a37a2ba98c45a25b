//! Causal attention with rotary positions and grouped queries on a GPU, in f32 (Vaswani et al. 2017; Ainslie et al. 2023).
//! Probabilities are made again on the way back (Dao et al. 2022), so that no scores are kept.

use dfdx::prelude::*;

use super::past::with_past;
use super::product::{by_row, sum_of_rows};
use super::spans::{Batch, Part, Plan};
use crate::ops::{Heads, Layout, gpu::Past};
use crate::tensor::AnyTape;
use crate::tensor::gpu::{Hidden, Matrix};

/// See [`crate::ops::attention`].
pub fn attention<T: AnyTape>(
    q: Hidden<T>,
    k: Hidden<T>,
    v: Hidden<T>,
    heads: Heads,
    layout: &Layout,
    past: Option<&mut Past>,
) -> Hidden<T> {
    let ((q, q_node, tape), (k, k_node, k_tape), (v, v_node, v_tape)) = (q.parts(), k.parts(), v.parts());
    let mut tape = tape.merge(k_tape).merge(v_tape);
    if let Some(past) = past {
        assert!(!T::OWNS_TAPE, "there is no way back through a cache");
        return Hidden::from(with_past((q, k, v), heads, layout, past)).put_tape(tape);
    }
    let plan = Plan::of(layout, heads.dim);
    let (q, k) = (plan.turn.turned(q), plan.turn.turned(k));
    let of_part = |part: &Part| {
        let (q, k, v) = (part.query_heads(&q, heads), part.key_heads(&k, heads), part.key_heads(&v, heads));
        part.queries_back(attended(part, (q, &k, v), heads), heads)
    };
    let o = plan.parts.iter().map(of_part).reduce(|sum, part| sum + part).unwrap_or_else(|| q.clone());
    let o = Hidden::from(o);
    if !T::OWNS_TAPE {
        return o.put_tape(tape);
    }

    let (o_node, shape, outputs) = (o.node(), o.shape(), o.matrix().clone());
    tape.add_backward_op(move |_| {
        let delta = o_node.take(shape);
        for part in &plan.parts {
            let on_heads = |x: &Matrix| part.query_heads(x, heads);
            let (q, k, v) = (on_heads(&q), part.key_heads(&k, heads), part.key_heads(&v, heads));
            let [dq, dk, dv] = gradients(part, (q, k, v), (on_heads(&outputs), part.delta_heads(&delta, heads)), heads);
            q_node.add(plan.turn.turned_back(part.queries_back(dq, heads)));
            k_node.add(plan.turn.turned_back(part.keys_back(dk, heads)));
            v_node.add(part.keys_back(dv, heads));
        }
        Ok(())
    });
    o.put_tape(tape)
}

/// Outputs of query heads.
pub fn attended(part: &Part, (q, k, v): (Batch, &Batch, Batch), heads: Heads) -> Batch {
    let shape = *q.shape();
    let (raised, inverse) = softmax(part, q, k, heads);
    let o = raised.matmul(v);
    let rows = (shape.0 * shape.1, shape.2);
    (o.reshape_like(&rows) * by_row(inverse, rows)).reshape_like(&shape)
}

/// exp(score − the row's largest), (heads, rows, keys), and 1 / their sum, (heads · rows, 1).
fn softmax(part: &Part, q: Batch, k: &Batch, heads: Heads) -> (Batch, Matrix) {
    let (of, rows, _) = *q.shape();
    let across = k.clone().permute::<(usize, usize, usize), Axes3<0, 2, 1>>();
    let scores = part.masked(q.matmul(across) * (1.0 / (heads.dim as f32).sqrt()), heads);
    let shape = *scores.shape();
    let most: Tensor<(usize,), f32, _> = scores.clone().max::<_, Axis<1>>();
    let raised = (scores - most.broadcast_like::<_, Axis<1>>(&shape)).exp();
    let inverse = sum_of_rows(raised.clone()).recip();
    (raised.reshape_like(&(of, rows, shape.1)), inverse)
}

/// Gradients of rotated queries, of rotated keys, and of values, from the outputs and theirs.
fn gradients(part: &Part, (q, k, v): (Batch, Batch, Batch), (o, delta): (Batch, Batch), heads: Heads) -> [Batch; 3] {
    let across = |x: &Batch| x.clone().permute::<(usize, usize, usize), Axes3<0, 2, 1>>();
    let (of, rows, dim) = *q.shape();
    let (raised, inverse) = softmax(part, q.clone(), &k, heads);
    let (whole, flat) = (*raised.shape(), (of * rows, raised.shape().2));
    let p = raised.reshape_like(&flat) * by_row(inverse, flat);
    let dv = across(&p.clone().reshape_like(&whole)).matmul(delta.clone());
    // ds = p ⊙ (δ·vᵀ − Σ δ⊙o) / √dim
    let along = sum_of_rows((delta.clone() * o).reshape_like(&(of * rows, dim)));
    let dp = delta.matmul(across(&v)).reshape_like(&flat);
    let ds = (p * (dp - by_row(along, flat)) * (1.0 / (heads.dim as f32).sqrt())).reshape_like(&whole);
    [ds.clone().matmul(k), across(&ds).matmul(q), dv]
}
