//! Products of matrices in the precision of the weight, and sums as products with ones.
//!
//! In half precision, a gradient is divided by its largest element before a product and multiplied
//! by it afterwards. So its largest elements neither overflow nor underflow; elements that are
//! smaller than the largest by a factor of about 2²⁴ or more become 0. The largest element stays on
//! the GPU: the CPU does not wait for it.

use std::cell::RefCell;
use std::collections::HashMap;

use dfdx::prelude::*;

use crate::gpu::{Gpu, GpuHalfMatrix, GpuMatrix, Half, matrix_from_vec};
use crate::gpu_weight_cache::GpuWeight;

/// Entries of the cache of constants. When it is full it is emptied.
const MAX_CACHED_CONSTANTS: usize = 1000;

/// x · Wᵀ. x is (positions, inputs), W is (outputs, inputs). With a weight in half precision x is
/// rounded to halves as it is: an element beyond ±65504 becomes infinite.
pub(super) fn linear_forward(x: &GpuMatrix, weight: &GpuWeight) -> GpuMatrix {
    match weight {
        GpuWeight::F32(w) => x.clone().matmul(transpose(w)),
        GpuWeight::F16(w) => {
            let transposed: GpuHalfMatrix = w.clone().permute();
            x.clone().to_dtype::<Half>().matmul(transposed).to_dtype()
        }
    }
}

/// dx = δ · W, (positions, inputs). δ is (positions, outputs).
pub(super) fn linear_input_gradient(delta: &GpuMatrix, weight: &GpuWeight) -> GpuMatrix {
    match weight {
        GpuWeight::F32(w) => delta.clone().matmul(w.clone()),
        GpuWeight::F16(w) => {
            let (scaled_delta, delta_scale) = scale_to_half(delta);
            let product: GpuMatrix = scaled_delta.matmul(w.clone()).to_dtype();
            multiply_by_scalar(product, delta_scale)
        }
    }
}

/// G = δᵀ · x, (outputs, inputs), in the precision of the weight.
pub(super) fn linear_weight_gradient(
    delta: &GpuMatrix,
    x: &GpuMatrix,
    weight: &GpuWeight,
) -> GpuMatrix {
    match weight {
        GpuWeight::F32(_) => transpose(delta).matmul(x.clone()),
        GpuWeight::F16(_) => {
            let (scaled_delta, delta_scale) = scale_to_half(delta);
            let (scaled_x, x_scale) = scale_to_half(x);
            let transposed: GpuHalfMatrix = scaled_delta.permute();
            let product: GpuMatrix = transposed.matmul(scaled_x).to_dtype();
            multiply_by_scalar(multiply_by_scalar(product, delta_scale), x_scale)
        }
    }
}

/// A number in the GPU's memory.
type GpuScalar = Tensor<Rank0, f32, Gpu>;

/// x / max|x| in half precision, and max|x|. If all elements are 0, f32::MIN_POSITIVE stands for
/// the maximum.
fn scale_to_half(x: &GpuMatrix) -> (GpuHalfMatrix, GpuScalar) {
    let row_max: Tensor<(usize,), f32, Gpu> = x.clone().abs().max::<_, Axis<1>>();
    let max: GpuScalar = row_max.max::<_, Axis<0>>();
    let scale = max.clamp(f32::MIN_POSITIVE, f32::MAX);
    let scaled = multiply_by_scalar(x.clone(), scale.clone().recip()).to_dtype();
    (scaled, scale)
}

fn multiply_by_scalar(x: GpuMatrix, scalar: GpuScalar) -> GpuMatrix {
    let shape = *x.shape();
    x * scalar.broadcast_like::<_, Axes2<0, 1>>(&shape)
}

pub(super) fn transpose(x: &GpuMatrix) -> GpuMatrix {
    x.clone().permute::<(usize, usize), Axes2<1, 0>>()
}

/// A column of one value: (rows, 1).
pub(super) fn constant_column(rows: usize, value: f32) -> GpuMatrix {
    constant(rows, 1, value)
}

/// A matrix of one value. It stays on the GPU, because the same few shapes are needed again and
/// again.
pub(super) fn constant(rows: usize, cols: usize, value: f32) -> GpuMatrix {
    /// Rows, columns, and the bits of the value.
    type ConstantKey = (usize, usize, u32);
    thread_local! {
        static CONSTANTS: RefCell<HashMap<ConstantKey, GpuMatrix>> = RefCell::new(HashMap::new());
    }
    CONSTANTS.with_borrow_mut(|constants| {
        if constants.len() >= MAX_CACHED_CONSTANTS {
            constants.clear();
        }
        constants
            .entry((rows, cols, value.to_bits()))
            .or_insert_with(|| matrix_from_vec(vec![value; rows * cols], rows, cols))
            .clone()
    })
}

/// The sum of each row: (rows, 1).
pub(super) fn row_sum_matrix(x: GpuMatrix) -> GpuMatrix {
    let (_, cols) = *x.shape();
    x.matmul(constant_column(cols, 1.0))
}

/// The sum of each column: (1, cols).
fn column_sum_matrix(x: GpuMatrix) -> GpuMatrix {
    let (rows, _) = *x.shape();
    constant(1, rows, 1.0).matmul(x)
}

/// The sum of each column, on the CPU.
pub(crate) fn column_sums(x: GpuMatrix) -> Vec<f64> {
    let sums = column_sum_matrix(x).as_vec();
    sums.into_iter().map(f64::from).collect()
}

/// A column, (rows, 1), as a matrix whose columns all equal it.
pub(super) fn broadcast_per_row(column: GpuMatrix, shape: (usize, usize)) -> GpuMatrix {
    column
        .reshape_like(&(shape.0,))
        .broadcast_like::<_, Axis<1>>(&shape)
}

/// A row, (1, cols), as a matrix whose rows all equal it.
pub(super) fn broadcast_per_column(row: GpuMatrix, shape: (usize, usize)) -> GpuMatrix {
    row.reshape_like(&(shape.1,))
        .broadcast_like::<_, Axis<0>>(&shape)
}
