//! RMSNorm on a GPU (Zhang and Sennrich 2019), in f32.

use dfdx::prelude::*;

use super::norm_weight::set_weight_gradient;
use super::product::{broadcast_per_column, broadcast_per_row, constant_column, row_sum_matrix};
use crate::activations::GpuActivations;
use crate::ops::gradient_query::GradientRequest;
use crate::tape::AnyTape;
use crate::weight::Weight;

/// y = x / √(mean(x²) + ε) ⊙ w. x is (positions, width), w is (1, width).
pub(crate) fn rms_norm<T: AnyTape>(
    x: GpuActivations<T>,
    weight: &Weight,
    epsilon: f32,
    request: Option<&GradientRequest>,
) -> GpuActivations<T> {
    let shape = x.shape();
    let (_, width) = shape;
    let (x, x_node, mut tape) = x.into_parts();
    let w = weight.to_gpu_f32();
    // mean(x²) and s = 1 / √(mean(x²) + ε) of each row, (positions, 1)
    let mean_square = x
        .clone()
        .square()
        .matmul(constant_column(width, 1.0 / width as f32));
    let scale = (mean_square + epsilon).sqrt().recip();
    let y = GpuActivations::from(
        x.clone()
            * broadcast_per_row(scale.clone(), shape)
            * broadcast_per_column(w.clone(), shape),
    );
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let y_node = y.node();
    let request = request.map(|request| (request.clone(), weight.clone()));
    tape.add_backward_op(move |_| {
        let dy = y_node.take_gradient(shape);
        if let Some((request, weight)) = request {
            let products = dy.clone() * x.clone() * broadcast_per_row(scale.clone(), shape);
            set_weight_gradient(&request, &weight, products);
        }
        // dx = s·(dy⊙w) − x·s³·mean(dy⊙w⊙x), s = 1 / √(mean(x²) + ε)
        let weighted = dy * broadcast_per_column(w, shape);
        let scale_cubed = scale.clone() * scale.clone() * scale.clone();
        // s³ · mean(dy⊙w⊙x)
        let x_factor =
            row_sum_matrix(weighted.clone() * x.clone()) * scale_cubed * (1.0 / width as f32);
        x_node.add_gradient(
            weighted * broadcast_per_row(scale, shape) - x * broadcast_per_row(x_factor, shape),
        );
        Ok(())
    });
    y.put_tape(tape)
}
