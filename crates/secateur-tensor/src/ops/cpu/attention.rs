//! Causal attention with rotary positions and grouped queries over packed sequences, fused, on the
//! CPU (Vaswani et al. 2017; Ainslie et al. 2023 for the groups; tiles of queries and recomputed
//! probabilities as in FlashAttention, Dao et al. 2022).
//!
//! - `rotary` rotates queries and keys by their positions.
//! - `forward` computes the outputs, a tile of queries at a time. A tile reads all keys up to its
//!   last row at once, so its softmax needs no running maximum, and memory grows with the length,
//!   not with its square.
//! - `backward` recomputes the probabilities from the kept log-sum-exp of each row.
//!
//! The keys before a span may be elsewhere in the pack (sequences that share a prefix) or in a
//! cache. The bits of an output row depend only on its query and on the keys and values at
//! positions up to its own. They do not depend on where these are in memory, on the other rows of
//! the tile, or on later rows.

use crate::activations::CpuActivations;
use crate::ops::layout::{AttentionHeads, PackLayout, Rotation};
use crate::tape::AnyTape;

mod backward;
mod forward;
mod kv_cache;
mod packed_heads;
mod rotary;

use backward::AttentionBackward;
pub(crate) use kv_cache::CpuKvCache;
use packed_heads::PackedHeads;
use rotary::apply_rotary;

/// See [`crate::ops::attention`].
pub(crate) fn attention<T: AnyTape>(
    q: CpuActivations<T>,
    k: CpuActivations<T>,
    v: CpuActivations<T>,
    heads: AttentionHeads,
    layout: &PackLayout,
    cache: Option<&mut CpuKvCache>,
) -> CpuActivations<T> {
    let (q, q_tape) = q.split_tape();
    let (k, k_tape) = k.split_tape();
    let (v, v_tape) = v.split_tape();
    let mut tape = q_tape.merge(k_tape).merge(v_tape);
    let (positions, width) = *q.shape();
    let (q_node, k_node, v_node) = (q.node(), k.node(), v.node());
    // The position of each span's first row in its sequence.
    let first_positions: Vec<usize> = layout
        .spans
        .iter()
        .map(|span| {
            let cached = cache
                .as_deref()
                .map_or(0, |cache| cache.len(span.cache_sequence));
            span.first_position(cached)
        })
        .collect();
    let rotate = |x: Vec<f32>, direction| {
        apply_rotary(x, heads.head_dim, layout, &first_positions, direction)
    };
    // With R(p) the rotation by the angles of position p: q ← R(p) · q, k ← R(p) · k. Then, for
    // every query head, O = softmax(Q · Kᵀ / √head_dim + causal mask) · V.
    let packed = PackedHeads {
        q: rotate(q.into_vec(), Rotation::Forward),
        k: rotate(k.into_vec(), Rotation::Forward),
        v: v.shared_values(),
        heads,
    };
    // `first_positions` was read before the cache grows by the pack's own rows.
    let extended_cache: Option<&CpuKvCache> = cache.map(|cache| {
        cache.append(layout, &packed.k, &packed.v);
        &*cache
    });
    let (outputs, log_sum_exp) = packed.forward(layout, &first_positions, extended_cache);
    let o = CpuActivations::from_vec(outputs, positions, width);
    if !T::OWNS_TAPE {
        return o.put_tape(tape);
    }

    assert!(
        extended_cache.is_none() && layout.spans.iter().all(|span| span.prefix.is_empty()),
        "there is no backward step through a cache or a shared prefix"
    );
    let (o_node, saved_outputs, layout) = (o.node(), o.shared_values(), layout.clone());
    tape.add_backward_op(move |gradients| {
        let output_gradient = o_node.take_gradient(gradients)?;
        let kernel = AttentionBackward {
            packed: &packed,
            outputs: &saved_outputs,
            log_sum_exp: &log_sum_exp,
            output_gradient: &output_gradient,
        };
        let [query_gradient, key_gradient, value_gradient] = kernel.gradients(&layout);
        // Rotation is linear and orthogonal, so its backward step is the transpose: a rotation by
        // the negative angles. Without a cache and shared prefixes every span begins at position 0.
        let zero_positions = vec![0; layout.spans.len()];
        let rotate_back = |x: Vec<f32>| {
            let direction = Rotation::Inverse;
            apply_rotary(x, heads.head_dim, &layout, &zero_positions, direction)
        };
        q_node.add_gradient(gradients, rotate_back(query_gradient))?;
        k_node.add_gradient(gradients, rotate_back(key_gradient))?;
        v_node.add_gradient(gradients, value_gradient)
    });
    o.put_tape(tape)
}
