//! Where a GPU's tapes begin and end: the embedding, and the run backward.

use dfdx::prelude::{Backward, Cpu, PutTape, Rank0, Tensor, ZerosTensor};

use crate::activations::cpu;
use crate::activations::gpu::{GpuActivations, activations_from_vec, with_gradient_store};
use crate::{GradientTape, Weight};

/// The rows of the embedding that `ids` name: (positions, width). They are read where the embedding lies, so that it takes no room
/// on the GPU.
///
/// # Panics
/// If an id lies outside the vocabulary; whoever makes ids checks them.
pub fn embed(weight: &Weight, ids: &[u32]) -> GpuActivations {
    let rows: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
    activations_from_vec(weight.gather_rows(&rows), ids.len(), weight.cols())
}

/// Runs the tape of `y` backward from the gradient `upstream` of `y`, and returns that of `x`.
pub fn backward(
    y: GpuActivations<GradientTape>,
    upstream: GpuActivations,
    x: &GpuActivations,
) -> GpuActivations {
    let (y_node, tape) = (y.node(), y.into_parts().2);
    with_gradient_store(|| {
        y_node.add_gradient(upstream.matrix().clone());
        drop(upstream);
        let end: Tensor<Rank0, f32, Cpu> = cpu::dfdx_cpu().zeros();
        drop(end.put_tape(tape).backward());
        x.node().take_gradient(x.shape()).into()
    })
}
