//! Where a GPU's tapes begin and end: the embedding, and the run backward.

use dfdx::prelude::{Backward, Cpu, PutTape, Rank0, Tensor, ZerosTensor};

use crate::tensor::gpu::{Hidden, hidden, with_gradients};
use crate::tensor::{Recording, Weight, cpu};

/// The rows of the embedding that `ids` name: (positions, width). They are read where the embedding lies, so that it takes no room
/// on the GPU.
///
/// # Panics
/// If an id lies outside the vocabulary; whoever makes ids checks them.
pub fn embed(weight: &Weight, ids: &[u32]) -> Hidden {
    let rows: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
    hidden(weight.gather(&rows), ids.len(), weight.cols())
}

/// Runs the tape of `y` backward from the gradient `upstream` of `y`, and returns that of `x`.
pub fn backward(y: Hidden<Recording>, upstream: Hidden, x: &Hidden) -> Hidden {
    let (y_node, tape) = (y.node(), y.parts().2);
    with_gradients(|| {
        y_node.add(upstream.matrix().clone());
        drop(upstream);
        let end: Tensor<Rank0, f32, Cpu> = cpu::device().zeros();
        drop(end.put_tape(tape).backward());
        x.node().take(x.shape()).into()
    })
}
