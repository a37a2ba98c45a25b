//! The gradient of a linear layer's weight, G = δᵀ · x, and what follows from it, on a GPU: as row and column sums that need
//! no G at all, whole, or reduced where it was made.

use super::product::{column_sums, linear_weight_gradient, row_sum_matrix};
use crate::Weight;
use crate::activations::gpu::{GpuActivations, GpuMatrix};
use crate::ops::slot::{
    AxisSums, GradientQuery, GradientRequest, GradientResult, SampleSpan, SumAxes,
};
use crate::resident::GpuWeight;

/// A question, with what its answer needs of the way forward.
pub struct GpuPendingGradient {
    slot: GradientRequest,
    weight: Weight,
    x: GpuMatrix,
    /// Only where row sums are made of it.
    y: Option<GpuMatrix>,
}

impl GpuPendingGradient {
    pub fn new(slot: &GradientRequest, weight: &Weight, x: &GpuMatrix, y: &GpuMatrix) -> Self {
        let needs_y = matches!(
            slot.query,
            GradientQuery::WeightTimesGradientSums(SumAxes { rows: true, .. })
        );
        Self {
            slot: slot.clone(),
            weight: weight.clone(),
            x: x.clone(),
            y: needs_y.then(|| y.clone()),
        }
    }

    /// δ is (n, outputs), dx = δ · W is (n, inputs).
    pub fn resolve(self, held: &GpuWeight, delta: &GpuMatrix, dx: &GpuMatrix) {
        if let GradientQuery::WeightTimesGradientSums(sides) = &self.slot.query {
            let rows = self
                .y
                .map_or_else(Vec::new, |y| column_sums(delta.clone() * y));
            let cols = if sides.cols {
                column_sums(self.x * dx.clone())
            } else {
                Vec::new()
            };
            return self
                .slot
                .set_result(GradientResult::Sums(AxisSums { rows, cols }));
        }
        let (gradient, squares) = match self.slot.query.samples() {
            None => (linear_weight_gradient(delta, &self.x, held), None),
            Some(samples) => sum_sample_gradients(samples, |at| {
                linear_weight_gradient(&sample_rows(delta, at), &sample_rows(&self.x, at), held)
            }),
        };
        let whole = |of: GpuMatrix| GpuActivations::from(of).into();
        self.slot
            .set_from_gradient(&self.weight, whole(gradient), squares.map(whole));
    }
}

/// Σ over the samples of their gradients, and of (share · gradient)².
pub fn sum_sample_gradients(
    samples: &[SampleSpan],
    own: impl Fn(&SampleSpan) -> GpuMatrix,
) -> (GpuMatrix, Option<GpuMatrix>) {
    let squares = |own: &GpuMatrix, share: f32| (own.clone() * share).square();
    let mut samples = samples.iter();
    let Some(first) = samples.next() else {
        unreachable!("squares are asked of samples")
    };
    let gradient = own(first);
    let start = (squares(&gradient, first.gradient_scale), gradient);
    let (squares, gradient) = samples.fold(start, |(sum, gradient), sample| {
        let own = own(sample);
        (sum + squares(&own, sample.gradient_scale), gradient + own)
    });
    (gradient, Some(squares))
}

/// A sample's rows.
fn sample_rows(of: &GpuMatrix, at: &SampleSpan) -> GpuMatrix {
    of.clone().slice((at.positions.clone(), ..))
}

/// Sums of every element by row and column.
pub fn axis_sums(values: GpuMatrix, sides: SumAxes) -> AxisSums {
    let rows = if sides.rows {
        row_sum_matrix(values.clone())
            .as_vec()
            .into_iter()
            .map(f64::from)
            .collect()
    } else {
        Vec::new()
    };
    let cols = if sides.cols {
        column_sums(values)
    } else {
        Vec::new()
    };
    AxisSums { rows, cols }
}
