//! Attention of batched heads on a GPU, in f32, and its gradients.

use dfdx::prelude::*;

use super::attention_plan::{AttentionBatch, HeadBatch};
use super::product::{broadcast_per_row, row_sum_matrix};
use crate::gpu::GpuMatrix;
use crate::ops::layout::AttentionHeads;

/// O = softmax(scale · Q · Kᵀ + mask) · V. Q and O are (sequences · key heads, group · queries,
/// head_dim), K and V are (sequences · key heads, keys, head_dim).
pub(super) fn attend(
    batch: &AttentionBatch,
    q: HeadBatch,
    k: &HeadBatch,
    v: HeadBatch,
    heads: AttentionHeads,
) -> HeadBatch {
    let shape = *q.shape();
    let (exponentials, inverse_sums) = unnormalised_softmax(batch, q, k, heads);
    // O = diag(1 / Σ exp) · (exp(S − max S) · V): this scales head_dim numbers of each row, not as
    // many as there are keys
    let o = exponentials.matmul(v);
    let rows = (shape.0 * shape.1, shape.2);
    (o.reshape_like(&rows) * broadcast_per_row(inverse_sums, rows)).reshape_like(&shape)
}

/// exp(S − max S) of each row, (sequences · key heads, group · queries, keys), and 1 / the row's
/// sum, (all rows, 1).
fn unnormalised_softmax(
    batch: &AttentionBatch,
    q: HeadBatch,
    k: &HeadBatch,
    heads: AttentionHeads,
) -> (HeadBatch, GpuMatrix) {
    let (head_count, rows, _) = *q.shape();
    let scores = q.matmul(transpose_heads(k)) * score_scale(heads);
    let masked = batch.apply_causal_mask(scores, heads);
    let shape = *masked.shape();
    let row_max: Tensor<(usize,), f32, _> = masked.clone().max::<_, Axis<1>>();
    let exponentials = (masked - row_max.broadcast_like::<_, Axis<1>>(&shape)).exp();
    let inverse_sums = row_sum_matrix(exponentials.clone()).recip();
    let by_head = (head_count, rows, shape.1);
    (exponentials.reshape_like(&by_head), inverse_sums)
}

/// dQ, dK and dV from O and dO, with P = softmax(S):
///
/// - dV = Pᵀ · dO;
/// - dS = scale · P ∘ (dO · Vᵀ − rowsum(dO ∘ O));
/// - dQ = dS · K, dK = dSᵀ · Q.
///
/// P is computed again, so no scores are kept (Dao et al. 2022). The query heads of a group are
/// rows of one product, so dK and dV are sums over the group.
pub(super) fn attention_gradients(
    batch: &AttentionBatch,
    [q, k, v]: [HeadBatch; 3],
    o: HeadBatch,
    output_gradient: HeadBatch,
    heads: AttentionHeads,
) -> [HeadBatch; 3] {
    let (head_count, rows, head_dim) = *q.shape();
    let (exponentials, inverse_sums) = unnormalised_softmax(batch, q.clone(), &k, heads);
    let by_head = *exponentials.shape();
    let flat = (head_count * rows, by_head.2);
    let p = exponentials.reshape_like(&flat) * broadcast_per_row(inverse_sums, flat);
    let value_gradient =
        transpose_heads(&p.clone().reshape_like(&by_head)).matmul(output_gradient.clone());
    let gradient_products = output_gradient.clone() * o;
    let row_sums = row_sum_matrix(gradient_products.reshape_like(&(head_count * rows, head_dim)));
    let dp = output_gradient
        .matmul(transpose_heads(&v))
        .reshape_like(&flat);
    let ds =
        (p * (dp - broadcast_per_row(row_sums, flat)) * score_scale(heads)).reshape_like(&by_head);
    let query_gradient = ds.clone().matmul(k);
    let key_gradient = transpose_heads(&ds).matmul(q);
    [query_gradient, key_gradient, value_gradient]
}

/// 1 / √head_dim
fn score_scale(heads: AttentionHeads) -> f32 {
    1.0 / (heads.head_dim as f32).sqrt()
}

/// (heads, rows, cols) → (heads, cols, rows)
fn transpose_heads(x: &HeadBatch) -> HeadBatch {
    x.clone().permute::<(usize, usize, usize), Axes3<0, 2, 1>>()
}
