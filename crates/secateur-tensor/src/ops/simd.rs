//! Vectorised loops on the CPU, and the division of work among the cores.
//!
//! `pulp` finds the widest vector instructions of the machine; the compiler's auto-vectoriser does
//! the rest. No sum depends on either choice: one core computes the sum of a row, in a fixed number
//! of lanes.

/// Runs `work` compiled for the widest vector instructions of the machine. This holds only for code
/// that is inlined into it: the closure, and what it calls, must be `#[inline(always)]`.
#[inline(always)]
pub fn dispatch_simd<R>(work: impl FnMut() -> R) -> R {
    struct Loop<F>(F);
    impl<R, F: FnMut() -> R> pulp::WithSimd for Loop<F> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(mut self, _: S) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Loop(work))
}

/// Elements of one task: enough that starting the task costs little.
pub(crate) const ELEMENTS_PER_TASK: usize = 1 << 14;

/// Rows of one task, for rows of `cols` elements.
pub(crate) fn rows_per_task(cols: usize) -> usize {
    (ELEMENTS_PER_TASK / cols.max(1)).max(1)
}

/// Partial sums of a sum. They fill one or two vector registers, and adding several short sums
/// rounds less than one long sum.
pub(crate) const LANES: usize = 16;

/// Σ a, in f64.
#[inline(always)]
pub(crate) fn sum_f64(a: &[f64]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let chunks = a.chunks_exact(LANES);
    let remainder: f64 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x;
        }
    }
    sums.iter().sum::<f64>() + remainder
}
