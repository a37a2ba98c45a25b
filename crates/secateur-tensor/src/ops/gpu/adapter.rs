//! A linear layer with a low-rank adapter (Hu et al. 2021) on a GPU: y = x · Wᵀ + scale · (mask ⊙
//! x) · Aᵀ · Bᵀ. The frozen weight is multiplied in its own precision, the adapter in f32.

use dfdx::prelude::TryMatMul;

use super::product::{linear_forward, linear_input_gradient, transpose};
use crate::activations::GpuActivations;
use crate::gpu::{GpuMatrix, matrix_from_vec};
use crate::ops::adapter::{AdapterInput, DropoutMaskFn};
use crate::ops::gradient_query::GradientResult;
use crate::tape::AnyTape;
use crate::weight::Weight;

/// x is (positions, inputs), W is (outputs, inputs), y is (positions, outputs).
pub(crate) fn linear_with_adapter<T: AnyTape>(
    x: GpuActivations<T>,
    weight: &Weight,
    adapter: AdapterInput<'_>,
) -> GpuActivations<T> {
    let (positions, inputs) = x.shape();
    let (x, x_node, mut tape) = x.into_parts();
    let gpu_weight = weight.to_gpu();
    let (a, b, scale) = (
        adapter.a.to_gpu_f32(),
        adapter.b.to_gpu_f32(),
        adapter.scale,
    );
    let dropout_mask = adapter.dropout_mask;
    let apply_mask = move |x: GpuMatrix, mask: &Option<DropoutMaskFn>| match mask {
        Some(mask) => x * matrix_from_vec(mask(), positions, inputs),
        None => x,
    };
    // h = (mask ⊙ x) · Aᵀ, (positions, rank)
    let hidden = apply_mask(x.clone(), &dropout_mask).matmul(transpose(&a));
    let y = GpuActivations::from(
        linear_forward(&x, &gpu_weight) + hidden.clone().matmul(transpose(&b)) * scale,
    );
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let (y_node, shape) = (y.node(), y.shape());
    let requests = adapter
        .gradient_requests
        .map(|(a_request, b_request)| (a_request.clone(), b_request.clone()));
    tape.add_backward_op(move |_| {
        let dy = y_node.take_gradient(shape);
        // dh = scale · dy · B, dA = dhᵀ · (mask ⊙ x), dB = scale · dyᵀ · h,
        // dx = dy · W + mask ⊙ (dh · A)
        let hidden_gradient = dy.clone().matmul(b) * scale;
        if let Some((a_request, b_request)) = requests {
            let to_result = |matrix: GpuMatrix| GradientResult::Gradient {
                gradient: GpuActivations::from(matrix).into(),
                squares: None,
            };
            let masked_x = apply_mask(x, &dropout_mask);
            a_request.set_result(to_result(transpose(&hidden_gradient).matmul(masked_x)));
            b_request.set_result(to_result(transpose(&dy).matmul(hidden) * scale));
        }
        let adapter_dx = apply_mask(hidden_gradient.matmul(a), &dropout_mask);
        x_node.add_gradient(linear_input_gradient(&dy, &gpu_weight) + adapter_dx);
        Ok(())
    });
    y.put_tape(tape)
}
