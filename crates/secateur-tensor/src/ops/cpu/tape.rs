//! Where the CPU's tapes begin and end: the embedding, and the run backward.

use dfdx::prelude::{Backward, Cpu, PutTape, Rank0, Tape, Tensor, ZerosTensor};

use crate::activations::cpu::{CpuActivations, activations_from_vec, dfdx_cpu};
use crate::{GradientTape, Weight};

/// The rows of the embedding that `ids` name: (positions, width).
///
/// # Panics
/// If an id lies outside the vocabulary; whoever makes ids checks them.
pub fn embed(weight: &Weight, ids: &[u32]) -> CpuActivations {
    let rows: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
    activations_from_vec(weight.gather_rows(&rows), ids.len(), weight.cols())
}

/// Runs the tape of `y` backward from the gradient `upstream` of `y`, (positions, width) row-major, and returns that of `x`.
pub fn backward(
    y: CpuActivations<GradientTape>,
    upstream: Vec<f32>,
    x: &CpuActivations,
) -> Vec<f32> {
    let (y, mut tape) = y.split_tape();
    let y_node = y.node();
    drop(y);
    tape.add_backward_op(move |gradients| y_node.add_gradient(gradients, upstream));
    let end: Tensor<Rank0, f32, Cpu> = dfdx_cpu().zeros();
    let mut gradients = end.put_tape(tape).backward();
    match x.node().take_gradient(&mut gradients) {
        Ok(gradient) => gradient,
        Err(error) => panic!("dfdx keeps no gradient: {error}"),
    }
}
