//! LayerNorm on the CPU (Ba et al. 2016), row by row.

use std::sync::Arc;

use rayon::prelude::*;

use super::maths::{dot, sum_f32};
use super::norm_weight::set_weight_gradient;
use crate::activations::CpuActivations;
use crate::ops::gradient_query::GradientRequest;
use crate::ops::simd::{dispatch_simd, rows_per_task};
use crate::tape::AnyTape;
use crate::weight::Weight;

/// Mean and inverse standard deviation of one row.
#[derive(Clone, Copy, Default)]
struct RowMoments {
    mean: f32,
    /// 1 / √(variance + ε), the variance over `width` elements (biased, as in PyTorch).
    inverse_std: f32,
}

/// y = (x − mean(x)) / √(var(x) + ε) ⊙ w + b. x is (positions, width), w and b are (1, width).
pub(crate) fn layer_norm<T: AnyTape>(
    x: CpuActivations<T>,
    weight: &Weight,
    bias: Option<&Weight>,
    epsilon: f32,
    request: Option<&GradientRequest>,
) -> CpuActivations<T> {
    let (x, mut tape) = x.split_tape();
    let (positions, width) = *x.shape();
    let (x_values, w) = (x.shared_values(), weight.shared_values());
    let bias = bias.map_or_else(|| Arc::new(vec![0.0; width]), Weight::shared_values);
    let task_rows = rows_per_task(width);
    let mut moments = vec![RowMoments::default(); positions];
    moments
        .par_chunks_mut(task_rows)
        .zip(x_values.par_chunks(task_rows * width))
        .for_each(|(moments, x)| {
            dispatch_simd(
                #[inline(always)]
                || row_moments(moments, x, width, epsilon),
            );
        });
    let moments = Arc::new(moments);
    let compute = {
        let (x_values, moments, w) = (x_values.clone(), moments.clone(), w.clone());
        move || layer_norm_values(&x_values, &moments, &w, &bias)
    };
    let y = CpuActivations::from_vec(compute(), positions, width);
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }
    let y = y.with_recomputation(compute);

    let (x_node, y_node, saved_y) = (x.node(), y.node(), y.save_for_backward());
    let request = request.map(|request| (request.clone(), weight.clone()));
    tape.add_backward_op(move |gradients| {
        saved_y.drop_cached();
        let dy = y_node.take_gradient(gradients)?;
        if let Some((request, weight)) = request {
            // dw = Σ_t dy_t ⊙ x̂_t, x̂ = (x − mean) / √(var + ε)
            set_weight_gradient(
                &request,
                &weight,
                positions,
                #[inline(always)]
                |sum, t| {
                    let row = t * width..(t + 1) * width;
                    add_normalised_products(sum, &dy[row.clone()], &x_values[row], moments[t]);
                },
            );
        }
        let (dx, has_begun) = x_node.gradient_mut(gradients)?;
        dx.par_chunks_mut(task_rows * width)
            .zip(dy.par_chunks(task_rows * width))
            .zip(x_values.par_chunks(task_rows * width))
            .zip(moments.par_chunks(task_rows))
            .for_each(|(((dx, dy), x), moments)| {
                dispatch_simd(
                    #[inline(always)]
                    || input_gradient(dx, dy, x, moments, &w, has_begun),
                );
            });
        Ok(())
    });
    y.put_tape(tape)
}

/// Mean and 1 / √(variance + ε) of every row of x, (rows, width). Two passes over each row: the
/// variance is the mean of (x − mean)², because mean(x²) − mean(x)² would cancel digits.
#[inline(always)]
fn row_moments(moments: &mut [RowMoments], x: &[f32], width: usize, epsilon: f32) {
    let mut centred = vec![0.0; width];
    for (moments, x) in moments.iter_mut().zip(x.chunks_exact(width)) {
        let mean = sum_f32(x) / width as f32;
        for (centred, x) in centred.iter_mut().zip(x) {
            *centred = x - mean;
        }
        let variance = dot(&centred, &centred) / width as f32;
        *moments = RowMoments {
            mean,
            inverse_std: 1.0 / (variance + epsilon).sqrt(),
        };
    }
}

/// (x − mean) · inverse_std ⊙ w + b
fn layer_norm_values(x: &[f32], moments: &[RowMoments], w: &[f32], bias: &[f32]) -> Vec<f32> {
    let (width, task_rows) = (w.len(), rows_per_task(w.len()));
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(task_rows * width)
        .zip(x.par_chunks(task_rows * width))
        .zip(moments.par_chunks(task_rows))
        .for_each(|((y, x), moments)| {
            dispatch_simd(
                #[inline(always)]
                || normalise_rows(y, x, moments, w, bias),
            );
        });
    y
}

#[inline(always)]
fn normalise_rows(y: &mut [f32], x: &[f32], moments: &[RowMoments], w: &[f32], bias: &[f32]) {
    let width = w.len();
    let rows = y.chunks_exact_mut(width).zip(x.chunks_exact(width));
    for ((y, x), row) in rows.zip(moments) {
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(bias) {
            *y = (x - row.mean) * row.inverse_std * w + b;
        }
    }
}

/// With g = dy ⊙ w and x̂ = (x − mean)·s, s = 1 / √(var + ε):
/// dx = s · (g − mean(g) − x̂ · mean(g ⊙ x̂)). Adds to dx if it `has_begun`.
#[inline(always)]
fn input_gradient(
    dx: &mut [f32],
    dy: &[f32],
    x: &[f32],
    moments: &[RowMoments],
    w: &[f32],
    has_begun: bool,
) {
    let width = w.len();
    // g and x̂ of one row
    let mut g = vec![0.0; width];
    let mut normalised = vec![0.0; width];
    let rows = dx
        .chunks_exact_mut(width)
        .zip(dy.chunks_exact(width))
        .zip(x.chunks_exact(width))
        .zip(moments);
    for (((dx, dy), x), row) in rows {
        for ((g, dy), w) in g.iter_mut().zip(dy).zip(w) {
            *g = dy * w;
        }
        for (normalised, x) in normalised.iter_mut().zip(x) {
            *normalised = (x - row.mean) * row.inverse_std;
        }
        let mean_g = sum_f32(&g) / width as f32;
        // mean(g ⊙ x̂)
        let mean_projection = dot(&g, &normalised) / width as f32;
        for ((dx, g), normalised) in dx.iter_mut().zip(&g).zip(&normalised) {
            let part = (g - mean_g - normalised * mean_projection) * row.inverse_std;
            *dx = if has_begun { *dx + part } else { part };
        }
    }
}

/// sum += dy ⊙ x̂, of one row.
#[inline(always)]
fn add_normalised_products(sum: &mut [f32], dy: &[f32], x: &[f32], row: RowMoments) {
    for ((sum, dy), x) in sum.iter_mut().zip(dy).zip(x) {
        *sum += dy * ((x - row.mean) * row.inverse_std);
    }
}
