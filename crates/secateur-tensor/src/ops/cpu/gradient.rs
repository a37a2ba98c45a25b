//! The gradient of a linear layer's weight, G = δᵀ · x, and what follows from it, on the CPU: whole, as row and column sums
//! that need no G at all, or a band of rows at a time that is reduced before the next is made.
//!
//! For y = x · Wᵀ with output gradient δ: Σ_c W[r,c]·G[r,c] = Σ_t δ[t,r]·y[t,r], and Σ_r W[r,c]·G[r,c] = Σ_t x[t,c]·(δW)[t,c].

use std::sync::Arc;

use rayon::prelude::*;

use super::gemm::{MatrixView, OutputMode, matmul, matmul_single_thread};
use crate::activations::cpu::{CpuActivations, SavedActivations};
use crate::ops::simd::dispatch_simd;
use crate::ops::slot::{
    AxisSums, GradientQuery, GradientRequest, GradientResult, SampleSpan, SumAxes,
    accumulate_sample_gradient, axis_sums_on_cpu,
};

/// A question, with what its answer needs of the way forward.
pub struct CpuPendingGradient {
    slot: GradientRequest,
    x: SavedActivations,
    /// Only where row sums are made of it.
    y: Option<Arc<Vec<f32>>>,
}

impl CpuPendingGradient {
    pub fn new(slot: &GradientRequest, x: &CpuActivations, y: &CpuActivations) -> Self {
        let needs_y = matches!(
            slot.query,
            GradientQuery::WeightTimesGradientSums(SumAxes { rows: true, .. })
        );
        Self {
            slot: slot.clone(),
            x: x.save_for_backward(),
            y: needs_y.then(|| y.shared_values()),
        }
    }

    /// δ is (n, outputs), dx = δ · W is (n, inputs).
    pub fn resolve(
        self,
        weight: &[f32],
        (outputs, inputs): (usize, usize),
        n: usize,
        delta: &[f32],
        dx: &[f32],
    ) {
        let x = &self.x.values();
        let answer = match &self.slot.query {
            GradientQuery::Gradient => {
                let mut gradient = vec![0.0; outputs * inputs];
                weight_gradient(&mut gradient, (outputs, inputs, n), delta, x);
                GradientResult::from_gradient(gradient, outputs, inputs)
            }
            GradientQuery::GradientAndSampleSquares(samples) => {
                let (mut gradient, mut squares) =
                    (vec![0.0; outputs * inputs], vec![0.0; outputs * inputs]);
                let band = band_rows(inputs, 1 << 17) * inputs;
                gradient
                    .par_chunks_mut(band)
                    .zip(squares.par_chunks_mut(band))
                    .enumerate()
                    .for_each(|(i, (g, s))| {
                        sample_gradient_band(
                            (g, s),
                            i * (band / inputs),
                            (outputs, inputs),
                            delta,
                            x,
                            samples,
                        );
                    });
                GradientResult::from_gradient_and_squares(gradient, squares, outputs, inputs)
            }
            GradientQuery::WeightTimesGradientSums(sides) => {
                let rows = self
                    .y
                    .as_deref()
                    .map_or_else(Vec::new, |y| column_dot_products(delta, y, outputs));
                let cols = if sides.cols {
                    column_dot_products(x, dx, inputs)
                } else {
                    Vec::new()
                };
                GradientResult::Sums(AxisSums { rows, cols })
            }
            GradientQuery::ElementScoreSums {
                samples: None,
                axes: sides,
                score: worth,
            } => {
                let band = band_rows(inputs, 1 << 21);
                let mut sums = AxisSums::zeros(outputs, inputs, *sides);
                let mut gradient = vec![0.0; band.min(outputs) * inputs];
                for first in (0..outputs).step_by(band) {
                    let rows = band.min(outputs - first);
                    let gradient = &mut gradient[..rows * inputs];
                    let delta = MatrixView {
                        data: &delta[first..],
                        row_stride: 1,
                        col_stride: outputs,
                    };
                    matmul(
                        (rows, inputs, n),
                        gradient,
                        inputs,
                        OutputMode::Overwrite,
                        delta,
                        MatrixView::row_major(x, inputs),
                    );
                    let own = &weight[first * inputs..(first + rows) * inputs];
                    sums.add_band(
                        first,
                        &axis_sums_on_cpu(own, gradient, &[], inputs, *sides, worth.as_ref()),
                    );
                }
                GradientResult::Sums(sums)
            }
            GradientQuery::ElementScoreSums {
                samples: Some(samples),
                axes: sides,
                score: worth,
            } => {
                let band = band_rows(inputs, 1 << 17);
                let bands: Vec<usize> = (0..outputs).step_by(band).collect();
                let parts: Vec<AxisSums> = bands
                    .par_iter()
                    .map(|&first| {
                        let size = band.min(outputs - first) * inputs;
                        let (mut gradient, mut squares) = (vec![0.0; size], vec![0.0; size]);
                        sample_gradient_band(
                            (&mut gradient, &mut squares),
                            first,
                            (outputs, inputs),
                            delta,
                            x,
                            samples,
                        );
                        let own = &weight[first * inputs..first * inputs + size];
                        axis_sums_on_cpu(own, &gradient, &squares, inputs, *sides, worth.as_ref())
                    })
                    .collect();
                let mut sums = AxisSums::zeros(outputs, inputs, *sides);
                bands
                    .iter()
                    .zip(&parts)
                    .for_each(|(&first, part)| sums.add_band(first, part));
                GradientResult::Sums(sums)
            }
        };
        self.slot.set_result(answer);
    }
}

/// G = δᵀ · x.
pub(super) fn weight_gradient(
    gradient: &mut [f32],
    (outputs, inputs, n): (usize, usize, usize),
    delta: &[f32],
    x: &[f32],
) {
    matmul(
        (outputs, inputs, n),
        gradient,
        inputs,
        OutputMode::Overwrite,
        MatrixView::column_major(delta, outputs),
        MatrixView::row_major(x, inputs),
    );
}

/// Rows of a band that holds about so many elements, in multiples of what the product works on at once.
fn band_rows(inputs: usize, elements: usize) -> usize {
    (elements / inputs.max(1)).next_multiple_of(64)
}

/// Rows `first..` of G and of Σ (share · G_j)², sample by sample.
fn sample_gradient_band(
    (gradient, squares): (&mut [f32], &mut [f32]),
    first: usize,
    (outputs, inputs): (usize, usize),
    delta: &[f32],
    x: &[f32],
    samples: &[SampleSpan],
) {
    let rows = gradient.len() / inputs;
    let mut own = vec![0.0; gradient.len()];
    for SampleSpan {
        positions,
        gradient_scale: share,
    } in samples
    {
        let delta = MatrixView {
            data: &delta[positions.start * outputs + first..],
            row_stride: 1,
            col_stride: outputs,
        };
        let x = MatrixView::row_major(&x[positions.start * inputs..], inputs);
        matmul_single_thread(
            (rows, inputs, positions.len()),
            &mut own,
            inputs,
            OutputMode::Overwrite,
            delta,
            x,
        );
        dispatch_simd(
            #[inline(always)]
            || accumulate_sample_gradient(&mut *gradient, &mut *squares, &own[..], *share),
        );
    }
}

/// Σ_t a[t,c] · b[t,c] for every column c, in f64.
pub(super) fn column_dot_products(a: &[f32], b: &[f32], cols: usize) -> Vec<f64> {
    const COLUMNS_PER_TASK: usize = 64;
    let mut sums = vec![0.0; cols];
    sums.par_chunks_mut(COLUMNS_PER_TASK)
        .enumerate()
        .for_each(|(i, sums)| {
            dispatch_simd(
                #[inline(always)]
                || add_column_products(sums, a, b, i * COLUMNS_PER_TASK, cols),
            );
        });
    sums
}

/// Of the columns from `from` on, as many as there are sums.
#[inline(always)]
fn add_column_products(sums: &mut [f64], a: &[f32], b: &[f32], from: usize, cols: usize) {
    for (a, b) in a.chunks_exact(cols).zip(b.chunks_exact(cols)) {
        let (a, b) = (&a[from..from + sums.len()], &b[from..from + sums.len()]);
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
}
