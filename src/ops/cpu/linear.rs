//! y = x · Wᵀ on the CPU. The frozen weight is plain memory; its gradient is made only where somebody asks, and only as
//! much of it at a time as the question needs.

use super::gemm::{Into, View, fewest_rows, product, product_across};
use super::gradient;
use crate::ops::Slot;
use crate::tensor::cpu::{Hidden, hidden};
use crate::tensor::{AnyTape, Weight};

/// y = x · Wᵀ. x is (positions, inputs), W is (outputs, inputs), y is (positions, outputs).
pub fn linear<T: AnyTape>(x: Hidden<T>, weight: &Weight, slot: Option<&Slot>) -> Hidden<T> {
    let (x, mut tape) = x.split_tape();
    let ((n, inputs), outputs) = (*x.shape(), weight.rows());
    let memory = weight.shared();
    let y = hidden(forward(x.values(), n, &memory, outputs, inputs), n, outputs);
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let (x_node, y_node) = (x.node(), y.node());
    let asked = slot.map(|slot| gradient::Asked::new(slot, &x, &y));
    tape.add_backward_op(move |gradients| {
        let dy = y_node.take(gradients)?;
        let Some(asked) = asked else {
            let (dx, is_begun) = x_node.sum(gradients)?;
            let into = if is_begun { Into::Sum } else { Into::Fresh };
            product((n, inputs, outputs), dx, inputs, into, View::rows(&dy, outputs), View::rows(&memory, inputs));
            return Ok(());
        };
        let mut dx = vec![0.0; n * inputs];
        product((n, inputs, outputs), &mut dx, inputs, Into::Fresh, View::rows(&dy, outputs), View::rows(&memory, inputs));
        asked.answer(&memory, (outputs, inputs), n, &dy, &dx);
        x_node.add(gradients, dx)
    });
    y.put_tape(tape)
}

/// Up to so many rows bringing the weight into another order, as gemm does, takes longer than the product.
const FEW_ROWS: usize = 32;

/// x · Wᵀ, of as many rows as x has.
pub(super) fn forward(x: &[f32], n: usize, weight: &[f32], outputs: usize, inputs: usize) -> Vec<f32> {
    let rows = n.max(fewest_rows(outputs, inputs));
    let padded: Vec<f32>;
    let from = if n < rows {
        padded = x.iter().copied().chain(std::iter::repeat_n(0.0, (rows - n) * inputs)).collect();
        &padded[..]
    } else {
        x
    };
    let mut y = vec![0.0; rows * outputs];
    if rows <= FEW_ROWS {
        let mut across = vec![0.0; outputs * rows];
        product_across((rows, outputs, inputs), &mut across, View::rows(from, inputs), View::transposed(weight, inputs));
        for (o, column) in across.chunks_exact(rows).enumerate() {
            column.iter().enumerate().for_each(|(i, value)| y[i * outputs + o] = *value);
        }
        y.truncate(n * outputs);
        return y;
    }
    product((rows, outputs, inputs), &mut y, outputs, Into::Fresh, View::rows(from, inputs), View::transposed(weight, inputs));
    y.truncate(n * outputs);
    y
}
