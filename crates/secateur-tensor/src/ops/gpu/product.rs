//! Products of matrices in the precision of the weight, and sums as products with ones.
//!
//! In half precision a gradient is divided by its largest element on the way into a product and multiplied by it on the way
//! out: whatever its size, it neither overflows nor vanishes, and what is lost lies 24 bits below the largest. Both happen
//! on the GPU, so nobody waits for a number.

use std::cell::RefCell;
use std::collections::HashMap;

use dfdx::prelude::*;

use crate::activations::gpu::{Gpu, GpuHalfMatrix, GpuMatrix, Half, matrix_from_vec};
use crate::resident::GpuWeight;

/// x · Wᵀ
pub fn linear_forward(x: &GpuMatrix, weight: &GpuWeight) -> GpuMatrix {
    match weight {
        GpuWeight::F32(w) => x.clone().matmul(transpose(w)),
        GpuWeight::F16(w) => {
            let across: GpuHalfMatrix = w.clone().permute();
            x.clone().to_dtype::<Half>().matmul(across).to_dtype()
        }
    }
}

/// δ · W
pub fn linear_input_gradient(delta: &GpuMatrix, weight: &GpuWeight) -> GpuMatrix {
    match weight {
        GpuWeight::F32(w) => delta.clone().matmul(w.clone()),
        GpuWeight::F16(w) => {
            let (delta, size) = scale_to_half(delta);
            let product: GpuMatrix = delta.matmul(w.clone()).to_dtype();
            multiply_by_scalar(product, size)
        }
    }
}

/// δᵀ · x
pub fn linear_weight_gradient(delta: &GpuMatrix, x: &GpuMatrix, weight: &GpuWeight) -> GpuMatrix {
    match weight {
        GpuWeight::F32(_) => transpose(delta).matmul(x.clone()),
        GpuWeight::F16(_) => {
            let ((delta, delta_size), (x, x_size)) = (scale_to_half(delta), scale_to_half(x));
            let across: GpuHalfMatrix = delta.permute();
            let product: GpuMatrix = across.matmul(x).to_dtype();
            multiply_by_scalar(multiply_by_scalar(product, delta_size), x_size)
        }
    }
}

/// A number on the GPU.
type GpuScalar = Tensor<Rank0, f32, Gpu>;

/// x over its largest element, in half precision, and that element.
fn scale_to_half(x: &GpuMatrix) -> (GpuHalfMatrix, GpuScalar) {
    let of_rows: Tensor<(usize,), f32, Gpu> = x.clone().abs().max::<_, Axis<1>>();
    let largest: GpuScalar = of_rows.max::<_, Axis<0>>();
    // of nothing but zeros the largest is one
    let size = largest.clamp(f32::MIN_POSITIVE, f32::MAX);
    (
        multiply_by_scalar(x.clone(), size.clone().recip()).to_dtype(),
        size,
    )
}

fn multiply_by_scalar(x: GpuMatrix, size: GpuScalar) -> GpuMatrix {
    let shape = *x.shape();
    x * size.broadcast_like::<_, Axes2<0, 1>>(&shape)
}

pub fn transpose(x: &GpuMatrix) -> GpuMatrix {
    x.clone().permute::<(usize, usize), Axes2<1, 0>>()
}

/// (rows, 1) of one number.
pub fn constant_column(rows: usize, value: f32) -> GpuMatrix {
    constant(rows, 1, value)
}

/// A matrix of one number, which stays on the GPU for the next who asks.
pub fn constant(rows: usize, cols: usize, value: f32) -> GpuMatrix {
    /// Shapes come and go; this many are kept.
    const MAX_CACHED: usize = 1000;
    thread_local! {
        static CONSTANTS: RefCell<HashMap<(usize, usize, u32), GpuMatrix>> = RefCell::new(HashMap::new());
    }
    CONSTANTS.with_borrow_mut(|constants| {
        if constants.len() >= MAX_CACHED {
            constants.clear();
        }
        constants
            .entry((rows, cols, value.to_bits()))
            .or_insert_with(|| matrix_from_vec(vec![value; rows * cols], rows, cols))
            .clone()
    })
}

/// Σ over each row: (rows, 1).
pub fn row_sum_matrix(x: GpuMatrix) -> GpuMatrix {
    let (_, cols) = *x.shape();
    x.matmul(constant_column(cols, 1.0))
}

/// Σ over each column: (1, cols).
pub fn column_sum_matrix(x: GpuMatrix) -> GpuMatrix {
    let (rows, _) = *x.shape();
    constant(1, rows, 1.0).matmul(x)
}

/// Σ over each column.
pub fn column_sums(x: GpuMatrix) -> Vec<f64> {
    column_sum_matrix(x)
        .as_vec()
        .into_iter()
        .map(f64::from)
        .collect()
}

/// A number for each row, beside every element of it.
pub fn broadcast_per_row(column: GpuMatrix, shape: (usize, usize)) -> GpuMatrix {
    column
        .reshape_like(&(shape.0,))
        .broadcast_like::<_, Axis<1>>(&shape)
}

/// A number for each column, beside every element of it.
pub fn broadcast_per_column(row: GpuMatrix, shape: (usize, usize)) -> GpuMatrix {
    row.reshape_like(&(shape.1,))
        .broadcast_like::<_, Axis<0>>(&shape)
}
