//! Loops on the widest vector units that the processor has (the `pulp` crate chooses; the auto-vectoriser does the rest),
//! and how rows are shared out among the cores. No sum depends on either: a row's sum belongs to one core, and always has
//! the same lanes.

/// Runs a loop on the widest vector units there are. Only what is compiled into the same code is compiled for these units:
/// the closure, and what it calls, must be `#[inline(always)]`.
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

/// Elements that are worth a task of their own.
pub const ELEMENTS_PER_TASK: usize = 1 << 14;

/// Rows of so many columns that are worth a task of their own.
pub fn rows_per_task(cols: usize) -> usize {
    (ELEMENTS_PER_TASK / cols.max(1)).max(1)
}

/// Running sums, so that a sum is both fast and accurate.
pub const LANES: usize = 16;

/// Σ a, in f64.
#[inline(always)]
pub fn sum_f64(a: &[f64]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let lanes = a.chunks_exact(LANES);
    let rest: f64 = lanes.remainder().iter().sum();
    for x in lanes {
        for (s, x) in sums.iter_mut().zip(x) {
            *s += x;
        }
    }
    sums.iter().sum::<f64>() + rest
}
