//! Half precision: a product of halves is as near as halves allow, whatever the size of the gradient.

use super::*;
use crate::Precision;

/// The largest difference, relative to the largest number.
fn relative_difference(a: &[f32], b: &[f32]) -> f32 {
    let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter()
        .zip(b)
        .map(|(x, y)| (x - y).abs())
        .fold(0f32, f32::max)
        / largest
}

#[test]
fn half_precision_products_neither_overflow_nor_underflow() {
    on_each_device(|| {
        if !crate::gpu::is_selected() {
            return; // the CPU computes in f32 alone
        }
        let mut stream = Seed::from_u64(11).rng();
        let (n, outputs, inputs) = (48, 96, 160);
        let x = activations(random_values(&mut stream, n * inputs), n, inputs);
        let single = Weight::new(
            random_values(&mut stream, outputs * inputs),
            outputs,
            inputs,
        );
        let half = single.clone().with_precision(Precision::Float16);
        let plain = random_values(&mut stream, n * outputs);
        // far below what a half can hold, and far above it
        for size in [1e-20, 1e-9, 1.0, 1e9, 1e20] {
            let upstream: Vec<f32> = plain.iter().map(|u| u * size).collect();
            let of = |weight: &Weight| {
                let slot = GradientRequest::for_gradient();
                let y = linear(x.with_gradient_tape(), weight, Some(&slot));
                let values = y.values().into_owned();
                (
                    values,
                    run_backward(y, &upstream, &x),
                    slot.take_gradient().expect("asked for"),
                )
            };
            let ((y, dx, dw), (y_half, dx_half, dw_half)) = (of(&single), of(&half));
            for (what, exact, halves) in
                [("y", y, y_half), ("dx", dx, dx_half), ("dw", dw, dw_half)]
            {
                let apart = relative_difference(&halves, &exact);
                assert!(apart > 0.0 && apart < 2e-3, "{what} at {size}: {apart}");
            }
        }
    });
}
