//! Runs a tape of CPU operations backward.

use dfdx::prelude::{Backward, Cpu, PutTape, Rank0, Tape, Tensor, ZerosTensor};

use crate::activations::{CpuActivations, dfdx_cpu};
use crate::tape::GradientTape;

/// Runs the tape of `y` backward from `upstream`, the gradient of `y`, row-major. Returns the
/// gradient of `x`, row-major.
pub(crate) fn backward(
    y: CpuActivations<GradientTape>,
    upstream: Vec<f32>,
    x: &CpuActivations,
) -> Vec<f32> {
    let (y, mut tape) = y.split_tape();
    let y_node = y.node();
    drop(y);
    // dfdx runs a tape backward from a scalar, the last step first. The step added here runs first,
    // and sets the gradient of y.
    tape.add_backward_op(move |gradients| y_node.add_gradient(gradients, upstream));
    let scalar: Tensor<Rank0, f32, Cpu> = dfdx_cpu().zeros();
    let mut gradients = scalar.put_tape(tape).backward();
    match x.node().take_gradient(&mut gradients) {
        Ok(gradient) => gradient,
        Err(error) => panic!("dfdx could not allocate a gradient: {error}"),
    }
}
