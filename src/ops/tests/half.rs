//! Half precision: a product of halves is as near as halves allow, whatever the size of the gradient.

use super::*;
use crate::tensor::Precision;

/// The largest difference, relative to the largest number.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max) / largest
}

#[test]
fn products_of_halves_neither_overflow_nor_vanish() {
    on_each_face(|| {
        if !tensor::gpu::is_selected() {
            return; // the CPU computes in f32 alone
        }
        let mut stream = Seed::root(11).stream();
        let (n, outputs, inputs) = (48, 96, 160);
        let x = hidden(numbers(&mut stream, n * inputs), n, inputs);
        let single = Weight::new(numbers(&mut stream, outputs * inputs), outputs, inputs);
        let half = single.clone().held_in(Precision::Float16);
        let plain = numbers(&mut stream, n * outputs);
        // far below what a half can hold, and far above it
        for size in [1e-20, 1e-9, 1.0, 1e9, 1e20] {
            let upstream: Vec<f32> = plain.iter().map(|u| u * size).collect();
            let of = |weight: &Weight| {
                let slot = Slot::gradient();
                let y = linear(x.recorded(), weight, Some(&slot));
                let values = y.values().into_owned();
                (values, back(y, &upstream, &x), slot.take_gradient().expect("asked for"))
            };
            let ((y, dx, dw), (y_half, dx_half, dw_half)) = (of(&single), of(&half));
            for (what, exact, halves) in [("y", y, y_half), ("dx", dx, dx_half), ("dw", dw, dw_half)] {
                let apart = apart(&halves, &exact);
                assert!(apart > 0.0 && apart < 2e-3, "{what} at {size}: {apart}");
            }
        }
    });
}
