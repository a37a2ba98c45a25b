//! The matrix product on the CPU: the `gemm` crate behind a safe face. The one place with unsafe code.
//!
//! Its bits depend neither on the number of threads nor, within the bounds below, on the rows beside a row; callers with
//! fewer rows pad them (see `linear` and `attention`), so a batch cannot change a sample.

/// gemm's matrix-vector paths, for few rows or columns, round otherwise than its matrix path.
pub const FEWEST_ROWS: usize = 8;

/// Terms of a sum that gemm takes in one go, in their order, whatever the shape: zeros behind them change nothing.
pub const LONGEST_SUM: usize = 512;

/// Elements of a product up to which gemm sums along the vector where the terms of both sides lie beside each other.
pub const SMALLEST: usize = 16 * 16;

/// Rows of a product x · Wᵀ that has so many columns and sums of so many terms, from which on a row's bits are always the same.
pub fn fewest_rows(cols: usize, terms: usize) -> usize {
    // up to 64 × 64 gemm cuts longer sums at 512 terms, and beyond at places that its caches decide
    if cols <= 64 && terms > LONGEST_SUM { 65 } else { FEWEST_ROWS.max(SMALLEST / cols.max(1) + 1) }
}

/// A matrix in memory: element (r, c) lies at `r * row + c * col`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub col: usize,
}

impl<'a> View<'a> {
    /// Row-major with `cols` columns, or with rows that lie so far apart.
    pub fn rows(data: &'a [f32], cols: usize) -> Self {
        Self { data, row: cols, col: 1 }
    }

    /// The transpose of a row-major matrix with `cols` columns.
    pub fn transposed(data: &'a [f32], cols: usize) -> Self {
        Self { data, row: 1, col: cols }
    }
}

/// Who computes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    All,
    /// This one: for products that are shared out themselves.
    One,
}

/// Where a product goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Into {
    /// c = factor · a · b
    Fresh,
    /// c += factor · a · b
    Sum,
}

/// `c = a · b`, or `c += a · b`: a is (m, k), b is (k, n), c is (m, n) with rows `stride` apart.
///
/// # Panics
/// If a matrix does not hold its shape.
pub fn product(shape: (usize, usize, usize), c: &mut [f32], stride: usize, into: Into, a: View<'_>, b: View<'_>) {
    scaled_product(Cores::All, 1.0, shape, c, stride, into, a, b);
}

/// [`product`] on this core alone.
pub fn product_here(shape: (usize, usize, usize), c: &mut [f32], stride: usize, into: Into, a: View<'_>, b: View<'_>) {
    scaled_product(Cores::One, 1.0, shape, c, stride, into, a, b);
}

/// `cᵀ = (a · b)ᵀ`, c is (n, m) here: the same bits, and of a few rows `a` the quicker way, because gemm leaves `b` as it lies.
pub fn product_across(shape: (usize, usize, usize), c: &mut [f32], a: View<'_>, b: View<'_>) {
    assert!(shape.0 * shape.1 <= c.len());
    strided(Cores::All, 1.0, shape, c, (1, shape.0), Into::Fresh, a, b);
}

/// [`product`], times a factor.
#[expect(clippy::too_many_arguments, reason = "the arguments of BLAS's gemm")]
pub fn scaled_product(
    cores: Cores,
    factor: f32,
    shape: (usize, usize, usize),
    c: &mut [f32],
    stride: usize,
    into: Into,
    a: View<'_>,
    b: View<'_>,
) {
    assert!(shape.1 <= stride);
    strided(cores, factor, shape, c, (stride, 1), into, a, b);
}

/// Element (r, c) of the result lies at `r * row + c * col`.
#[expect(clippy::too_many_arguments, reason = "the arguments of BLAS's gemm")]
fn strided(
    cores: Cores,
    factor: f32,
    (m, n, k): (usize, usize, usize),
    c: &mut [f32],
    (row, col): (usize, usize),
    into: Into,
    a: View<'_>,
    b: View<'_>,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * row + (n - 1) * col < c.len());
    assert!(k == 0 || (m - 1) * a.row + (k - 1) * a.col < a.data.len());
    assert!(k == 0 || (k - 1) * b.row + (n - 1) * b.col < b.data.len());
    let parallelism = match cores {
        Cores::All => gemm::Parallelism::Rayon(0),
        Cores::One => gemm::Parallelism::None,
    };
    #[expect(unsafe_code, reason = "gemm takes pointers and strides; the assertions above keep them in bounds")]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            col as isize,
            row as isize,
            into == Into::Sum,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            1.0,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}
