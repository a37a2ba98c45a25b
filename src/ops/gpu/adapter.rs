//! A linear layer with a low-rank adapter beside it (Hu et al. 2021), on a GPU: y = x · Wᵀ + scale · (mask ⊙ x) · Aᵀ · Bᵀ.
//! The frozen weight is multiplied in its own precision, the adapter in f32.

use dfdx::prelude::TryMatMul;

use super::product::{across, along, transposed};
use crate::ops::{Answer, Beside, Mask};
use crate::tensor::gpu::{Hidden, Matrix, matrix};
use crate::tensor::{AnyTape, Weight};

/// x is (positions, inputs), W is (outputs, inputs), y is (positions, outputs).
pub fn adapted<T: AnyTape>(x: Hidden<T>, weight: &Weight, beside: Beside<'_>) -> Hidden<T> {
    let (n, inputs) = x.shape();
    let (x, x_node, mut tape) = x.parts();
    let (held, a, b, scale) = (weight.held(), beside.a.matrix(), beside.b.matrix(), beside.scale);
    let masked = move |x: Matrix, mask: &Option<Mask>| match mask {
        Some(mask) => x * matrix(mask(), n, inputs),
        None => x,
    };
    let mask = beside.mask;
    let low = masked(x.clone(), &mask).matmul(transposed(&a)); // (positions, rank)
    let y = Hidden::from(across(&x, &held) + low.clone().matmul(transposed(&b)) * scale);
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let (y_node, shape) = (y.node(), y.shape());
    let slots = beside.slots.map(|(a, b)| (a.clone(), b.clone()));
    tape.add_backward_op(move |_| {
        let delta = y_node.take(shape);
        let d_low = delta.clone().matmul(b) * scale;
        if let Some((slot_a, slot_b)) = slots {
            let gradient = |of: Matrix| Answer::Gradient { gradient: Hidden::from(of).into(), squares: None };
            slot_a.put(gradient(transposed(&d_low).matmul(masked(x, &mask))));
            slot_b.put(gradient(transposed(&delta).matmul(low) * scale));
        }
        x_node.add(along(&delta, &held) + masked(d_low.matmul(a), &mask));
        Ok(())
    });
    y.put_tape(tape)
}
