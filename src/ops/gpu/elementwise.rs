//! Operations on a GPU that treat each element for itself: SwiGLU, sums, biases.

use super::product::by_column;
use crate::tensor::gpu::Hidden;
use crate::tensor::{AnyTape, Weight};

/// y = silu(gate) ⊙ up (Shazeer 2020). All three are (positions, width).
pub fn swiglu<T: AnyTape>(gate: Hidden<T>, up: Hidden<T>) -> Hidden<T> {
    let shape = gate.shape();
    let ((gate, gate_node, tape), (up, up_node, other)) = (gate.parts(), up.parts());
    let mut tape = tape.merge(other);
    let y = Hidden::from(gate.clone().sigmoid() * gate.clone() * up.clone());
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let y_node = y.node();
    tape.add_backward_op(move |_| {
        // d silu(g) / dg = s + g·s·(1 − s), s = sigmoid(g)
        let (delta, s) = (y_node.take(shape), gate.clone().sigmoid());
        let silu = gate * s.clone();
        up_node.add(delta.clone() * silu.clone());
        gate_node.add(delta * up * (s.clone() + silu.clone() - silu * s));
        Ok(())
    });
    y.put_tape(tape)
}

/// x + y, of the same shape.
pub fn add<T: AnyTape>(x: Hidden<T>, y: Hidden<T>) -> Hidden<T> {
    let shape = x.shape();
    let ((x, x_node, tape), (y, y_node, other)) = (x.parts(), y.parts());
    let mut tape = tape.merge(other);
    let z = Hidden::from(x + y);
    let z_node = z.node();
    tape.add_backward_op(move |_| {
        let delta = z_node.take(shape);
        x_node.add(delta.clone());
        y_node.add(delta);
        Ok(())
    });
    z.put_tape(tape)
}

/// x + b, the bias a vector. Its gradient is nobody's concern: biases are not trained.
pub fn add_bias<T: AnyTape>(x: Hidden<T>, bias: &Weight) -> Hidden<T> {
    let shape = x.shape();
    let (x, x_node, mut tape) = x.parts();
    let y = Hidden::from(x + by_column(bias.matrix(), shape));
    let y_node = y.node();
    tape.add_backward_op(move |_| {
        x_node.add(y_node.take(shape));
        Ok(())
    });
    y.put_tape(tape)
}
