//! LayerNorm on a GPU (Ba et al. 2016), in f32.

use dfdx::prelude::*;

use super::norm_weight::set_weight_gradient;
use super::product::{broadcast_per_column, broadcast_per_row, constant_column};
use crate::activations::GpuActivations;
use crate::gpu::GpuMatrix;
use crate::ops::gradient_query::GradientRequest;
use crate::tape::AnyTape;
use crate::weight::Weight;

/// y = (x − mean(x)) / √(var(x) + ε) ⊙ w + b. x is (positions, width), w and b are (1, width).
pub(crate) fn layer_norm<T: AnyTape>(
    x: GpuActivations<T>,
    weight: &Weight,
    bias: Option<&Weight>,
    epsilon: f32,
    request: Option<&GradientRequest>,
) -> GpuActivations<T> {
    let shape = x.shape();
    let (x, x_node, mut tape) = x.into_parts();
    let w = weight.to_gpu_f32();
    let centred = x.clone() - broadcast_per_row(row_means(x), shape);
    let inverse_std = (row_means(centred.clone().square()) + epsilon)
        .sqrt()
        .recip(); // (positions, 1)
    let normalised = centred * broadcast_per_row(inverse_std.clone(), shape);
    let scaled = normalised.clone() * broadcast_per_column(w.clone(), shape);
    let y = GpuActivations::from(match bias {
        Some(bias) => scaled + broadcast_per_column(bias.to_gpu_f32(), shape),
        None => scaled,
    });
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let y_node = y.node();
    let request = request.map(|request| (request.clone(), weight.clone()));
    tape.add_backward_op(move |_| {
        let dy = y_node.take_gradient(shape);
        if let Some((request, weight)) = request {
            set_weight_gradient(&request, &weight, dy.clone() * normalised.clone());
        }
        // With g = dy ⊙ w: dx = s · (g − mean(g) − x̂ · mean(g ⊙ x̂)), s = 1 / √(var + ε)
        let g = dy * broadcast_per_column(w, shape);
        let mean_g = row_means(g.clone());
        let mean_projection = row_means(g.clone() * normalised.clone());
        // x̂ · mean(g ⊙ x̂)
        let along_x = normalised * broadcast_per_row(mean_projection, shape);
        let dx = (g - broadcast_per_row(mean_g, shape) - along_x)
            * broadcast_per_row(inverse_std, shape);
        x_node.add_gradient(dx);
        Ok(())
    });
    y.put_tape(tape)
}

/// The mean of each row: (rows, 1). A product with a column of 1/width: cuBLAS adds in the same
/// order in every run, dfdx's own sums use atomic additions.
fn row_means(x: GpuMatrix) -> GpuMatrix {
    let (_, width) = *x.shape();
    x.matmul(constant_column(width, 1.0 / width as f32))
}
