//! The matrix product on the CPU: the `gemm` crate behind a safe face. The one place with unsafe code.
//!
//! Its bits depend neither on the number of threads nor, within the bounds below, on the rows beside a row; callers with
//! fewer rows pad them (see `linear` and `attention`), so a batch cannot change a sample.

/// gemm's matrix-vector paths, for few rows or columns, round otherwise than its matrix path.
pub const MIN_STABLE_ROWS: usize = 8;

/// Terms of a sum that gemm takes in one go, in their order, whatever the shape: zeros behind them change nothing.
pub const SUM_CHUNK_TERMS: usize = 512;

/// Elements of a product up to which gemm sums along the vector where the terms of both sides lie beside each other.
pub const SMALL_PRODUCT_ELEMENTS: usize = 16 * 16;

/// Rows of a product x · Wᵀ that has so many columns and sums of so many terms, from which on a row's bits are always the same.
pub fn min_stable_rows(cols: usize, terms: usize) -> usize {
    // up to 64 × 64 gemm cuts longer sums at 512 terms, and beyond at places that its caches decide
    if cols <= 64 && terms > SUM_CHUNK_TERMS {
        65
    } else {
        MIN_STABLE_ROWS.max(SMALL_PRODUCT_ELEMENTS / cols.max(1) + 1)
    }
}

/// A matrix in memory: element (r, c) lies at `r * row + c * col`.
#[derive(Clone, Copy)]
pub struct MatrixView<'a> {
    pub data: &'a [f32],
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a> MatrixView<'a> {
    /// Row-major with `cols` columns, or with rows that lie so far apart.
    pub fn row_major(data: &'a [f32], cols: usize) -> Self {
        Self {
            data,
            row_stride: cols,
            col_stride: 1,
        }
    }

    /// The transpose of a row-major matrix with `cols` columns.
    pub fn column_major(data: &'a [f32], cols: usize) -> Self {
        Self {
            data,
            row_stride: 1,
            col_stride: cols,
        }
    }

    /// The transpose of this matrix, over the same memory.
    fn transposed_view(self) -> Self {
        Self {
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// Who computes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Parallelism {
    AllCores,
    /// This one: for products that are shared out themselves.
    CurrentThread,
}

/// Where a product goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum OutputMode {
    /// c = factor · a · b
    Overwrite,
    /// c += factor · a · b
    Accumulate,
}

/// `c = a · b`, or `c += a · b`: a is (m, k), b is (k, n), c is (m, n) with rows `stride` apart.
///
/// # Panics
/// If a matrix does not hold its shape.
pub fn matmul(
    shape: (usize, usize, usize),
    c: &mut [f32],
    stride: usize,
    into: OutputMode,
    a: MatrixView<'_>,
    b: MatrixView<'_>,
) {
    scaled_matmul(Parallelism::AllCores, 1.0, shape, c, stride, into, a, b);
}

/// [`product`] on this core alone.
pub fn matmul_single_thread(
    shape: (usize, usize, usize),
    c: &mut [f32],
    stride: usize,
    into: OutputMode,
    a: MatrixView<'_>,
    b: MatrixView<'_>,
) {
    scaled_matmul(
        Parallelism::CurrentThread,
        1.0,
        shape,
        c,
        stride,
        into,
        a,
        b,
    );
}

/// `cᵀ = (a · b)ᵀ`, c is (n, m) here: the same bits, and of a few rows `a` the quicker way, because gemm leaves `b` as it lies.
pub fn matmul_transposed_output(
    shape: (usize, usize, usize),
    c: &mut [f32],
    a: MatrixView<'_>,
    b: MatrixView<'_>,
) {
    assert!(shape.0 * shape.1 <= c.len());
    strided_matmul(
        Parallelism::AllCores,
        1.0,
        shape,
        c,
        (1, shape.0),
        OutputMode::Overwrite,
        a,
        b,
    );
}

/// [`product`], times a factor.
#[expect(clippy::too_many_arguments, reason = "the arguments of BLAS's gemm")]
pub fn scaled_matmul(
    cores: Parallelism,
    factor: f32,
    shape: (usize, usize, usize),
    c: &mut [f32],
    stride: usize,
    into: OutputMode,
    a: MatrixView<'_>,
    b: MatrixView<'_>,
) {
    assert!(shape.1 <= stride);
    strided_matmul(cores, factor, shape, c, (stride, 1), into, a, b);
}

/// Element (r, c) of the result lies at `r * row + c * col`.
#[expect(clippy::too_many_arguments, reason = "the arguments of BLAS's gemm")]
fn strided_matmul(
    cores: Parallelism,
    factor: f32,
    (m, n, k): (usize, usize, usize),
    c: &mut [f32],
    (row, col): (usize, usize),
    into: OutputMode,
    a: MatrixView<'_>,
    b: MatrixView<'_>,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * row + (n - 1) * col < c.len());
    assert!(k == 0 || (m - 1) * a.row_stride + (k - 1) * a.col_stride < a.data.len());
    assert!(k == 0 || (k - 1) * b.row_stride + (n - 1) * b.col_stride < b.data.len());
    let parallelism = match cores {
        Parallelism::AllCores => gemm_common::Parallelism::Rayon(0),
        Parallelism::CurrentThread => gemm_common::Parallelism::None,
    };
    // The microkernels write columns that lie together. A result whose rows lie together is
    // computed as its transpose: cᵀ = bᵀ · aᵀ.
    let (m, n, row, col, lhs, rhs) = if col < row {
        (n, m, col, row, b.transposed_view(), a.transposed_view())
    } else {
        (m, n, row, col, a, b)
    };
    #[expect(
        unsafe_code,
        reason = "gemm takes pointers and strides; the assertions above keep them in bounds"
    )]
    unsafe {
        gemm_f32::gemm::f32::get_gemm_fn()(
            m,
            n,
            k,
            c.as_mut_ptr(),
            col as isize,
            row as isize,
            into == OutputMode::Accumulate,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0,
            factor,
            false, // no operand is conjugated: the numbers are real
            false,
            false,
            parallelism,
        );
    }
}
