//! A linear layer with a low-rank adapter beside it (Hu et al. 2021), on the CPU:
//! y = x · Wᵀ + scale · (mask ⊙ x) · Aᵀ · Bᵀ. The thin products go straight into the thick one's output.

use rayon::prelude::*;

use super::gemm::{Cores, Into, View, product, scaled_product};
use super::{gradient, linear};
use crate::ops::simd::GRAIN;
use crate::ops::{Answer, Beside};
use crate::tensor::cpu::{Hidden, hidden};
use crate::tensor::{AnyTape, Weight};

/// x is (positions, inputs), W is (outputs, inputs), y is (positions, outputs).
pub fn adapted<T: AnyTape>(x: Hidden<T>, weight: &Weight, beside: Beside<'_>) -> Hidden<T> {
    let (x, mut tape) = x.split_tape();
    let ((n, inputs), outputs, rank) = (*x.shape(), weight.rows(), beside.a.rows());
    let (w, a, b, scale) = (weight.shared(), beside.a.shared(), beside.b.shared(), beside.scale);
    let mask = beside.mask;
    let low = match &mask {
        Some(mask) => linear::forward(&masked(x.values(), &mask()), n, &a, rank, inputs), // (positions, rank)
        None => linear::forward(x.values(), n, &a, rank, inputs),
    };
    let mut y = linear::forward(x.values(), n, &w, outputs, inputs);
    let b_across = View::transposed(&b, rank);
    scaled_product(Cores::All, scale, (n, outputs, rank), &mut y, outputs, Into::Sum, View::rows(&low, rank), b_across);
    let y = hidden(y, n, outputs);
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let (x_node, y_node, kept) = (x.node(), y.node(), x.keep());
    let slots = beside.slots.map(|(a, b)| (a.clone(), b.clone()));
    tape.add_backward_op(move |gradients| {
        let mask = mask.map(|mask| mask());
        let dy = y_node.take(gradients)?;
        let (dx, is_begun) = x_node.sum(gradients)?;
        let into = if is_begun { Into::Sum } else { Into::Fresh };
        product((n, inputs, outputs), dx, inputs, into, View::rows(&dy, outputs), View::rows(&w, inputs));
        let mut d_low = vec![0.0; n * rank];
        let b_rows = View::rows(&b, rank);
        scaled_product(Cores::All, scale, (n, rank, outputs), &mut d_low, rank, Into::Fresh, View::rows(&dy, outputs), b_rows);
        match &mask {
            None => product((n, inputs, rank), dx, inputs, Into::Sum, View::rows(&d_low, rank), View::rows(&a, inputs)),
            Some(mask) => {
                let mut d_dropped = vec![0.0; n * inputs];
                let (d_low, a) = (View::rows(&d_low, rank), View::rows(&a, inputs));
                product((n, inputs, rank), &mut d_dropped, inputs, Into::Fresh, d_low, a);
                let parts = d_dropped.par_chunks(GRAIN).zip(mask.par_chunks(GRAIN));
                dx.par_chunks_mut(GRAIN).zip(parts).for_each(|(dx, (d, mask))| {
                    dx.iter_mut().zip(d).zip(mask).for_each(|((dx, d), m)| *dx += d * m);
                });
            }
        }
        if let Some((slot_a, slot_b)) = slots {
            let (mut da, mut db) = (vec![0.0; rank * inputs], vec![0.0; outputs * rank]);
            let x = kept.values();
            match &mask {
                Some(mask) => gradient::whole(&mut da, (rank, inputs, n), &d_low, &masked(&x, mask)),
                None => gradient::whole(&mut da, (rank, inputs, n), &d_low, &x),
            }
            let dy_across = View::transposed(&dy, outputs);
            scaled_product(Cores::All, scale, (outputs, rank, n), &mut db, rank, Into::Fresh, dy_across, View::rows(&low, rank));
            slot_a.put(Answer::gradient(da, rank, inputs));
            slot_b.put(Answer::gradient(db, outputs, rank));
        }
        Ok(())
    });
    y.put_tape(tape)
}

fn masked(x: &[f32], mask: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    out.par_chunks_mut(GRAIN).zip(x.par_chunks(GRAIN)).zip(mask.par_chunks(GRAIN)).for_each(|((out, x), mask)| {
        out.iter_mut().zip(x).zip(mask).for_each(|((out, x), m)| *out = x * m);
    });
    out
}
