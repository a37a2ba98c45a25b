//! The matrix product on the CPU: the `gemm` crate behind a safe face. One of the two places with unsafe code.
//!
//! Its bits depend neither on the number of threads nor, from five rows on, on the rows beside a row; callers with
//! fewer rows pad them (see `cpu::linear`), so a batch cannot change a sample.

/// A matrix in memory: element (r, c) lies at `r * row + c * col`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub col: usize,
}

impl<'a> View<'a> {
    /// Row-major with `cols` columns.
    pub fn rows(data: &'a [f32], cols: usize) -> Self {
        Self { data, row: cols, col: 1 }
    }

    /// The transpose of a row-major matrix with `cols` columns.
    pub fn transposed(data: &'a [f32], cols: usize) -> Self {
        Self { data, row: 1, col: cols }
    }
}

/// `c = a · b`, or `c += a · b`: a is (m, k), b is (k, n), c is (m, n) with rows `stride` apart.
///
/// # Panics
/// If a matrix does not hold its shape.
pub fn product((m, n, k): (usize, usize, usize), c: &mut [f32], stride: usize, add: bool, a: View<'_>, b: View<'_>) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(n <= stride && (m - 1) * stride + n <= c.len());
    assert!(k == 0 || (m - 1) * a.row + (k - 1) * a.col < a.data.len());
    assert!(k == 0 || (k - 1) * b.row + (n - 1) * b.col < b.data.len());
    #[expect(unsafe_code, reason = "gemm takes pointers and strides; the assertions above keep them in bounds")]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            stride as isize,
            add,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}
