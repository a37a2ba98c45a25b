//! y = x · Wᵀ on a GPU, in the precision of the weight.

use super::gradient::GpuPendingGradient;
use super::product::{linear_forward, linear_input_gradient};
use crate::activations::gpu::GpuActivations;
use crate::ops::GradientRequest;
use crate::{AnyTape, Weight};

/// x is (positions, inputs), W is (outputs, inputs), y is (positions, outputs).
pub fn linear<T: AnyTape>(
    x: GpuActivations<T>,
    weight: &Weight,
    slot: Option<&GradientRequest>,
) -> GpuActivations<T> {
    let (x, x_node, mut tape) = x.into_parts();
    let held = weight.to_gpu();
    let y = GpuActivations::from(linear_forward(&x, &held));
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let (y_node, shape) = (y.node(), y.shape());
    let asked = slot.map(|slot| GpuPendingGradient::new(slot, weight, &x, y.matrix()));
    tape.add_backward_op(move |_| {
        let delta = y_node.take_gradient(shape);
        let dx = linear_input_gradient(&delta, &held);
        if let Some(asked) = asked {
            asked.resolve(&held, &delta, &dx);
        }
        x_node.add_gradient(dx);
        Ok(())
    });
    y.put_tape(tape)
}
