//! Causal attention with rotary positions and grouped queries on a GPU, in f32 (Vaswani et al. 2017; Ainslie et al. 2023).
//! Probabilities are made again on the way back (Dao et al. 2022), so that no scores are kept.

use dfdx::prelude::*;

use super::past::attend_with_cache;
use super::product::{broadcast_per_row, row_sum_matrix};
use super::spans::{AttentionBatch, AttentionPlan, HeadBatch};
use crate::AnyTape;
use crate::activations::gpu::{GpuActivations, GpuMatrix};
use crate::ops::{AttentionHeads, PackLayout, gpu::GpuKvCache};

/// See [`crate::ops::attention`].
pub fn attention<T: AnyTape>(
    q: GpuActivations<T>,
    k: GpuActivations<T>,
    v: GpuActivations<T>,
    heads: AttentionHeads,
    layout: &PackLayout,
    past: Option<&mut GpuKvCache>,
) -> GpuActivations<T> {
    let ((q, q_node, tape), (k, k_node, k_tape), (v, v_node, v_tape)) =
        (q.into_parts(), k.into_parts(), v.into_parts());
    let mut tape = tape.merge(k_tape).merge(v_tape);
    if let Some(past) = past {
        assert!(!T::OWNS_TAPE, "there is no way back through a cache");
        return GpuActivations::from(attend_with_cache((q, k, v), heads, layout, past))
            .put_tape(tape);
    }
    let plan = AttentionPlan::for_layout(layout, heads.head_dim);
    let (q, k) = (plan.rotation.apply_rotary(q), plan.rotation.apply_rotary(k));
    let of_part = |part: &AttentionBatch| {
        let (q, k, v) = (
            part.to_query_heads(&q, heads),
            part.to_key_heads(&k, heads),
            part.to_key_heads(&v, heads),
        );
        part.restore_query_rows(attend(part, (q, &k, v), heads), heads)
    };
    let o = plan
        .batches
        .iter()
        .map(of_part)
        .reduce(|sum, part| sum + part)
        .unwrap_or_else(|| q.clone());
    let o = GpuActivations::from(o);
    if !T::OWNS_TAPE {
        return o.put_tape(tape);
    }

    let (o_node, shape, outputs) = (o.node(), o.shape(), o.matrix().clone());
    tape.add_backward_op(move |_| {
        let delta = o_node.take_gradient(shape);
        for part in &plan.batches {
            let on_heads = |x: &GpuMatrix| part.to_query_heads(x, heads);
            let (q, k, v) = (
                on_heads(&q),
                part.to_key_heads(&k, heads),
                part.to_key_heads(&v, heads),
            );
            let [dq, dk, dv] = attention_gradients(
                part,
                (q, k, v),
                (on_heads(&outputs), part.to_gradient_heads(&delta, heads)),
                heads,
            );
            q_node.add_gradient(
                plan.rotation
                    .undo_rotary(part.restore_query_rows(dq, heads)),
            );
            k_node.add_gradient(plan.rotation.undo_rotary(part.restore_key_rows(dk, heads)));
            v_node.add_gradient(part.restore_key_rows(dv, heads));
        }
        Ok(())
    });
    o.put_tape(tape)
}

/// Outputs of query heads.
pub fn attend(
    part: &AttentionBatch,
    (q, k, v): (HeadBatch, &HeadBatch, HeadBatch),
    heads: AttentionHeads,
) -> HeadBatch {
    let shape = *q.shape();
    let (raised, inverse) = unnormalised_softmax(part, q, k, heads);
    let o = raised.matmul(v);
    let rows = (shape.0 * shape.1, shape.2);
    (o.reshape_like(&rows) * broadcast_per_row(inverse, rows)).reshape_like(&shape)
}

/// exp(score − the row's largest), (heads, rows, keys), and 1 / their sum, (heads · rows, 1).
fn unnormalised_softmax(
    part: &AttentionBatch,
    q: HeadBatch,
    k: &HeadBatch,
    heads: AttentionHeads,
) -> (HeadBatch, GpuMatrix) {
    let (of, rows, _) = *q.shape();
    let across = k.clone().permute::<(usize, usize, usize), Axes3<0, 2, 1>>();
    let scores = part.apply_causal_mask(
        q.matmul(across) * (1.0 / (heads.head_dim as f32).sqrt()),
        heads,
    );
    let shape = *scores.shape();
    let most: Tensor<(usize,), f32, _> = scores.clone().max::<_, Axis<1>>();
    let raised = (scores - most.broadcast_like::<_, Axis<1>>(&shape)).exp();
    let inverse = row_sum_matrix(raised.clone()).recip();
    (raised.reshape_like(&(of, rows, shape.1)), inverse)
}

/// Gradients of rotated queries, of rotated keys, and of values, from the outputs and theirs.
fn attention_gradients(
    part: &AttentionBatch,
    (q, k, v): (HeadBatch, HeadBatch, HeadBatch),
    (o, delta): (HeadBatch, HeadBatch),
    heads: AttentionHeads,
) -> [HeadBatch; 3] {
    let across = |x: &HeadBatch| x.clone().permute::<(usize, usize, usize), Axes3<0, 2, 1>>();
    let (of, rows, dim) = *q.shape();
    let (raised, inverse) = unnormalised_softmax(part, q.clone(), &k, heads);
    let (whole, flat) = (*raised.shape(), (of * rows, raised.shape().2));
    let p = raised.reshape_like(&flat) * broadcast_per_row(inverse, flat);
    let dv = across(&p.clone().reshape_like(&whole)).matmul(delta.clone());
    // ds = p ⊙ (δ·vᵀ − Σ δ⊙o) / √dim
    let along = row_sum_matrix((delta.clone() * o).reshape_like(&(of * rows, dim)));
    let dp = delta.matmul(across(&v)).reshape_like(&flat);
    let ds = (p * (dp - broadcast_per_row(along, flat)) * (1.0 / (heads.head_dim as f32).sqrt()))
        .reshape_like(&whole);
    [ds.clone().matmul(k), across(&ds).matmul(q), dv]
}
