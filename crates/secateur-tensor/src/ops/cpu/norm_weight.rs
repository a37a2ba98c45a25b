//! The gradient of a norm's weight.

use std::ops::Range;

use super::gradient::accumulate_sample_gradient;
use crate::activations::CpuActivations;
use crate::ops::gradient_query::GradientRequest;
use crate::ops::simd::dispatch_simd;
use crate::weight::Weight;

/// Sets the gradient of a norm's weight, dw = Σ_t dy_t ⊙ x̂_t, where x̂ is the input after
/// normalisation. The positions t are added in their order, on one core, so the bits do not depend
/// on the number of threads. If the query names samples, each sample's sum is one G_j.
///
/// `add_row(sum, t)` adds dy_t ⊙ x̂_t to `sum`, of the weight's length.
pub(super) fn set_weight_gradient(
    request: &GradientRequest,
    weight: &Weight,
    positions: usize,
    add_row: impl Fn(&mut [f32], usize),
) {
    let width = weight.len();
    let to_gradient = |values| CpuActivations::from_vec(values, 1, width).into();
    let sum_rows = |positions: Range<usize>| {
        let mut sum = vec![0.0; width];
        dispatch_simd(
            #[inline(always)]
            || {
                for position in positions.clone() {
                    add_row(&mut sum, position);
                }
            },
        );
        sum
    };
    let Some(samples) = request.query.samples() else {
        let gradient = sum_rows(0..positions);
        return request.set_from_gradient(weight, to_gradient(gradient), None);
    };
    let (mut gradient, mut squares) = (vec![0.0; width], vec![0.0; width]);
    for sample in samples.iter() {
        accumulate_sample_gradient(
            &mut gradient,
            &mut squares,
            &sum_rows(sample.positions.clone()),
            sample.gradient_scale,
        );
    }
    request.set_from_gradient(weight, to_gradient(gradient), Some(to_gradient(squares)));
}
