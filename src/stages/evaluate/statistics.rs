//! Means and their standard errors, and what each document contributes to a metric.

/// The mean, and √(sample variance / n), the standard error of the harness; of one value there is none.
pub fn mean_and_stderr(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0);
    (mean, (values.len() > 1).then(|| (variance / n).sqrt()))
}

/// Σ nll / Σ weight, and each part's linearised share in it: their mean is the ratio, and they vary as it does when the parts are
/// drawn anew (the delta method, in its first order).
pub fn ratio_and_shares(nll: &[f64], weights: &[f64]) -> (f64, Vec<f64>) {
    let n = nll.len() as f64;
    let (ratio, mean) = (
        nll.iter().sum::<f64>() / weights.iter().sum::<f64>(),
        weights.iter().sum::<f64>() / n,
    );
    (
        ratio,
        nll.iter()
            .zip(weights)
            .map(|(nll, weight)| ratio + (nll - ratio * weight) / mean)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_the_mean_of_the_ratio_and_the_spread_of_the_delta_method() {
        let (ratio, shares) = ratio_and_shares(&[4.0, 1.0, 3.0], &[2.0, 1.0, 1.0]);
        assert_eq!(ratio, 2.0);
        assert_eq!(mean_and_stderr(&shares).0, 2.0);
        // residuals 0, -1, 1 over a mean weight of 4/3
        assert_eq!(shares, [2.0, 1.25, 2.75]);
        assert_eq!(mean_and_stderr(&[1.0]), (1.0, None));
        assert_eq!(
            mean_and_stderr(&[1.0, 0.0, 1.0, 0.0]),
            (0.5, Some((1.0f64 / 3.0 / 4.0).sqrt()))
        );
    }
}
