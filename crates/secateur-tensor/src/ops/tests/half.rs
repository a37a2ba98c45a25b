//! Half precision: the error of a product is that of rounding to halves, whatever the size of the
//! gradient.

use super::*;
use crate::Precision;

/// The largest difference, relative to the largest expected element.
fn relative_difference(actual: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0f32, |max, x| max.max(x.abs()));
    largest_difference(actual, expected) / largest
}

#[test]
fn half_precision_products_neither_overflow_nor_underflow() {
    on_each_device(|| {
        if !crate::gpu::is_selected() {
            return; // the CPU computes in f32 only
        }
        let mut rng = Seed::from_u64(11).rng();
        let (n, outputs, inputs) = (48, 96, 160);
        let x = activations(random_values(&mut rng, n * inputs), n, inputs);
        let single = Weight::new(random_values(&mut rng, outputs * inputs), outputs, inputs);
        let half = single.clone().with_precision(Precision::Float16);
        let unscaled = random_values(&mut rng, n * outputs);
        // from far below the range of halves to far above it
        for size in [1e-20, 1e-9, 1.0, 1e9, 1e20] {
            let upstream: Vec<f32> = unscaled.iter().map(|u| u * size).collect();
            let results = |weight: &Weight| {
                let request = GradientRequest::for_gradient();
                let y = linear(x.with_gradient_tape(), weight, Some(&request));
                let values = y.values().into_owned();
                let dx = run_backward(y, &upstream, &x);
                let dw = request.take_gradient().expect("the gradient was requested");
                [values, dx, dw]
            };
            let names = ["y", "dx", "dw"];
            for ((name, exact), half) in names.into_iter().zip(results(&single)).zip(results(&half))
            {
                let difference = relative_difference(&half, &exact);
                assert!(
                    difference > 0.0 && difference < 2e-3,
                    "{name} at {size}: {difference}"
                );
            }
        }
    });
}
