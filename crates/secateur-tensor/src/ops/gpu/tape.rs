//! Runs a tape of GPU operations backward.

use dfdx::prelude::{Backward, Cpu, PutTape, Rank0, Tensor, ZerosTensor};

use crate::activations::{GpuActivations, dfdx_cpu, with_gradient_store};
use crate::tape::GradientTape;

/// Runs the tape of `y` backward from `upstream`, the gradient of `y`. Returns the gradient of `x`.
pub(crate) fn backward(
    y: GpuActivations<GradientTape>,
    upstream: GpuActivations,
    x: &GpuActivations,
) -> GpuActivations {
    let y_node = y.node();
    let (_, _, tape) = y.into_parts();
    with_gradient_store(|| {
        y_node.add_gradient(upstream.matrix().clone());
        drop(upstream);
        // dfdx's tape begins at a scalar of its CPU device; the steps use only the gradient store.
        let scalar: Tensor<Rank0, f32, Cpu> = dfdx_cpu().zeros();
        drop(scalar.put_tape(tape).backward());
        x.node().take_gradient(x.shape()).into()
    })
}
