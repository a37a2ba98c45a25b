//! The gradient of a linear layer's weight, G = δᵀ · x, and what is computed from it, on the CPU.
//!
//! For y = x · Wᵀ with x (positions, inputs), W and G (outputs, inputs), y and δ = dL/dy
//! (positions, outputs), dx = δ · W (positions, inputs), and the position t:
//!
//! - Σ_c W[r,c]·G[r,c] = Σ_t δ[t,r]·y[t,r],
//!   because G[r,c] = Σ_t δ[t,r]·x[t,c] and y[t,r] = Σ_c W[r,c]·x[t,c];
//! - Σ_r W[r,c]·G[r,c] = Σ_t x[t,c]·dx[t,c].
//!
//! So sums of W∘G need only activations. Sums of other scores compute G a band of rows at a time,
//! reduce the band, and reuse its memory for the next.

use std::sync::Arc;

use rayon::prelude::*;

use super::axis_sums::axis_sums;
use super::gemm::{MatrixView, OutputMode, matmul, matmul_single_thread};
use crate::activations::{CpuActivations, SavedActivations};
use crate::ops::gradient_query::{
    AxisSums, ElementScore, GradientQuery, GradientRequest, GradientResult, SampleSpan, SumAxes,
};
use crate::ops::simd::dispatch_simd;

/// Elements of a band of G that all cores compute together: 8 MiB.
const SHARED_BAND_ELEMENTS: usize = 1 << 21;

/// Elements of a band of G that one core computes alone, sample by sample: 512 KiB. The band, its
/// squares and the gradient of one sample together stay in a core's cache.
const CORE_BAND_ELEMENTS: usize = 1 << 17;

/// A request, with what its result needs from the forward pass.
pub(crate) struct CpuPendingGradient {
    request: GradientRequest,
    x: SavedActivations,
    /// y = x · Wᵀ, kept only if row sums of W∘G are wanted.
    y: Option<Arc<Vec<f32>>>,
}

impl CpuPendingGradient {
    pub(crate) fn new(request: &GradientRequest, x: &CpuActivations, y: &CpuActivations) -> Self {
        let needs_y = matches!(
            request.query,
            GradientQuery::WeightTimesGradientSums(SumAxes { rows: true, .. })
        );
        Self {
            request: request.clone(),
            x: x.save_for_backward(),
            y: needs_y.then(|| y.shared_values()),
        }
    }

    /// Computes the result. `delta` is δ, (positions, outputs); `dx` is δ · W, (positions, inputs).
    pub(crate) fn resolve(
        self,
        weight: &[f32],
        (outputs, inputs): (usize, usize),
        positions: usize,
        delta: &[f32],
        dx: &[f32],
    ) {
        let kernel = LinearGradient {
            weight,
            outputs,
            inputs,
            positions,
            delta,
            x: &self.x.values(),
        };
        let result = match &self.request.query {
            GradientQuery::Gradient => kernel.gradient(),
            GradientQuery::GradientAndSampleSquares(samples) => {
                kernel.gradient_and_squares(samples)
            }
            GradientQuery::WeightTimesGradientSums(axes) => {
                let y = self.y.as_ref().map(|y| &y[..]);
                GradientResult::Sums(kernel.weight_times_gradient_sums(*axes, y, dx))
            }
            GradientQuery::ElementScoreSums {
                samples: None,
                axes,
                score,
            } => GradientResult::Sums(kernel.score_sums(*axes, score.as_ref())),
            GradientQuery::ElementScoreSums {
                samples: Some(samples),
                axes,
                score,
            } => GradientResult::Sums(kernel.sample_score_sums(samples, *axes, score.as_ref())),
        };
        self.request.set_result(result);
    }
}

/// The operands of G = δᵀ · x.
struct LinearGradient<'a> {
    /// (outputs, inputs)
    weight: &'a [f32],
    outputs: usize,
    inputs: usize,
    positions: usize,
    /// (positions, outputs)
    delta: &'a [f32],
    /// (positions, inputs)
    x: &'a [f32],
}

impl LinearGradient<'_> {
    /// G.
    fn gradient(&self) -> GradientResult {
        let mut gradient = vec![0.0; self.outputs * self.inputs];
        let shape = (self.outputs, self.inputs, self.positions);
        weight_gradient(&mut gradient, shape, self.delta, self.x);
        GradientResult::from_gradient(gradient, self.outputs, self.inputs)
    }

    /// G and S. Each core computes one band of rows after another.
    fn gradient_and_squares(&self, samples: &[SampleSpan]) -> GradientResult {
        let mut gradient = vec![0.0; self.outputs * self.inputs];
        let mut squares = vec![0.0; self.outputs * self.inputs];
        let rows = band_rows(self.inputs, CORE_BAND_ELEMENTS);
        gradient
            .par_chunks_mut(rows * self.inputs)
            .zip(squares.par_chunks_mut(rows * self.inputs))
            .enumerate()
            .for_each(|(band, (gradient, squares))| {
                self.sample_band(band * rows, gradient, squares, samples);
            });
        GradientResult::from_gradient_and_squares(gradient, squares, self.outputs, self.inputs)
    }

    /// Σ W∘G over rows and columns, from activations alone (see the top of this file).
    fn weight_times_gradient_sums(&self, axes: SumAxes, y: Option<&[f32]>, dx: &[f32]) -> AxisSums {
        let rows = match y {
            Some(y) => column_dot_products(self.delta, y, self.outputs),
            None => Vec::new(),
        };
        let cols = match axes.cols {
            true => column_dot_products(self.x, dx, self.inputs),
            false => Vec::new(),
        };
        AxisSums { rows, cols }
    }

    /// Σ score(W, G) over rows and columns. All cores compute one band of G, then its sums.
    fn score_sums(&self, axes: SumAxes, score: &dyn ElementScore) -> AxisSums {
        let Self {
            outputs, inputs, ..
        } = *self;
        let band_rows = band_rows(inputs, SHARED_BAND_ELEMENTS);
        let mut sums = AxisSums::zeros(outputs, inputs, axes);
        let mut band = vec![0.0; band_rows.min(outputs) * inputs];
        for first_row in (0..outputs).step_by(band_rows) {
            let rows = band_rows.min(outputs - first_row);
            let gradient = &mut band[..rows * inputs];
            // G[first_row..] = δ[.., first_row..]ᵀ · x
            matmul(
                (rows, inputs, self.positions),
                gradient,
                inputs,
                OutputMode::Overwrite,
                MatrixView::column_major(&self.delta[first_row..], outputs),
                MatrixView::row_major(self.x, inputs),
            );
            let weight = &self.weight[first_row * inputs..(first_row + rows) * inputs];
            let band_sums = axis_sums(weight, gradient, &[], inputs, axes, score);
            sums.add_band(first_row, &band_sums);
        }
        sums
    }

    /// Σ score(W, G, S) over rows and columns. Each core computes a band of G and S, and its sums.
    fn sample_score_sums(
        &self,
        samples: &[SampleSpan],
        axes: SumAxes,
        score: &dyn ElementScore,
    ) -> AxisSums {
        let Self {
            outputs, inputs, ..
        } = *self;
        let band_rows = band_rows(inputs, CORE_BAND_ELEMENTS);
        let band_sums = |first_row: usize| {
            let len = band_rows.min(outputs - first_row) * inputs;
            let (mut gradient, mut squares) = (vec![0.0; len], vec![0.0; len]);
            self.sample_band(first_row, &mut gradient, &mut squares, samples);
            let weight = &self.weight[first_row * inputs..first_row * inputs + len];
            axis_sums(weight, &gradient, &squares, inputs, axes, score)
        };
        let first_rows: Vec<usize> = (0..outputs).step_by(band_rows).collect();
        let parts: Vec<AxisSums> = first_rows.par_iter().map(|&row| band_sums(row)).collect();
        // Columns cross all bands: their parts are added in the order of the rows.
        let mut sums = AxisSums::zeros(outputs, inputs, axes);
        for (&first_row, part) in first_rows.iter().zip(&parts) {
            sums.add_band(first_row, part);
        }
        sums
    }

    /// Adds to rows `first_row..` of G and S, sample by sample, on this core: G = Σ_j G_j and
    /// S = Σ_j (scale_j · G_j)². Both begin as zeros.
    fn sample_band(
        &self,
        first_row: usize,
        gradient: &mut [f32],
        squares: &mut [f32],
        samples: &[SampleSpan],
    ) {
        let Self {
            outputs, inputs, ..
        } = *self;
        let rows = gradient.len() / inputs;
        // G_j of the band, for one sample after another
        let mut sample_gradient = vec![0.0; gradient.len()];
        for sample in samples {
            // G_j = δ_jᵀ · x_j, over the positions of sample j
            let first_position = sample.positions.start;
            let delta = &self.delta[first_position * outputs + first_row..];
            let x = &self.x[first_position * inputs..];
            matmul_single_thread(
                (rows, inputs, sample.positions.len()),
                &mut sample_gradient,
                inputs,
                OutputMode::Overwrite,
                MatrixView::column_major(delta, outputs),
                MatrixView::row_major(x, inputs),
            );
            let scale = sample.gradient_scale;
            dispatch_simd(
                #[inline(always)]
                || {
                    accumulate_sample_gradient(
                        &mut *gradient,
                        &mut *squares,
                        &sample_gradient[..],
                        scale,
                    )
                },
            );
        }
    }
}

/// G = δᵀ · x. δ is (positions, outputs), x is (positions, inputs), G is (outputs, inputs).
pub(super) fn weight_gradient(
    gradient: &mut [f32],
    (outputs, inputs, positions): (usize, usize, usize),
    delta: &[f32],
    x: &[f32],
) {
    matmul(
        (outputs, inputs, positions),
        gradient,
        inputs,
        OutputMode::Overwrite,
        MatrixView::column_major(delta, outputs),
        MatrixView::row_major(x, inputs),
    );
}

/// Rows of a band of about `elements` elements: a multiple of 64, so that the bands are whole
/// numbers of the matrix product's tiles.
fn band_rows(inputs: usize, elements: usize) -> usize {
    (elements / inputs.max(1)).next_multiple_of(64)
}

/// Adds a sample's gradient to G, and its scaled square to S: G += G_j, S += (scale · G_j)².
#[inline(always)]
pub(crate) fn accumulate_sample_gradient(
    gradient: &mut [f32],
    squares: &mut [f32],
    sample_gradient: &[f32],
    scale: f32,
) {
    for ((sum, square), part) in gradient.iter_mut().zip(squares).zip(sample_gradient) {
        *sum += part;
        *square += (part * scale) * (part * scale);
    }
}

/// Σ_t a[t,c] · b[t,c] for every column c, in f64. Both are (positions, cols). A column is summed
/// by one core, in the order of the positions, so its bits do not depend on the number of threads.
pub(super) fn column_dot_products(a: &[f32], b: &[f32], cols: usize) -> Vec<f64> {
    const COLUMNS_PER_TASK: usize = 64;
    let mut sums = vec![0.0; cols];
    sums.par_chunks_mut(COLUMNS_PER_TASK)
        .enumerate()
        .for_each(|(task, sums)| {
            dispatch_simd(
                #[inline(always)]
                || add_column_products(sums, a, b, task * COLUMNS_PER_TASK, cols),
            );
        });
    sums
}

/// Adds the products a[t,c] · b[t,c] of the columns `first_col..first_col + sums.len()` to `sums`,
/// in the order of the positions t.
#[inline(always)]
fn add_column_products(sums: &mut [f64], a: &[f32], b: &[f32], first_col: usize, cols: usize) {
    let columns = first_col..first_col + sums.len();
    for (a, b) in a.chunks_exact(cols).zip(b.chunks_exact(cols)) {
        let (a, b) = (&a[columns.clone()], &b[columns.clone()]);
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
}
