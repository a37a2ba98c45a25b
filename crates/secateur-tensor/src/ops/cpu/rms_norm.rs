//! RMSNorm on the CPU (Zhang and Sennrich 2019), row by row.

use std::sync::Arc;

use rayon::prelude::*;

use super::maths::dot;
use super::norm_weight::set_weight_gradient;
use crate::activations::CpuActivations;
use crate::ops::gradient_query::GradientRequest;
use crate::ops::simd::{dispatch_simd, rows_per_task};
use crate::tape::AnyTape;
use crate::weight::Weight;

/// y = x / √(mean(x²) + ε) ⊙ w. x is (positions, width), w is (1, width).
pub(crate) fn rms_norm<T: AnyTape>(
    x: CpuActivations<T>,
    weight: &Weight,
    epsilon: f32,
    request: Option<&GradientRequest>,
) -> CpuActivations<T> {
    let (x, mut tape) = x.split_tape();
    let (positions, width) = *x.shape();
    let (x_values, w) = (x.shared_values(), weight.shared_values());
    let task_rows = rows_per_task(width);
    let mut scales = vec![0.0; positions];
    scales
        .par_chunks_mut(task_rows)
        .zip(x_values.par_chunks(task_rows * width))
        .for_each(|(scales, x)| {
            dispatch_simd(
                #[inline(always)]
                || inverse_rms(scales, x, width, epsilon),
            );
        });
    let scales = Arc::new(scales);
    let compute = {
        let (x_values, scales, w) = (x_values.clone(), scales.clone(), w.clone());
        move || rms_norm_values(&x_values, &scales, &w)
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
            // dw = Σ_t dy_t ⊙ x_t · s_t
            set_weight_gradient(
                &request,
                &weight,
                positions,
                #[inline(always)]
                |sum, t| {
                    let row = t * width..(t + 1) * width;
                    add_scaled_products(sum, &dy[row.clone()], &x_values[row], scales[t]);
                },
            );
        }
        let (dx, has_begun) = x_node.gradient_mut(gradients)?;
        dx.par_chunks_mut(task_rows * width)
            .zip(dy.par_chunks(task_rows * width))
            .zip(x_values.par_chunks(task_rows * width))
            .zip(scales.par_chunks(task_rows))
            .for_each(|(((dx, dy), x), scales)| {
                dispatch_simd(
                    #[inline(always)]
                    || input_gradient(dx, dy, x, scales, &w, has_begun),
                );
            });
        Ok(())
    });
    y.put_tape(tape)
}

/// The scale of each row of x, (rows, width): s = 1 / √(mean(x²) + ε).
#[inline(always)]
fn inverse_rms(scales: &mut [f32], x: &[f32], width: usize, epsilon: f32) {
    for (scale, x) in scales.iter_mut().zip(x.chunks_exact(width)) {
        *scale = 1.0 / (dot(x, x) / width as f32 + epsilon).sqrt();
    }
}

/// x · s ⊙ w
fn rms_norm_values(x: &[f32], scales: &[f32], w: &[f32]) -> Vec<f32> {
    let (width, task_rows) = (w.len(), rows_per_task(w.len()));
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(task_rows * width)
        .zip(x.par_chunks(task_rows * width))
        .zip(scales.par_chunks(task_rows))
        .for_each(|((y, x), scales)| {
            dispatch_simd(
                #[inline(always)]
                || scale_rows(y, x, scales, w),
            );
        });
    y
}

#[inline(always)]
fn scale_rows(y: &mut [f32], x: &[f32], scales: &[f32], w: &[f32]) {
    let width = w.len();
    let rows = y.chunks_exact_mut(width).zip(x.chunks_exact(width));
    for ((y, x), scale) in rows.zip(scales) {
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = x * scale * w;
        }
    }
}

/// dx = s·(dy⊙w) − x·s³·mean(dy⊙w⊙x), with s = 1 / √(mean(x²) + ε). Adds to dx if it `has_begun`.
#[inline(always)]
fn input_gradient(
    dx: &mut [f32],
    dy: &[f32],
    x: &[f32],
    scales: &[f32],
    w: &[f32],
    has_begun: bool,
) {
    let width = w.len();
    let mut weighted = vec![0.0; width]; // dy ⊙ w of one row
    let rows = dx
        .chunks_exact_mut(width)
        .zip(dy.chunks_exact(width))
        .zip(x.chunks_exact(width))
        .zip(scales);
    for (((dx, dy), x), scale) in rows {
        for ((weighted, dy), w) in weighted.iter_mut().zip(dy).zip(w) {
            *weighted = dy * w;
        }
        // s³ · mean(dy⊙w⊙x)
        let x_factor = dot(&weighted, x) * scale * scale * scale / width as f32;
        for ((dx, weighted), x) in dx.iter_mut().zip(&weighted).zip(x) {
            let part = weighted * scale - x * x_factor;
            *dx = if has_begun { *dx + part } else { part };
        }
    }
}

/// sum += dy ⊙ x · s, of one row.
#[inline(always)]
fn add_scaled_products(sum: &mut [f32], dy: &[f32], x: &[f32], scale: f32) {
    for ((sum, dy), x) in sum.iter_mut().zip(dy).zip(x) {
        *sum += dy * x * scale;
    }
}
