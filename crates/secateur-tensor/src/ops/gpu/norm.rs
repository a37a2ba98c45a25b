//! RMSNorm on a GPU (Zhang and Sennrich 2019), in f32.

use dfdx::prelude::*;

use super::product::{
    broadcast_per_column, broadcast_per_row, column_sums, constant_column, row_sum_matrix,
};
use super::rows::indicator_matrix;
use crate::activations::gpu::{GpuActivations, GpuMatrix, activations_from_vec};
use crate::ops::GradientRequest;
use crate::ops::cpu::accumulate_sample_gradient;
use crate::{AnyTape, Weight};

/// y = x / √(mean(x²) + ε) ⊙ w. w is (1, width).
pub fn rms_norm<T: AnyTape>(
    x: GpuActivations<T>,
    weight: &Weight,
    epsilon: f32,
    slot: Option<&GradientRequest>,
) -> GpuActivations<T> {
    let shape = x.shape();
    let (x, x_node, mut tape) = x.into_parts();
    let w = weight.to_gpu_f32();
    let mean = x
        .clone()
        .square()
        .matmul(constant_column(shape.1, 1.0 / shape.1 as f32)); // (positions, 1)
    let inverse = (mean + epsilon).sqrt().recip();
    let y = GpuActivations::from(
        x.clone()
            * broadcast_per_row(inverse.clone(), shape)
            * broadcast_per_column(w.clone(), shape),
    );
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let (y_node, asked) = (y.node(), slot.map(|slot| (slot.clone(), weight.clone())));
    tape.add_backward_op(move |_| {
        let delta = y_node.take_gradient(shape);
        if let Some((slot, weight)) = asked {
            set_weight_gradient(
                &slot,
                &weight,
                delta.clone() * x.clone() * broadcast_per_row(inverse.clone(), shape),
            );
        }
        // dx = s·(δ⊙w) − x·s³·mean(δ⊙w⊙x), s = 1 / √(mean(x²) + ε)
        let dn = delta * broadcast_per_column(w, shape);
        let cube = inverse.clone() * inverse.clone() * inverse.clone();
        let along = row_sum_matrix(dn.clone() * x.clone()) * cube * (1.0 / shape.1 as f32);
        x_node.add_gradient(
            dn * broadcast_per_row(inverse, shape) - x * broadcast_per_row(along, shape),
        );
        Ok(())
    });
    y.put_tape(tape)
}

/// Sets the gradient of a norm's weight from its rows, (positions, width): dw = Σ_t (row t); sample by
/// sample where the squares of the samples' gradients are requested.
pub(super) fn set_weight_gradient(slot: &GradientRequest, weight: &Weight, products: GpuMatrix) {
    let (n, width) = *products.shape();
    let (mut gradient, mut squares) = (vec![0.0; width], vec![0.0; width]);
    match slot.query.samples() {
        None => {
            gradient = column_sums(products)
                .into_iter()
                .map(|sum| sum as f32)
                .collect()
        }
        Some(samples) => {
            let places = samples
                .iter()
                .enumerate()
                .flat_map(|(j, sample)| sample.positions.clone().map(move |t| (j, t)));
            let own = indicator_matrix(samples.len(), n, places)
                .matmul(products)
                .as_vec(); // (samples, width)
            for (sample, own) in samples.iter().zip(own.chunks_exact(width)) {
                accumulate_sample_gradient(&mut gradient, &mut squares, own, sample.gradient_scale);
            }
        }
    }
    let row = |values| activations_from_vec(values, 1, width).into();
    slot.set_from_gradient(
        weight,
        row(gradient),
        slot.query.samples().map(|_| row(squares)),
    );
}
