//! Causal attention with rotary positions and grouped queries on a GPU, in f32 (Vaswani et al.
//! 2017; Ainslie et al. 2023).

use std::rc::Rc;

use super::attention_plan::{AttentionBatch, AttentionPlan};
use super::head_attention::{attend, attention_gradients};
use super::kv_cache::{GpuKvCache, attend_with_cache};
use crate::activations::GpuActivations;
use crate::gpu::GpuMatrix;
use crate::ops::layout::{AttentionHeads, PackLayout, Rotation};
use crate::tape::AnyTape;

/// See [`crate::ops::attention`].
pub(crate) fn attention<T: AnyTape>(
    q: GpuActivations<T>,
    k: GpuActivations<T>,
    v: GpuActivations<T>,
    heads: AttentionHeads,
    layout: &PackLayout,
    cache: Option<&mut GpuKvCache>,
) -> GpuActivations<T> {
    let (q, q_node, q_tape) = q.into_parts();
    let (k, k_node, k_tape) = k.into_parts();
    let (v, v_node, v_tape) = v.into_parts();
    let mut tape = q_tape.merge(k_tape).merge(v_tape);
    if let Some(cache) = cache {
        assert!(
            !T::OWNS_TAPE,
            "there is no backward step through a cache or a shared prefix"
        );
        return GpuActivations::from(attend_with_cache(q, &k, &v, heads, layout, cache))
            .put_tape(tape);
    }
    let plan = AttentionPlan::for_layout(layout, heads.head_dim);
    let operands = RotatedOperands {
        q: plan.rotation.rotate(q, Rotation::Forward),
        k: plan.rotation.rotate(k, Rotation::Forward),
        v,
        heads,
        plan,
    };
    let o = GpuActivations::from(operands.outputs());
    if !T::OWNS_TAPE {
        return o.put_tape(tape);
    }

    let (o_node, shape, outputs) = (o.node(), o.shape(), o.matrix().clone());
    tape.add_backward_op(move |_| {
        let output_gradient = o_node.take_gradient(shape);
        for batch in &operands.plan.batches {
            let [dq, dk, dv] = operands.batch_gradients(batch, &outputs, &output_gradient);
            q_node.add_gradient(dq);
            k_node.add_gradient(dk);
            v_node.add_gradient(dv);
        }
        Ok(())
    });
    o.put_tape(tape)
}

/// Rotated queries and keys, and values, of a pack, (rows, heads · head_dim) each.
struct RotatedOperands {
    q: GpuMatrix,
    k: GpuMatrix,
    v: GpuMatrix,
    heads: AttentionHeads,
    plan: Rc<AttentionPlan>,
}

impl RotatedOperands {
    /// The outputs of all batches. Each batch has zeros at the rows of the others, so their sum is
    /// exact.
    fn outputs(&self) -> GpuMatrix {
        let batch_outputs = |batch: &AttentionBatch| {
            let q = batch.to_query_heads(&self.q, self.heads);
            let k = batch.to_key_heads(&self.k, self.heads);
            let v = batch.to_key_heads(&self.v, self.heads);
            batch.restore_query_rows(attend(batch, q, &k, v, self.heads), self.heads)
        };
        self.plan
            .batches
            .iter()
            .map(batch_outputs)
            .reduce(|sum, outputs| sum + outputs)
            // without rows there are no batches, and q is as empty as the output
            .unwrap_or_else(|| self.q.clone())
    }

    /// Gradients of the queries and keys before their rotation, and of the values, from one batch.
    fn batch_gradients(
        &self,
        batch: &AttentionBatch,
        outputs: &GpuMatrix,
        output_gradient: &GpuMatrix,
    ) -> [GpuMatrix; 3] {
        let heads = self.heads;
        let operands = [
            batch.to_query_heads(&self.q, heads),
            batch.to_key_heads(&self.k, heads),
            batch.to_key_heads(&self.v, heads),
        ];
        let [dq, dk, dv] = attention_gradients(
            batch,
            operands,
            batch.to_query_heads(outputs, heads),
            batch.to_gradient_heads(output_gradient, heads),
            heads,
        );
        let rotation = &self.plan.rotation;
        [
            rotation.rotate(batch.restore_query_rows(dq, heads), Rotation::Inverse),
            rotation.rotate(batch.restore_key_rows(dk, heads), Rotation::Inverse),
            batch.restore_key_rows(dv, heads),
        ]
    }
}
