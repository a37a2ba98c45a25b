//! y = x · Wᵀ on a GPU, in the precision of the weight.

use super::gradient::Asked;
use super::product::{across, along};
use crate::ops::Slot;
use crate::tensor::gpu::Hidden;
use crate::tensor::{AnyTape, Weight};

/// x is (positions, inputs), W is (outputs, inputs), y is (positions, outputs).
pub fn linear<T: AnyTape>(x: Hidden<T>, weight: &Weight, slot: Option<&Slot>) -> Hidden<T> {
    let (x, x_node, mut tape) = x.parts();
    let held = weight.held();
    let y = Hidden::from(across(&x, &held));
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let (y_node, shape) = (y.node(), y.shape());
    let asked = slot.map(|slot| Asked::new(slot, weight, &x, y.matrix()));
    tape.add_backward_op(move |_| {
        let delta = y_node.take(shape);
        let dx = along(&delta, &held);
        if let Some(asked) = asked {
            asked.answer(&held, &delta, &dx);
        }
        x_node.add(dx);
        Ok(())
    });
    y.put_tape(tape)
}
