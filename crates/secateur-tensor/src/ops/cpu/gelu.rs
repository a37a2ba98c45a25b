//! GELU on the CPU (Hendrycks and Gimpel 2016), the exact form: y = x · Φ(x), Φ the cumulative
//! distribution function of the standard normal distribution.

use rayon::prelude::*;

use super::maths::exp;
use crate::activations::CpuActivations;
use crate::ops::normal::{DENSITY_AT_ZERO, TAIL_COEFFICIENTS, TAIL_STEP};
use crate::ops::simd::{ELEMENTS_PER_TASK, dispatch_simd};
use crate::tape::AnyTape;

/// y = x · Φ(x), element by element.
pub(crate) fn gelu<T: AnyTape>(x: CpuActivations<T>) -> CpuActivations<T> {
    let (x, mut tape) = x.split_tape();
    let (positions, width) = *x.shape();
    let (x_node, x_values) = (x.node(), x.shared_values());
    let compute = {
        let x_values = x_values.clone();
        move || gelu_values(&x_values)
    };
    let y = CpuActivations::from_vec(compute(), positions, width);
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }
    let y = y.with_recomputation(compute);

    let (y_node, saved_y) = (y.node(), y.save_for_backward());
    tape.add_backward_op(move |gradients| {
        saved_y.drop_cached();
        let mut gradient = y_node.take_gradient(gradients)?;
        gradient
            .par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(x_values.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(gradient, x)| {
                dispatch_simd(
                    #[inline(always)]
                    || gelu_backward(gradient, x),
                );
            });
        x_node.add_gradient(gradients, gradient)
    });
    y.put_tape(tape)
}

fn gelu_values(x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(ELEMENTS_PER_TASK)
        .zip(x.par_chunks(ELEMENTS_PER_TASK))
        .for_each(|(y, x)| {
            dispatch_simd(
                #[inline(always)]
                || gelu_forward(y, x),
            );
        });
    y
}

/// x · Φ(x) = max(x, 0) − |x| · Φ(−|x|). On neither side of zero are two nearly equal numbers
/// subtracted.
#[inline(always)]
fn gelu_forward(y: &mut [f32], x: &[f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        let (tail, _) = normal_tail(x);
        let positive_part = if x < 0.0 { 0.0 } else { x };
        *y = positive_part - x.abs() * tail;
    }
}

/// `gradient` holds dy and becomes dx = dy · (Φ(x) + x · φ(x)), φ = Φ′.
#[inline(always)]
fn gelu_backward(gradient: &mut [f32], x: &[f32]) {
    for (gradient, &x) in gradient.iter_mut().zip(x) {
        let (tail, bell) = normal_tail(x);
        let cumulative = if x < 0.0 { tail } else { 1.0 - tail };
        *gradient *= cumulative + x * (DENSITY_AT_ZERO * bell);
    }
}

/// Φ(−|x|) and e^(−x²/2), see [`TAIL_COEFFICIENTS`].
#[inline(always)]
fn normal_tail(x: f32) -> (f32, f32) {
    let bell = exp(-0.5 * x * x);
    let t = 1.0 / x.abs().mul_add(TAIL_STEP, 1.0);
    // Φ(−|x|) / e^(−x²/2) = t · P(t), P by Horner's rule
    let mut ratio = 0.0f32;
    for coefficient in TAIL_COEFFICIENTS {
        ratio = ratio.mul_add(t, coefficient);
    }
    (bell * (ratio * t), bell)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// x · Φ(x) in f64 by Simpson's rule over the density.
    fn exact_gelu(x: f64) -> f64 {
        let density = |z: f64| (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        // Φ(−|x|) = ∫ from |x| to |x| + 12
        let (from, steps) = (x.abs(), 4000);
        let h = 12.0 / f64::from(steps);
        let inner: f64 = (1..steps)
            .map(|i| {
                let weight = if i % 2 == 1 { 4.0 } else { 2.0 };
                weight * density(from + f64::from(i) * h)
            })
            .sum();
        let tail = (density(from) + inner + density(from + 12.0)) * h / 3.0;
        x.max(0.0) - x.abs() * tail
    }

    #[test]
    fn gelu_is_exact_to_a_few_units_in_the_last_place() {
        let x: Vec<f32> = (-1300..=1300).map(|i| i as f32 * 1e-2).collect();
        for (&x, y) in x.iter().zip(gelu_values(&x)) {
            let exact = exact_gelu(f64::from(x));
            // e^(−x²/2) turns the absolute rounding error of −x²/2 into a relative error of the
            // tail, which therefore grows with x².
            let bound = 5e-7 + 6e-8 * f64::from(x * x);
            assert!(
                (f64::from(y) - exact).abs() <= bound * exact.abs() + 1e-36,
                "gelu({x}) = {y}, not {exact}"
            );
        }
        assert_eq!(gelu_values(&[0.0, -200.0, 200.0]), [0.0, 0.0, 200.0]);
        assert!(gelu_values(&[f32::NAN])[0].is_nan());
    }
}
