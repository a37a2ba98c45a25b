//! The matrix product on the CPU: a safe interface to the `gemm` crate.
//!
//! Its bits depend neither on the number of threads nor, within the bounds of the constants below,
//! on the other rows of a product. Callers with fewer rows pad them with zeros (`linear`,
//! `attention`), so the results of one sample do not depend on the batch.

/// gemm computes products with fewer rows or columns by matrix-vector kernels, which round
/// differently.
pub(crate) const MIN_STABLE_ROWS: usize = 8;

/// gemm adds up to this many terms of a sum in one pass, in their order, whatever the shape:
/// appended zeros change nothing. Longer sums are cut, at places that depend on the shape.
pub(crate) const SUM_CHUNK_TERMS: usize = 512;

/// For results of up to this many elements, gemm divides each sum over the lanes of a vector if the
/// terms of both operands are contiguous in memory. That rounds differently.
pub(crate) const SMALL_PRODUCT_ELEMENTS: usize = 16 * 16;

/// The least number of rows of a product x · Wᵀ from which on the bits of a row do not depend on
/// the number of rows. The product has `cols` columns, and each element is a sum of `terms` terms.
pub(crate) fn min_stable_rows(cols: usize, terms: usize) -> usize {
    // gemm cuts long sums at 512 terms if the product has at most 64 rows and at most 64 columns,
    // otherwise at places that follow from its cache sizes. 65 rows always give the second case.
    if cols <= 64 && terms > SUM_CHUNK_TERMS {
        65
    } else {
        // rows · cols > SMALL_PRODUCT_ELEMENTS
        MIN_STABLE_ROWS.max(SMALL_PRODUCT_ELEMENTS / cols.max(1) + 1)
    }
}

/// A matrix in memory: element (r, c) is `data[r * row_stride + c * col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct MatrixView<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<'a> MatrixView<'a> {
    /// A row-major matrix whose rows begin `row_stride` elements apart.
    pub(crate) fn row_major(data: &'a [f32], row_stride: usize) -> Self {
        Self {
            data,
            row_stride,
            col_stride: 1,
        }
    }

    /// The transpose of a row-major matrix with `cols` columns.
    pub(crate) fn column_major(data: &'a [f32], cols: usize) -> Self {
        Self {
            data,
            row_stride: 1,
            col_stride: cols,
        }
    }

    /// The transpose, over the same memory.
    pub(crate) fn transposed(self) -> Self {
        Self {
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// Which cores compute a product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parallelism {
    AllCores,
    /// For one of several products that run on different cores at the same time.
    CurrentThread,
}

/// How a product is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputMode {
    /// c = factor · a · b
    Overwrite,
    /// c += factor · a · b
    Accumulate,
}

impl OutputMode {
    /// `Accumulate` if the output already holds a part of the sum, otherwise `Overwrite`.
    pub(crate) fn accumulate_if(has_begun: bool) -> Self {
        if has_begun {
            Self::Accumulate
        } else {
            Self::Overwrite
        }
    }
}

/// `c = a · b`, or `c += a · b`. For the shape (m, n, k), a is (m, k), b is (k, n), and c is (m, n)
/// with rows `row_stride` elements apart.
///
/// # Panics
/// If a slice is too short for its matrix.
pub(crate) fn matmul(
    shape: (usize, usize, usize),
    c: &mut [f32],
    row_stride: usize,
    output_mode: OutputMode,
    a: MatrixView<'_>,
    b: MatrixView<'_>,
) {
    let cores = Parallelism::AllCores;
    scaled_matmul(cores, 1.0, shape, c, row_stride, output_mode, a, b);
}

/// [`matmul`] on the current core alone.
pub(crate) fn matmul_single_thread(
    shape: (usize, usize, usize),
    c: &mut [f32],
    row_stride: usize,
    output_mode: OutputMode,
    a: MatrixView<'_>,
    b: MatrixView<'_>,
) {
    let cores = Parallelism::CurrentThread;
    scaled_matmul(cores, 1.0, shape, c, row_stride, output_mode, a, b);
}

/// `cᵀ = (a · b)ᵀ`: for the shape (m, n, k), c is (n, m). The same bits as [`matmul`]; faster for
/// few rows of a, because gemm then reads b as it is.
pub(crate) fn matmul_transposed_output(
    shape: (usize, usize, usize),
    c: &mut [f32],
    a: MatrixView<'_>,
    b: MatrixView<'_>,
) {
    assert!(shape.0 * shape.1 <= c.len());
    let (cores, strides) = (Parallelism::AllCores, (1, shape.0));
    strided_matmul(cores, 1.0, shape, c, strides, OutputMode::Overwrite, a, b);
}

/// [`matmul`] times a factor, on all cores or one.
#[expect(clippy::too_many_arguments, reason = "the arguments of BLAS's gemm")]
pub(crate) fn scaled_matmul(
    cores: Parallelism,
    factor: f32,
    shape: (usize, usize, usize),
    c: &mut [f32],
    row_stride: usize,
    output_mode: OutputMode,
    a: MatrixView<'_>,
    b: MatrixView<'_>,
) {
    assert!(shape.1 <= row_stride);
    let strides = (row_stride, 1);
    strided_matmul(cores, factor, shape, c, strides, output_mode, a, b);
}

/// Element (r, c) of the result is `c[r * row_stride + c * col_stride]`. No two elements share a
/// place.
#[expect(clippy::too_many_arguments, reason = "the arguments of BLAS's gemm")]
fn strided_matmul(
    cores: Parallelism,
    factor: f32,
    (m, n, k): (usize, usize, usize),
    c: &mut [f32],
    (row_stride, col_stride): (usize, usize),
    output_mode: OutputMode,
    a: MatrixView<'_>,
    b: MatrixView<'_>,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * row_stride + (n - 1) * col_stride < c.len());
    assert!(k == 0 || (m - 1) * a.row_stride + (k - 1) * a.col_stride < a.data.len());
    assert!(k == 0 || (k - 1) * b.row_stride + (n - 1) * b.col_stride < b.data.len());
    let parallelism = match cores {
        Parallelism::AllCores => gemm_common::Parallelism::Rayon(0),
        Parallelism::CurrentThread => gemm_common::Parallelism::None,
    };
    // The microkernels write contiguous columns. A result with contiguous rows is computed as its
    // transpose: cᵀ = bᵀ · aᵀ.
    let (m, n, row_stride, col_stride, lhs, rhs) = if col_stride < row_stride {
        (n, m, col_stride, row_stride, b.transposed(), a.transposed())
    } else {
        (m, n, row_stride, col_stride, a, b)
    };
    #[expect(
        unsafe_code,
        reason = "gemm takes pointers and strides; the assertions above keep them in bounds"
    )]
    // SAFETY: every element that gemm reads or writes is within its slice, by the assertions above.
    unsafe {
        gemm_f32::gemm::f32::get_gemm_fn()(
            m,
            n,
            k,
            c.as_mut_ptr(),
            col_stride as isize,
            row_stride as isize,
            output_mode == OutputMode::Accumulate,
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
