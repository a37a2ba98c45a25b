//! Operations on the CPU that treat each element for itself: SwiGLU, sums, biases.

use rayon::prelude::*;

use super::maths::sigmoid;
use crate::activations::cpu::{CpuActivations, activations_from_vec};
use crate::ops::simd::{ELEMENTS_PER_TASK, dispatch_simd};
use crate::{AnyTape, Weight};

/// y = silu(gate) ⊙ up (Shazeer 2020). All three are (positions, width).
pub fn swiglu<T: AnyTape>(gate: CpuActivations<T>, up: CpuActivations<T>) -> CpuActivations<T> {
    let (gate, tape) = gate.split_tape();
    let (up, other) = up.split_tape();
    let mut tape = tape.merge(other);
    let (n, width) = *gate.shape();
    let (gate_node, up_node) = (gate.node(), up.node());
    let (gate, up) = (gate.shared_values(), up.shared_values());
    let make = {
        let (gate, up) = (gate.clone(), up.clone());
        move || swiglu_values(&gate, &up)
    };
    let y = activations_from_vec(make(), n, width);
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }
    let y = y.with_recomputation(make);

    let (y_node, kept) = (y.node(), y.save_for_backward());
    tape.add_backward_op(move |gradients| {
        kept.drop_cached();
        let mut dg = y_node.take_gradient(gradients)?;
        let mut du = vec![0.0; n * width];
        dg.par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(du.par_chunks_mut(ELEMENTS_PER_TASK))
            .zip(gate.par_chunks(ELEMENTS_PER_TASK))
            .zip(up.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(((dg, du), gate), up)| {
                dispatch_simd(
                    #[inline(always)]
                    || swiglu_backward(dg, du, gate, up),
                );
            });
        gate_node.add_gradient(gradients, dg)?;
        up_node.add_gradient(gradients, du)
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
            )
        });
    y
}

#[inline(always)]
fn swiglu_forward(y: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((y, &g), u) in y.iter_mut().zip(gate).zip(up) {
        *y = g * sigmoid(g) * u;
    }
}

/// dg holds the output's gradient. d silu(g) / dg = s + g·s·(1 − s), s = sigmoid(g).
#[inline(always)]
fn swiglu_backward(dg: &mut [f32], du: &mut [f32], gate: &[f32], up: &[f32]) {
    for (((dg, du), &g), u) in dg.iter_mut().zip(du).zip(gate).zip(up) {
        let (dy, s) = (*dg, sigmoid(g));
        *du = dy * g * s;
        *dg = dy * u * (s + g * s * (1.0 - s));
    }
}

#[inline(always)]
fn add_assign(sum: &mut [f32], y: &[f32]) {
    for (s, y) in sum.iter_mut().zip(y) {
        *s += y;
    }
}

/// x + y, of the same shape; in place of x where nobody else holds it.
pub fn add<T: AnyTape>(x: CpuActivations<T>, y: CpuActivations<T>) -> CpuActivations<T> {
    let (x, tape) = x.split_tape();
    let (y, other) = y.split_tape();
    let mut tape = tape.merge(other);
    let ((n, width), x_node, y_node) = (*x.shape(), x.node(), y.node());
    let mut sum = x.into_vec();
    sum.par_chunks_mut(ELEMENTS_PER_TASK)
        .zip(y.values().par_chunks(ELEMENTS_PER_TASK))
        .for_each(|(sum, y)| {
            dispatch_simd(
                #[inline(always)]
                || add_assign(sum, y),
            );
        });
    let z = activations_from_vec(sum, n, width);
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

/// x + b, the bias a vector. Its gradient is nobody's concern: biases are not trained.
pub fn add_bias<T: AnyTape>(x: CpuActivations<T>, bias: &Weight) -> CpuActivations<T> {
    let (x, mut tape) = x.split_tape();
    let ((n, width), x_node) = (*x.shape(), x.node());
    let mut sum = x.into_vec();
    let bias = bias.values();
    sum.par_chunks_mut(width)
        .for_each(|row| row.iter_mut().zip(&*bias).for_each(|(x, b)| *x += b));
    let y = activations_from_vec(sum, n, width);
    let y_node = y.node();
    tape.add_backward_op(move |gradients| {
        let dy = y_node.take_gradient(gradients)?;
        x_node.add_gradient(gradients, dy)
    });
    y.put_tape(tape)
}
