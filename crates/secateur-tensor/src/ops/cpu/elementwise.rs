//! Operations on the CPU that compute each element by itself: SwiGLU, sums, biases.

use rayon::prelude::*;

use super::maths::sigmoid;
use crate::activations::CpuActivations;
use crate::ops::simd::{ELEMENTS_PER_TASK, dispatch_simd};
use crate::tape::AnyTape;
use crate::weight::Weight;

/// y = silu(gate) ⊙ up (Shazeer 2020). All three are (positions, width).
pub(crate) fn swiglu<T: AnyTape>(
    gate: CpuActivations<T>,
    up: CpuActivations<T>,
) -> CpuActivations<T> {
    let (gate, gate_tape) = gate.split_tape();
    let (up, up_tape) = up.split_tape();
    let mut tape = gate_tape.merge(up_tape);
    let (positions, width) = *gate.shape();
    let (gate_node, up_node) = (gate.node(), up.node());
    let (gate, up) = (gate.shared_values(), up.shared_values());
    let compute = {
        let (gate, up) = (gate.clone(), up.clone());
        move || swiglu_values(&gate, &up)
    };
    let y = CpuActivations::from_vec(compute(), positions, width);
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }
    let y = y.with_recomputation(compute);

    let (y_node, saved_y) = (y.node(), y.save_for_backward());
    tape.add_backward_op(move |gradients| {
        saved_y.drop_cached();
        let mut gate_gradient = y_node.take_gradient(gradients)?;
        let mut up_gradient = vec![0.0; positions * width];
        gate_gradient
            .par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(up_gradient.par_chunks_mut(ELEMENTS_PER_TASK))
            .zip(gate.par_chunks(ELEMENTS_PER_TASK))
            .zip(up.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(((gate_gradient, up_gradient), gate), up)| {
                dispatch_simd(
                    #[inline(always)]
                    || swiglu_backward(gate_gradient, up_gradient, gate, up),
                );
            });
        gate_node.add_gradient(gradients, gate_gradient)?;
        up_node.add_gradient(gradients, up_gradient)
    });
    y.put_tape(tape)
}

/// silu(gate) ⊙ up
fn swiglu_values(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; gate.len()];
    y.par_chunks_mut(ELEMENTS_PER_TASK)
        .zip(gate.par_chunks(ELEMENTS_PER_TASK))
        .zip(up.par_chunks(ELEMENTS_PER_TASK))
        .for_each(|((y, gate), up)| {
            dispatch_simd(
                #[inline(always)]
                || swiglu_forward(y, gate, up),
            );
        });
    y
}

/// silu(g) = g · σ(g)
#[inline(always)]
fn swiglu_forward(y: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((y, &g), u) in y.iter_mut().zip(gate).zip(up) {
        *y = g * sigmoid(g) * u;
    }
}

/// `gate_gradient` holds dy on entry. With s = σ(g): d silu(g) / dg = s + g·s·(1 − s), so
/// dg = dy · u · (s + g·s·(1 − s)) and du = dy · g · s.
#[inline(always)]
fn swiglu_backward(gate_gradient: &mut [f32], up_gradient: &mut [f32], gate: &[f32], up: &[f32]) {
    let gradients = gate_gradient.iter_mut().zip(up_gradient);
    for (((dg, du), &g), u) in gradients.zip(gate).zip(up) {
        let (dy, s) = (*dg, sigmoid(g));
        *du = dy * g * s;
        *dg = dy * u * (s + g * s * (1.0 - s));
    }
}

#[inline(always)]
fn add_assign(sum: &mut [f32], y: &[f32]) {
    for (sum, y) in sum.iter_mut().zip(y) {
        *sum += y;
    }
}

/// x + y, of one shape. Reuses the memory of x if nothing else holds it.
pub(crate) fn add<T: AnyTape>(x: CpuActivations<T>, y: CpuActivations<T>) -> CpuActivations<T> {
    let (x, x_tape) = x.split_tape();
    let (y, y_tape) = y.split_tape();
    let mut tape = x_tape.merge(y_tape);
    let ((positions, width), x_node, y_node) = (*x.shape(), x.node(), y.node());
    let mut sum = x.into_vec();
    sum.par_chunks_mut(ELEMENTS_PER_TASK)
        .zip(y.values().par_chunks(ELEMENTS_PER_TASK))
        .for_each(|(sum, y)| {
            dispatch_simd(
                #[inline(always)]
                || add_assign(sum, y),
            );
        });
    let z = CpuActivations::from_vec(sum, positions, width);
    if !T::OWNS_TAPE {
        return z.put_tape(tape);
    }

    let z_node = z.node();
    tape.add_backward_op(move |gradients| {
        let dz = z_node.take_gradient(gradients)?;
        x_node.add_gradient(gradients, dz.clone())?;
        y_node.add_gradient(gradients, dz)
    });
    z.put_tape(tape)
}

/// x + b, the bias a vector of x's width. The bias is frozen: it has no gradient.
pub(crate) fn add_bias<T: AnyTape>(x: CpuActivations<T>, bias: &Weight) -> CpuActivations<T> {
    let (x, mut tape) = x.split_tape();
    let ((positions, width), x_node) = (*x.shape(), x.node());
    let mut sum = x.into_vec();
    let bias = bias.values();
    sum.par_chunks_mut(width)
        .for_each(|row| add_assign(row, bias));
    let y = CpuActivations::from_vec(sum, positions, width);
    let y_node = y.node();
    tape.add_backward_op(move |gradients| {
        let dy = y_node.take_gradient(gradients)?;
        x_node.add_gradient(gradients, dy)
    });
    y.put_tape(tape)
}
