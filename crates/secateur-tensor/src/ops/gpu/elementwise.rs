//! Operations on a GPU that compute each element by itself: SwiGLU, sums, biases.

use super::product::broadcast_per_column;
use crate::activations::GpuActivations;
use crate::tape::AnyTape;
use crate::weight::Weight;

/// y = silu(gate) ⊙ up (Shazeer 2020). All three are (positions, width).
pub(crate) fn swiglu<T: AnyTape>(
    gate: GpuActivations<T>,
    up: GpuActivations<T>,
) -> GpuActivations<T> {
    let shape = gate.shape();
    let (gate, gate_node, gate_tape) = gate.into_parts();
    let (up, up_node, up_tape) = up.into_parts();
    let mut tape = gate_tape.merge(up_tape);
    let y = GpuActivations::from(gate.clone().sigmoid() * gate.clone() * up.clone());
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let y_node = y.node();
    tape.add_backward_op(move |_| {
        // With s = σ(g): d silu(g) / dg = s + g·s·(1 − s) = s + silu(g) − silu(g)·s
        let (dy, s) = (y_node.take_gradient(shape), gate.clone().sigmoid());
        let silu = gate * s.clone();
        up_node.add_gradient(dy.clone() * silu.clone());
        gate_node.add_gradient(dy * up * (s.clone() + silu.clone() - silu * s));
        Ok(())
    });
    y.put_tape(tape)
}

/// x + y, of one shape.
pub(crate) fn add<T: AnyTape>(x: GpuActivations<T>, y: GpuActivations<T>) -> GpuActivations<T> {
    let shape = x.shape();
    let (x, x_node, x_tape) = x.into_parts();
    let (y, y_node, y_tape) = y.into_parts();
    let mut tape = x_tape.merge(y_tape);
    let z = GpuActivations::from(x + y);
    let z_node = z.node();
    tape.add_backward_op(move |_| {
        let dz = z_node.take_gradient(shape);
        x_node.add_gradient(dz.clone());
        y_node.add_gradient(dz);
        Ok(())
    });
    z.put_tape(tape)
}

/// x + b, the bias a vector of x's width. The bias is frozen: it has no gradient.
pub(crate) fn add_bias<T: AnyTape>(x: GpuActivations<T>, bias: &Weight) -> GpuActivations<T> {
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
