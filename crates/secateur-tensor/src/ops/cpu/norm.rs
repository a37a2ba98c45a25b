//! RMSNorm on the CPU (Zhang and Sennrich 2019), row by row.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::gradient::accumulate_sample_gradient;
use super::maths::dot;
use crate::activations::cpu::{CpuActivations, activations_from_vec};
use crate::ops::GradientRequest;
use crate::ops::simd::{dispatch_simd, rows_per_task};
use crate::{AnyTape, Weight};

/// y = x / √(mean(x²) + ε) ⊙ w. w is (1, width).
pub fn rms_norm<T: AnyTape>(
    x: CpuActivations<T>,
    weight: &Weight,
    epsilon: f32,
    slot: Option<&GradientRequest>,
) -> CpuActivations<T> {
    let (x, mut tape) = x.split_tape();
    let (n, width) = *x.shape();
    let (from, w) = (x.shared_values(), weight.shared_values());
    let task = rows_per_task(width);
    let mut inverse = vec![0.0; n];
    inverse
        .par_chunks_mut(task)
        .zip(from.par_chunks(task * width))
        .for_each(|(inverse, x)| {
            dispatch_simd(
                #[inline(always)]
                || inverse_rms(inverse, x, width, epsilon),
            )
        });
    let inverse = Arc::new(inverse); // 1 / √(mean(x²) + ε) of each row
    let make = {
        let (from, inverse, w) = (from.clone(), inverse.clone(), w.clone());
        move || rms_norm_values(&from, &inverse, &w)
    };
    let y = activations_from_vec(make(), n, width);
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }
    let y = y.with_recomputation(make);

    let (x_node, y_node, kept) = (x.node(), y.node(), y.save_for_backward());
    let asked = slot.map(|slot| (slot.clone(), weight.clone()));
    tape.add_backward_op(move |gradients| {
        kept.drop_cached();
        let dy = y_node.take_gradient(gradients)?;
        if let Some((slot, weight)) = asked {
            // dw = Σ_t dy_t ⊙ x_t · s_t
            set_weight_gradient(
                &slot,
                &weight,
                n,
                #[inline(always)]
                |sum, t| {
                    let row = t * width..(t + 1) * width;
                    add_scaled_products(sum, &dy[row.clone()], &from[row], inverse[t]);
                },
            );
        }
        let (dx, is_begun) = x_node.gradient_mut(gradients)?;
        dx.par_chunks_mut(task * width)
            .zip(dy.par_chunks(task * width))
            .zip(from.par_chunks(task * width))
            .zip(inverse.par_chunks(task))
            .for_each(|(((dx, dy), x), inverse)| {
                dispatch_simd(
                    #[inline(always)]
                    || input_gradient(dx, dy, x, inverse, &w, is_begun),
                )
            });
        Ok(())
    });
    y.put_tape(tape)
}

#[inline(always)]
fn inverse_rms(inverse: &mut [f32], x: &[f32], width: usize, epsilon: f32) {
    for (inverse, x) in inverse.iter_mut().zip(x.chunks_exact(width)) {
        *inverse = 1.0 / (dot(x, x) / width as f32 + epsilon).sqrt();
    }
}

/// x · s ⊙ w
fn rms_norm_values(x: &[f32], inverse: &[f32], w: &[f32]) -> Vec<f32> {
    let (width, task) = (w.len(), rows_per_task(w.len()));
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(task * width)
        .zip(x.par_chunks(task * width))
        .zip(inverse.par_chunks(task))
        .for_each(|((y, x), inverse)| {
            dispatch_simd(
                #[inline(always)]
                || scale_rows(y, x, inverse, w),
            )
        });
    y
}

#[inline(always)]
fn scale_rows(y: &mut [f32], x: &[f32], inverse: &[f32], w: &[f32]) {
    let width = w.len();
    for ((y, x), inverse) in y
        .chunks_exact_mut(width)
        .zip(x.chunks_exact(width))
        .zip(inverse)
    {
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = x * inverse * w;
        }
    }
}

/// dx = s·(δ⊙w) − x·s³·mean(δ⊙w⊙x), s = 1 / √(mean(x²) + ε)
#[inline(always)]
fn input_gradient(
    dx: &mut [f32],
    dy: &[f32],
    x: &[f32],
    inverse: &[f32],
    w: &[f32],
    is_begun: bool,
) {
    let width = w.len();
    let mut dn = vec![0.0; width];
    let rows = dx
        .chunks_exact_mut(width)
        .zip(dy.chunks_exact(width))
        .zip(x.chunks_exact(width))
        .zip(inverse);
    for (((dx, dy), x), scale) in rows {
        for ((n, dy), w) in dn.iter_mut().zip(dy).zip(w) {
            *n = dy * w;
        }
        let along = dot(&dn, x) * scale * scale * scale / width as f32;
        for ((dx, n), x) in dx.iter_mut().zip(&dn).zip(x) {
            let part = n * scale - x * along;
            *dx = if is_begun { *dx + part } else { part };
        }
    }
}

/// Sets the gradient of a norm's weight from its rows: dw = Σ_t (row t), added up in the order of
/// positions; sample by sample where the squares of the samples' gradients are requested.
///
/// `add_row(sum, t)` adds what position t contributes to the sum of `weight.len()` elements.
pub(super) fn set_weight_gradient(
    request: &GradientRequest,
    weight: &Weight,
    positions: usize,
    add_row: impl Fn(&mut [f32], usize),
) {
    let width = weight.len();
    let matrix = |values| activations_from_vec(values, 1, width).into();
    let sum_rows = |positions: Range<usize>| {
        let mut sum = vec![0.0; width];
        dispatch_simd(
            #[inline(always)]
            || positions.clone().for_each(|t| add_row(&mut sum, t)),
        );
        sum
    };
    let Some(samples) = request.query.samples() else {
        return request.set_from_gradient(weight, matrix(sum_rows(0..positions)), None);
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
    request.set_from_gradient(weight, matrix(gradient), Some(matrix(squares)));
}

/// sum += dy ⊙ x · s, of one row.
#[inline(always)]
fn add_scaled_products(sum: &mut [f32], dy: &[f32], x: &[f32], scale: f32) {
    for ((sum, dy), x) in sum.iter_mut().zip(dy).zip(x) {
        *sum += dy * x * scale;
    }
}
