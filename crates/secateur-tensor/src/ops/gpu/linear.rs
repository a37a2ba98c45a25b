//! y = x · Wᵀ on a GPU, in the precision of the weight.

use super::gradient::GpuPendingGradient;
use super::product::{linear_forward, linear_input_gradient};
use crate::activations::GpuActivations;
use crate::ops::gradient_query::GradientRequest;
use crate::tape::AnyTape;
use crate::weight::Weight;

/// x is (positions, inputs), W is (outputs, inputs), y is (positions, outputs).
pub(crate) fn linear<T: AnyTape>(
    x: GpuActivations<T>,
    weight: &Weight,
    request: Option<&GradientRequest>,
) -> GpuActivations<T> {
    let (x, x_node, mut tape) = x.into_parts();
    let gpu_weight = weight.to_gpu();
    let y = GpuActivations::from(linear_forward(&x, &gpu_weight));
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let (y_node, shape) = (y.node(), y.shape());
    let pending = request.map(|request| GpuPendingGradient::new(request, weight, &x, y.matrix()));
    tape.add_backward_op(move |_| {
        let dy = y_node.take_gradient(shape);
        let dx = linear_input_gradient(&dy, &gpu_weight);
        if let Some(pending) = pending {
            pending.resolve(&gpu_weight, &dy, &dx);
        }
        x_node.add_gradient(dx);
        Ok(())
    });
    y.put_tape(tape)
}
