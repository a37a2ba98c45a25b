//! RMSNorm on a GPU (Zhang and Sennrich 2019), in f32.

use dfdx::prelude::*;

use super::product::{by_column, by_row, column, column_sums, sum_of_rows};
use super::rows::selection;
use crate::ops::slot::{Slot, add_squared};
use crate::tensor::gpu::{Hidden, Matrix, hidden};
use crate::tensor::{AnyTape, Weight};

/// y = x / √(mean(x²) + ε) ⊙ w. w is (1, width).
pub fn rms_norm<T: AnyTape>(x: Hidden<T>, weight: &Weight, epsilon: f32, slot: Option<&Slot>) -> Hidden<T> {
    let shape = x.shape();
    let (x, x_node, mut tape) = x.parts();
    let w = weight.matrix();
    let mean = x.clone().square().matmul(column(shape.1, 1.0 / shape.1 as f32)); // (positions, 1)
    let inverse = (mean + epsilon).sqrt().recip();
    let y = Hidden::from(x.clone() * by_row(inverse.clone(), shape) * by_column(w.clone(), shape));
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let (y_node, asked) = (y.node(), slot.map(|slot| (slot.clone(), weight.clone())));
    tape.add_backward_op(move |_| {
        let delta = y_node.take(shape);
        if let Some((slot, weight)) = asked {
            weight_gradient(&slot, &weight, delta.clone() * x.clone() * by_row(inverse.clone(), shape));
        }
        // dx = s·(δ⊙w) − x·s³·mean(δ⊙w⊙x), s = 1 / √(mean(x²) + ε)
        let dn = delta * by_column(w, shape);
        let cube = inverse.clone() * inverse.clone() * inverse.clone();
        let along = sum_of_rows(dn.clone() * x.clone()) * cube * (1.0 / shape.1 as f32);
        x_node.add(dn * by_row(inverse, shape) - x * by_row(along, shape));
        Ok(())
    });
    y.put_tape(tape)
}

/// dw = Σ_t δ_t ⊙ x_t · s_t, sample by sample where their squares are asked for.
fn weight_gradient(slot: &Slot, weight: &Weight, products: Matrix) {
    let (n, width) = *products.shape();
    let (mut gradient, mut squares) = (vec![0.0; width], vec![0.0; width]);
    match slot.ask.samples() {
        None => gradient = column_sums(products).into_iter().map(|sum| sum as f32).collect(),
        Some(samples) => {
            let places = samples.iter().enumerate().flat_map(|(j, sample)| sample.positions.clone().map(move |t| (j, t)));
            let own = selection(samples.len(), n, places).matmul(products).as_vec(); // (samples, width)
            for (sample, own) in samples.iter().zip(own.chunks_exact(width)) {
                add_squared(&mut gradient, &mut squares, own, sample.share);
            }
        }
    }
    let row = |values| hidden(values, 1, width).into();
    slot.put_whole(weight, row(gradient), slot.ask.samples().map(|_| row(squares)));
}
