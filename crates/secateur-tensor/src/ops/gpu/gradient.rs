//! The gradient of a linear layer's weight, G = δᵀ · x, and what is computed from it, on a GPU. The
//! equations are those of `cpu/gradient.rs`; a GPU computes G as a whole where it is needed and
//! reduces it there.

use super::product::{column_sums, linear_weight_gradient, row_sum_matrix};
use crate::activations::GpuActivations;
use crate::gpu::GpuMatrix;
use crate::gpu_weight_cache::GpuWeight;
use crate::ops::gradient_query::{
    AxisSums, GradientQuery, GradientRequest, GradientResult, SampleSpan, SumAxes,
};
use crate::weight::Weight;

/// A request, with what its result needs from the forward pass.
pub(crate) struct GpuPendingGradient {
    request: GradientRequest,
    weight: Weight,
    /// (positions, inputs)
    x: GpuMatrix,
    /// y = x · Wᵀ, (positions, outputs), kept only if row sums of W∘G are wanted.
    y: Option<GpuMatrix>,
}

impl GpuPendingGradient {
    pub(crate) fn new(
        request: &GradientRequest,
        weight: &Weight,
        x: &GpuMatrix,
        y: &GpuMatrix,
    ) -> Self {
        let needs_y = matches!(
            request.query,
            GradientQuery::WeightTimesGradientSums(SumAxes { rows: true, .. })
        );
        Self {
            request: request.clone(),
            weight: weight.clone(),
            x: x.clone(),
            y: needs_y.then(|| y.clone()),
        }
    }

    /// Computes the result. `delta` is δ, (positions, outputs); `dx` is δ · W, (positions, inputs).
    pub(crate) fn resolve(self, gpu_weight: &GpuWeight, delta: &GpuMatrix, dx: &GpuMatrix) {
        if let GradientQuery::WeightTimesGradientSums(axes) = &self.request.query {
            // Σ_c W∘G = Σ_t δ∘y, Σ_r W∘G = Σ_t x∘dx: no G.
            let rows = match self.y {
                Some(y) => column_sums(delta.clone() * y),
                None => Vec::new(),
            };
            let cols = match axes.cols {
                true => column_sums(self.x * dx.clone()),
                false => Vec::new(),
            };
            let sums = GradientResult::Sums(AxisSums { rows, cols });
            return self.request.set_result(sums);
        }
        let (gradient, squares) = match self.request.query.samples() {
            None => (linear_weight_gradient(delta, &self.x, gpu_weight), None),
            Some(samples) => sum_sample_gradients(samples, |sample| {
                let (delta, x) = (sample_rows(delta, sample), sample_rows(&self.x, sample));
                linear_weight_gradient(&delta, &x, gpu_weight)
            }),
        };
        let to_gradient = |matrix: GpuMatrix| GpuActivations::from(matrix).into();
        self.request.set_from_gradient(
            &self.weight,
            to_gradient(gradient),
            squares.map(to_gradient),
        );
    }
}

/// G = Σ_j G_j and S = Σ_j (scale_j · G_j)², added in the order of the samples. There is at least
/// one.
pub(crate) fn sum_sample_gradients(
    samples: &[SampleSpan],
    sample_gradient: impl Fn(&SampleSpan) -> GpuMatrix,
) -> (GpuMatrix, Option<GpuMatrix>) {
    let square = |gradient: &GpuMatrix, scale: f32| (gradient.clone() * scale).square();
    let Some((first, others)) = samples.split_first() else {
        unreachable!("a query names at least one sample")
    };
    let mut gradient = sample_gradient(first);
    let mut squares = square(&gradient, first.gradient_scale);
    for sample in others {
        let part = sample_gradient(sample);
        squares = squares + square(&part, sample.gradient_scale);
        gradient = gradient + part;
    }
    (gradient, Some(squares))
}

/// The rows of a sample's positions.
fn sample_rows(matrix: &GpuMatrix, sample: &SampleSpan) -> GpuMatrix {
    matrix.clone().slice((sample.positions.clone(), ..))
}

/// The sums of a matrix over each row and each column.
pub(crate) fn axis_sums(values: GpuMatrix, axes: SumAxes) -> AxisSums {
    let rows = match axes.rows {
        true => {
            let sums = row_sum_matrix(values.clone()).as_vec();
            sums.into_iter().map(f64::from).collect()
        }
        false => Vec::new(),
    };
    let cols = match axes.cols {
        true => column_sums(values),
        false => Vec::new(),
    };
    AxisSums { rows, cols }
}
