//! CUDA's face: dfdx lends no buffer there, so every operation is composed of its own. A pack is one sequence there, so a
//! sample's gradient is the pack's.

use dfdx::prelude::*;

use super::{Beside, Heads, Layout, Past, Scored, Slot, Target, TokenScore, composed};
use crate::tensor::{AnyTape, Device, Hidden, Recording, Weight, device, hidden};

pub use super::composed::{add, swiglu};

/// y = x · Wᵀ; see the CPU's face.
pub fn linear<T: AnyTape>(x: Hidden<T>, weight: &Weight, slot: Option<&Slot>) -> Hidden<T> {
    let matrix = weight.tensor();
    composed::linear(fill(x, &matrix, slot), &matrix)
}

/// y = x · Wᵀ + scale · (mask ⊙ x) · Aᵀ · Bᵀ; see the CPU's face.
pub fn adapted<T: AnyTape>(x: Hidden<T>, weight: &Weight, beside: Beside<'_>) -> Hidden<T> {
    let (a, b) = (beside.a.tensor(), beside.b.tensor());
    let (slot_a, slot_b) = beside.slots.unzip();
    let (rows, cols) = *x.shape();
    let mask = beside.mask.map(|mask| hidden(mask(), rows, cols));
    let x = fill(fill(x, &a, slot_a), &b, slot_b);
    composed::adapted(x, &weight.tensor(), (&a, &b), beside.scale, mask)
}

/// y = x / √(mean(x²) + ε) ⊙ w; see the CPU's face.
pub fn rms_norm<T: AnyTape>(x: Hidden<T>, weight: &Weight, epsilon: f32, slot: Option<&Slot>) -> Hidden<T> {
    let row = weight.tensor();
    composed::rms_norm(fill(x, &row, slot), &row, epsilon)
}

/// Causal attention of one sequence; see the CPU's face.
pub fn attention<T: AnyTape>(
    q: Hidden<T>,
    k: Hidden<T>,
    v: Hidden<T>,
    heads: Heads,
    layout: &Layout,
    past: Option<&mut Past>,
) -> Hidden<T> {
    assert_eq!(layout.spans.len(), 1, "on CUDA a pack is one sequence");
    let Some(past) = past else { return composed::attention(q, k, v, heads, &layout.rotary) };
    let span = &layout.spans[0];
    let (start, width) = (span.start(Some(past)), k.shape().1);
    let (keys, values) = &mut past.sequences[span.past];
    keys.extend(composed::rotated(k, heads.dim, &layout.rotary, start).as_vec());
    values.extend(v.as_vec());
    let all = |from: &[f32]| hidden(from.to_vec(), from.len() / width, width).retaped::<T>();
    composed::attend(composed::rotated(q, heads.dim, &layout.rotary, start), all(keys), all(values), heads)
}

/// x + b, the bias a vector; see the CPU's face.
pub fn add_bias<T: AnyTape>(x: Hidden<T>, bias: &Weight) -> Hidden<T> {
    let shape = *x.shape();
    let row = device().tensor_from_vec(bias.values().into_owned(), (bias.len(),));
    x + row.broadcast_like::<_, Axis<0>>(&shape)
}

/// The rows of the embedding that `ids` name: (positions, width).
pub fn embed(weight: &Weight, ids: &[u32]) -> Hidden {
    let index: Tensor<(usize,), usize, Device> =
        device().tensor_from_vec(ids.iter().map(|&id| id as usize).collect(), (ids.len(),));
    weight.tensor().gather(index)
}

/// Rates the targets; see the CPU's face.
pub fn token_scores(x: &Hidden, head: &Weight, targets: &[Target]) -> Vec<TokenScore> {
    let logits = composed::linear(x.clone(), &head.tensor());
    composed::token_scores(&logits.as_vec(), head.rows(), targets)
}

/// The summed cross entropy of the targets, and the gradient with respect to x; see the CPU's face.
pub fn cross_entropy(x: &Hidden, head: &Weight, targets: &[Target], scale: f32, slot: Option<&Slot>) -> Scored {
    let logits = linear(x.leaky_trace(), head, slot);
    let Scored { nll, gradient } = composed::cross_entropy(&logits.as_vec(), head.rows(), targets, scale);
    Scored { nll, gradient: backward(logits, gradient, x) }
}

/// Runs the tape of `y` backward from the gradient `upstream` of `y`, (positions, width) row-major, and returns that of `x`.
pub fn backward(y: Hidden<Recording>, upstream: Vec<f32>, x: &Hidden) -> Vec<f32> {
    let upstream: Hidden = device().tensor_from_vec(upstream, *y.shape());
    (y * upstream).sum::<Rank0, _>().backward().get(x).as_vec()
}

/// Tapes run from their end to their beginning: what is recorded before the operation sees the weight's gradient
/// complete, and moves it into the slot.
fn fill<T: AnyTape>(x: Hidden<T>, weight: &Hidden, slot: Option<&Slot>) -> Hidden<T> {
    let Some(slot) = slot.cloned() else { return x };
    let (x, mut tape) = x.split_tape();
    let weight = weight.clone();
    tape.add_backward_op(move |gradients| {
        let gradient = gradients.get(&weight).as_vec();
        let squares = slot.ask.samples().map_or_else(Vec::new, |samples| {
            let share = samples.first().map_or(1.0, |sample| sample.share);
            gradient.iter().map(|g| (g * share) * (g * share)).collect()
        });
        slot.put_whole(|| weight.as_vec().into(), weight.shape().1, gradient, squares);
        Ok(())
    });
    x.put_tape(tape)
}
