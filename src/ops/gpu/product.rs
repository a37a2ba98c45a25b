//! Products of matrices in the precision of the weight, and sums as products with ones.
//!
//! In half precision a gradient is divided by its largest element on the way into a product and multiplied by it on the way
//! out: whatever its size, it neither overflows nor vanishes, and what is lost lies 24 bits below the largest. Both happen
//! on the GPU, so nobody waits for a number.

use std::cell::RefCell;
use std::collections::HashMap;

use dfdx::prelude::*;

use crate::tensor::gpu::{Gpu, Half, HalfMatrix, Matrix, matrix};
use crate::tensor::resident::Held;

/// x · Wᵀ
pub fn across(x: &Matrix, weight: &Held) -> Matrix {
    match weight {
        Held::Single(w) => x.clone().matmul(transposed(w)),
        Held::Half(w) => {
            let across: HalfMatrix = w.clone().permute();
            x.clone().to_dtype::<Half>().matmul(across).to_dtype()
        }
    }
}

/// δ · W
pub fn along(delta: &Matrix, weight: &Held) -> Matrix {
    match weight {
        Held::Single(w) => delta.clone().matmul(w.clone()),
        Held::Half(w) => {
            let (delta, size) = scaled(delta);
            let product: Matrix = delta.matmul(w.clone()).to_dtype();
            times(product, size)
        }
    }
}

/// δᵀ · x
pub fn outer(delta: &Matrix, x: &Matrix, weight: &Held) -> Matrix {
    match weight {
        Held::Single(_) => transposed(delta).matmul(x.clone()),
        Held::Half(_) => {
            let ((delta, delta_size), (x, x_size)) = (scaled(delta), scaled(x));
            let across: HalfMatrix = delta.permute();
            let product: Matrix = across.matmul(x).to_dtype();
            times(times(product, delta_size), x_size)
        }
    }
}

/// A number on the GPU.
type Scalar = Tensor<Rank0, f32, Gpu>;

/// x over its largest element, in half precision, and that element.
fn scaled(x: &Matrix) -> (HalfMatrix, Scalar) {
    let of_rows: Tensor<(usize,), f32, Gpu> = x.clone().abs().max::<_, Axis<1>>();
    let largest: Scalar = of_rows.max::<_, Axis<0>>();
    // of nothing but zeros the largest is one
    let size = largest.clamp(f32::MIN_POSITIVE, f32::MAX);
    (times(x.clone(), size.clone().recip()).to_dtype(), size)
}

fn times(x: Matrix, size: Scalar) -> Matrix {
    let shape = *x.shape();
    x * size.broadcast_like::<_, Axes2<0, 1>>(&shape)
}

pub fn transposed(x: &Matrix) -> Matrix {
    x.clone().permute::<(usize, usize), Axes2<1, 0>>()
}

/// (rows, 1) of one number.
pub fn column(rows: usize, value: f32) -> Matrix {
    constant(rows, 1, value)
}

/// A matrix of one number, which stays on the GPU for the next who asks.
pub fn constant(rows: usize, cols: usize, value: f32) -> Matrix {
    /// Shapes come and go; this many are kept.
    const KEPT: usize = 1000;
    thread_local! {
        static CONSTANTS: RefCell<HashMap<(usize, usize, u32), Matrix>> = RefCell::new(HashMap::new());
    }
    CONSTANTS.with_borrow_mut(|constants| {
        if constants.len() >= KEPT {
            constants.clear();
        }
        constants.entry((rows, cols, value.to_bits())).or_insert_with(|| matrix(vec![value; rows * cols], rows, cols)).clone()
    })
}

/// Σ over each row: (rows, 1).
pub fn sum_of_rows(x: Matrix) -> Matrix {
    let (_, cols) = *x.shape();
    x.matmul(column(cols, 1.0))
}

/// Σ over each column: (1, cols).
pub fn sum_of_columns(x: Matrix) -> Matrix {
    let (rows, _) = *x.shape();
    constant(1, rows, 1.0).matmul(x)
}

/// Σ over each column.
pub fn column_sums(x: Matrix) -> Vec<f64> {
    sum_of_columns(x).as_vec().into_iter().map(f64::from).collect()
}

/// A number for each row, beside every element of it.
pub fn by_row(column: Matrix, shape: (usize, usize)) -> Matrix {
    column.reshape_like(&(shape.0,)).broadcast_like::<_, Axis<1>>(&shape)
}

/// A number for each column, beside every element of it.
pub fn by_column(row: Matrix, shape: (usize, usize)) -> Matrix {
    row.reshape_like(&(shape.1,)).broadcast_like::<_, Axis<0>>(&shape)
}
