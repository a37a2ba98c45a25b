//! A linear layer with a low-rank adapter beside it (Hu et al. 2021), on a GPU: y = x · Wᵀ + scale · (mask ⊙ x) · Aᵀ · Bᵀ.
//! The frozen weight is multiplied in its own precision, the adapter in f32.

use dfdx::prelude::TryMatMul;

use super::product::{linear_forward, linear_input_gradient, transpose};
use crate::activations::gpu::{GpuActivations, GpuMatrix, matrix_from_vec};
use crate::ops::{AdapterInput, DropoutMaskFn, GradientResult};
use crate::{AnyTape, Weight};

/// x is (positions, inputs), W is (outputs, inputs), y is (positions, outputs).
pub fn linear_with_adapter<T: AnyTape>(
    x: GpuActivations<T>,
    weight: &Weight,
    beside: AdapterInput<'_>,
) -> GpuActivations<T> {
    let (n, inputs) = x.shape();
    let (x, x_node, mut tape) = x.into_parts();
    let (held, a, b, scale) = (
        weight.to_gpu(),
        beside.a.to_gpu_f32(),
        beside.b.to_gpu_f32(),
        beside.scale,
    );
    let masked = move |x: GpuMatrix, mask: &Option<DropoutMaskFn>| match mask {
        Some(mask) => x * matrix_from_vec(mask(), n, inputs),
        None => x,
    };
    let mask = beside.dropout_mask;
    let low = masked(x.clone(), &mask).matmul(transpose(&a)); // (positions, rank)
    let y =
        GpuActivations::from(linear_forward(&x, &held) + low.clone().matmul(transpose(&b)) * scale);
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let (y_node, shape) = (y.node(), y.shape());
    let slots = beside
        .gradient_requests
        .map(|(a, b)| (a.clone(), b.clone()));
    tape.add_backward_op(move |_| {
        let delta = y_node.take_gradient(shape);
        let d_low = delta.clone().matmul(b) * scale;
        if let Some((slot_a, slot_b)) = slots {
            let gradient = |of: GpuMatrix| GradientResult::Gradient {
                gradient: GpuActivations::from(of).into(),
                squares: None,
            };
            slot_a.set_result(gradient(transpose(&d_low).matmul(masked(x, &mask))));
            slot_b.set_result(gradient(transpose(&delta).matmul(low) * scale));
        }
        x_node.add_gradient(linear_input_gradient(&delta, &held) + masked(d_low.matmul(a), &mask));
        Ok(())
    });
    y.put_tape(tape)
}
