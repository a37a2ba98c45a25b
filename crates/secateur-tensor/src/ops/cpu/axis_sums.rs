//! Row and column sums of a score of every element of a weight, on the CPU.

use rayon::prelude::*;

use crate::ops::gradient_query::{AxisSums, ElementScore, SumAxes};
use crate::ops::simd::{dispatch_simd, rows_per_task, sum_f64};

/// Elements of the bands that are computed before their sums are added. Each band has its own
/// column sums, so this bounds their memory.
const BATCH_ELEMENTS: usize = 1 << 21;

/// Σ score(w, g, s) over each row and each column, in f64. All matrices are row-major with `cols`
/// columns; `squares` is empty if the score does not use it.
///
/// The rows are divided into bands whose size depends on `cols` alone, and the bands' sums are
/// added in the order of the rows. So the bits do not depend on the number of threads.
pub(crate) fn axis_sums(
    weights: &[f32],
    gradients: &[f32],
    squares: &[f32],
    cols: usize,
    axes: SumAxes,
    score: &dyn ElementScore,
) -> AxisSums {
    let band_len = rows_per_task(cols) * cols;
    let band_sums = |start: usize| {
        let end = (start + band_len).min(weights.len());
        let squares = squares.get(start..end).unwrap_or_default();
        sum_band(
            &weights[start..end],
            &gradients[start..end],
            squares,
            cols,
            axes,
            score,
        )
    };
    let mut sums = AxisSums::zeros(weights.len() / cols, cols, axes);
    let band_starts: Vec<usize> = (0..weights.len()).step_by(band_len).collect();
    for batch in band_starts.chunks((BATCH_ELEMENTS / band_len).max(1)) {
        let parts: Vec<AxisSums> = batch.par_iter().map(|&start| band_sums(start)).collect();
        for (start, part) in batch.iter().zip(&parts) {
            sums.add_band(start / cols, part);
        }
    }
    sums
}

/// The sums of one band of rows, on one core.
fn sum_band(
    weights: &[f32],
    gradients: &[f32],
    squares: &[f32],
    cols: usize,
    axes: SumAxes,
    score: &dyn ElementScore,
) -> AxisSums {
    let mut sums = AxisSums::zeros(weights.len() / cols, cols, axes);
    let mut row_scores = vec![0.0; cols];
    let rows = weights.chunks_exact(cols).zip(gradients.chunks_exact(cols));
    for (row, (weights, gradients)) in rows.enumerate() {
        let squares = squares
            .get(row * cols..(row + 1) * cols)
            .unwrap_or_default();
        score.score_on_cpu(weights, gradients, squares, &mut row_scores);
        if axes.rows {
            sums.rows[row] = dispatch_simd(
                #[inline(always)]
                || sum_f64(&row_scores[..]),
            );
        }
        // Without column sums `sums.cols` is empty, and nothing is added.
        dispatch_simd(
            #[inline(always)]
            || add_to(&mut sums.cols[..], &row_scores[..]),
        );
    }
    sums
}

#[inline(always)]
fn add_to(sums: &mut [f64], values: &[f64]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}
