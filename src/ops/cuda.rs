//! CUDA's face: dfdx lends no buffer there, so every operation is composed of its own.

use dfdx::prelude::*;

use super::{Slot, composed};
use crate::tensor::{AnyTape, Device, Hidden, Recording, Weight, device};

pub use super::composed::{attention, swiglu};

/// y = x · Wᵀ; see the CPU's face.
pub fn linear<T: AnyTape>(x: Hidden<T>, weight: &Weight, slot: Option<&Slot>) -> Hidden<T> {
    composed::linear(fill(x, weight, slot), &weight.tensor())
}

/// y = x / √(mean(x²) + ε) ⊙ w; see the CPU's face.
pub fn rms_norm<T: AnyTape>(x: Hidden<T>, weight: &Weight, epsilon: f32, slot: Option<&Slot>) -> Hidden<T> {
    composed::rms_norm(fill(x, weight, slot), &weight.tensor(), epsilon)
}

/// The rows of the embedding that `ids` name: (positions, width).
pub fn embed(weight: &Weight, ids: &[u32]) -> Hidden {
    let index: Tensor<(usize,), usize, Device> =
        device().tensor_from_vec(ids.iter().map(|&id| id as usize).collect(), (ids.len(),));
    weight.tensor().gather(index)
}

/// Runs the tape of `y` backward from the gradient `upstream` of `y`, (positions, width) row-major.
pub fn backward(y: Hidden<Recording>, upstream: Vec<f32>) -> Gradients<f32, Device> {
    let upstream: Hidden = device().tensor_from_vec(upstream, *y.shape());
    (y * upstream).sum::<Rank0, _>().backward()
}

/// Tapes run from their end to their beginning: what is recorded before the operation sees the weight's gradient
/// complete, and moves it into the slot.
fn fill<T: AnyTape>(x: Hidden<T>, weight: &Weight, slot: Option<&Slot>) -> Hidden<T> {
    let Some(slot) = slot.cloned() else { return x };
    let (x, mut tape) = x.split_tape();
    let weight = weight.tensor();
    tape.add_backward_op(move |gradients| {
        slot.add(gradients.get(&weight).as_vec());
        Ok(())
    });
    x.put_tape(tape)
}
