//! The gradient of a norm's weight, on a GPU.

use dfdx::prelude::*;

use super::product::column_sums;
use super::rows::indicator_matrix;
use crate::activations::GpuActivations;
use crate::gpu::GpuMatrix;
use crate::ops::cpu::accumulate_sample_gradient;
use crate::ops::gradient_query::{GradientRequest, SampleSpan};
use crate::weight::Weight;

/// Sets the gradient of a norm's weight, dw = Σ_t dy_t ⊙ x̂_t, where x̂ is the input after
/// normalisation; sample by sample if the query names samples. `products` is dy ⊙ x̂, (positions,
/// width).
pub(super) fn set_weight_gradient(request: &GradientRequest, weight: &Weight, products: GpuMatrix) {
    let (_, width) = *products.shape();
    let to_gradient = |values| GpuActivations::from_vec(values, 1, width).into();
    let Some(samples) = request.query.samples() else {
        let sums = column_sums(products);
        let gradient = sums.into_iter().map(|sum| sum as f32).collect();
        return request.set_from_gradient(weight, to_gradient(gradient), None);
    };
    let (mut gradient, mut squares) = (vec![0.0; width], vec![0.0; width]);
    let sample_gradients = sample_sums(samples, products);
    for (sample, sample_gradient) in samples.iter().zip(sample_gradients.chunks_exact(width)) {
        accumulate_sample_gradient(
            &mut gradient,
            &mut squares,
            sample_gradient,
            sample.gradient_scale,
        );
    }
    request.set_from_gradient(weight, to_gradient(gradient), Some(to_gradient(squares)));
}

/// The sum of the rows of each sample: (samples, width), row-major. It is the product of (samples,
/// positions), 1 where the position belongs to the sample, with the rows.
fn sample_sums(samples: &[SampleSpan], rows: GpuMatrix) -> Vec<f32> {
    let (positions, _) = *rows.shape();
    let places = samples.iter().enumerate().flat_map(|(index, sample)| {
        let positions = sample.positions.clone();
        positions.map(move |position| (index, position))
    });
    indicator_matrix(samples.len(), positions, places)
        .matmul(rows)
        .as_vec()
}
