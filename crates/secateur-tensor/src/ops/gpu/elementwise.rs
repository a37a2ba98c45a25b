//! Operations on a GPU that treat each element for itself: SwiGLU, sums, biases.

use super::product::broadcast_per_column;
use crate::activations::gpu::GpuActivations;
use crate::{AnyTape, Weight};

/// y = silu(gate) ⊙ up (Shazeer 2020). All three are (positions, width).
pub fn swiglu<T: AnyTape>(gate: GpuActivations<T>, up: GpuActivations<T>) -> GpuActivations<T> {
    let shape = gate.shape();
    let ((gate, gate_node, tape), (up, up_node, other)) = (gate.into_parts(), up.into_parts());
    let mut tape = tape.merge(other);
    let y = GpuActivations::from(gate.clone().sigmoid() * gate.clone() * up.clone());
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let y_node = y.node();
    tape.add_backward_op(move |_| {
        // d silu(g) / dg = s + g·s·(1 − s), s = sigmoid(g)
        let (delta, s) = (y_node.take_gradient(shape), gate.clone().sigmoid());
        let silu = gate * s.clone();
        up_node.add_gradient(delta.clone() * silu.clone());
        gate_node.add_gradient(delta * up * (s.clone() + silu.clone() - silu * s));
        Ok(())
    });
    y.put_tape(tape)
}

/// x + y, of the same shape.
pub fn add<T: AnyTape>(x: GpuActivations<T>, y: GpuActivations<T>) -> GpuActivations<T> {
    let shape = x.shape();
    let ((x, x_node, tape), (y, y_node, other)) = (x.into_parts(), y.into_parts());
    let mut tape = tape.merge(other);
    let z = GpuActivations::from(x + y);
    let z_node = z.node();
    tape.add_backward_op(move |_| {
        let delta = z_node.take_gradient(shape);
        x_node.add_gradient(delta.clone());
        y_node.add_gradient(delta);
        Ok(())
    });
    z.put_tape(tape)
}

/// x + b, the bias a vector. Its gradient is nobody's concern: biases are not trained.
pub fn add_bias<T: AnyTape>(x: GpuActivations<T>, bias: &Weight) -> GpuActivations<T> {
    let shape = x.shape();
    let (x, x_node, mut tape) = x.into_parts();
    let y = GpuActivations::from(x + broadcast_per_column(bias.to_gpu_f32(), shape));
    let y_node = y.node();
    tape.add_backward_op(move |_| {
        x_node.add_gradient(y_node.take_gradient(shape));
        Ok(())
    });
    y.put_tape(tape)
}
