//! The median of measurements, with its confidence interval.

use serde::Serialize;

/// The probability that the interval contains the median is at least this.
const CONFIDENCE: f64 = 0.95;

/// A median and its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Median {
    pub(super) median: f64,
    /// `[low, high]`; null for fewer than 6 values, which cannot give this confidence.
    pub(super) interval: Option<[f64; 2]>,
}

impl Median {
    /// Of at least one value.
    ///
    /// The interval is that of the sign test, which assumes no distribution: each of the n values
    /// is below the true median with probability 1/2, so the k-th smallest and the k-th largest
    /// value enclose it with probability 1 − 2 · P(B ≤ k − 1), where B ~ Binomial(n, 1/2). k is the
    /// largest rank for which this is at least 0.95.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
        };
        let rank = interval_rank(sorted.len());
        let interval = (rank > 0).then(|| [sorted[rank - 1], sorted[sorted.len() - rank]]);
        Self { median, interval }
    }
}

/// The rank k of [`Median::of`] for n values, from 1; 0 if even the smallest and the largest value
/// do not give the confidence. n is at most 1000: beyond 1074, 2⁻ⁿ is 0 in f64.
fn interval_rank(n: usize) -> usize {
    // P(B = i) = C(n, i) / 2ⁿ
    let mut probability = 0.5f64.powi(n as i32);
    let mut tail = 0.0;
    for i in 0..n {
        tail += probability;
        if 2.0 * tail > 1.0 - CONFIDENCE {
            return i;
        }
        probability *= (n - i) as f64 / (i + 1) as f64;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranks of the table in Conover, Practical Nonparametric Statistics, and of R's
    /// `qbinom(0.025, n, 0.5)`.
    #[test]
    fn the_interval_has_the_ranks_of_the_sign_test() {
        let ranks = [5, 6, 8, 9, 10, 15, 20, 25, 50, 100].map(interval_rank);
        assert_eq!(ranks, [0, 1, 1, 2, 2, 4, 6, 8, 18, 40]);
        assert!(interval_rank(1000) > 450);
    }

    #[test]
    fn medians_and_intervals_are_order_statistics() {
        let median = Median::of([3.0, 1.0, 2.0]);
        assert_eq!((median.median, median.interval), (2.0, None));
        let median = Median::of((1..=20).rev().map(f64::from));
        assert_eq!(median.median, 10.5);
        assert_eq!(median.interval, Some([6.0, 15.0]));
    }
}
