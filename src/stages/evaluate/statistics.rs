//! Means with standard errors, and the share of each document in a metric.

/// The mean, and its standard error √(s² / n) with the sample variance s² = Σ(x − mean)² / (n − 1),
/// as the harness computes it; None for a single value.
pub(crate) fn mean_and_stderr(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0);
    (mean, (values.len() > 1).then(|| (variance / n).sqrt()))
}

/// The ratio R = Σ nll / Σ weight, and for each part i its linearised share R + (nll_i − R ·
/// weight_i) / mean(weight). The mean of the shares is R, and their sample variance is that of R
/// when parts are drawn anew (the delta method to first order).
pub(crate) fn ratio_and_shares(nll: &[f64], weights: &[f64]) -> (f64, Vec<f64>) {
    let total_weight = weights.iter().sum::<f64>();
    let ratio = nll.iter().sum::<f64>() / total_weight;
    let mean_weight = total_weight / nll.len() as f64;
    let shares = nll
        .iter()
        .zip(weights)
        .map(|(nll, weight)| ratio + (nll - ratio * weight) / mean_weight)
        .collect();
    (ratio, shares)
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
