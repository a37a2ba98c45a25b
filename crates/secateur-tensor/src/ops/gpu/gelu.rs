//! GELU on a GPU, the exact form: y = x · Φ(x). dfdx's own `accurate_gelu` has the right values,
//! but its derivative is wrong: the term x · φ(x) is √2 times too large.

use dfdx::prelude::*;

use crate::activations::GpuActivations;
use crate::gpu::GpuMatrix;
use crate::ops::normal::{DENSITY_AT_ZERO, TAIL_COEFFICIENTS, TAIL_STEP};
use crate::tape::AnyTape;

/// y = x · Φ(x), element by element.
pub(crate) fn gelu<T: AnyTape>(x: GpuActivations<T>) -> GpuActivations<T> {
    let shape = x.shape();
    let (x, x_node, mut tape) = x.into_parts();
    // x · Φ(x) = max(x, 0) − |x| · Φ(−|x|)
    let (tail, _) = normal_tail(&x);
    let y = GpuActivations::from(x.clone().relu() - x.clone().abs() * tail);
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let y_node = y.node();
    tape.add_backward_op(move |_| {
        // dx = dy · (Φ(x) + x · φ(x)), φ = Φ′; Φ(x) = 1 − Φ(−x)
        let dy = y_node.take_gradient(shape);
        let (tail, bell) = normal_tail(&x);
        let cumulative = x.lt(0.0).choose(tail.clone(), tail.negate() + 1.0);
        x_node.add_gradient(dy * (cumulative + x * (bell * DENSITY_AT_ZERO)));
        Ok(())
    });
    y.put_tape(tape)
}

/// Φ(−|x|) and e^(−x²/2), see [`TAIL_COEFFICIENTS`].
fn normal_tail(x: &GpuMatrix) -> (GpuMatrix, GpuMatrix) {
    let bell = (x.clone().square() * -0.5).exp();
    let t = (x.clone().abs() * TAIL_STEP + 1.0).recip();
    // ratio = t · P(t), P by Horner's rule
    let [highest, rest @ ..] = TAIL_COEFFICIENTS;
    let start = t.clone() * highest;
    let (last, middle) = rest.split_last().expect("more than one coefficient");
    let ratio = middle
        .iter()
        .fold(start, |sum, &coefficient| (sum + coefficient) * t.clone());
    let tail = bell.clone() * ((ratio + *last) * t);
    (tail, bell)
}
