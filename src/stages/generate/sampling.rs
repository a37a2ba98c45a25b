//! How the next token is chosen from the logits: greedily, or drawn with a temperature, the most
//! likely `top_k`, and the nucleus `top_p` (Holtzman et al. 2020).

use rand::{Rng, RngExt};

use super::Options;

/// The next token: the most likely one if `temperature` is 0, else one drawn from the most likely
/// tokens. Of equal logits the lower id counts as more likely.
pub(super) fn choose_token(logits: &[f32], options: &Options, rng: &mut impl Rng) -> u32 {
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    let by_likelihood = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    if options.temperature == 0.0 {
        return ids.into_iter().min_by(by_likelihood).unwrap_or(0) as u32;
    }
    ids.sort_by(by_likelihood);
    ids.truncate(options.top_k.unwrap_or(ids.len()));
    // Unnormalised softmax: w_i = exp((l_i − l_max) / temperature), descending.
    let largest = f64::from(logits[ids[0]]);
    let weights: Vec<f64> = ids
        .iter()
        .map(|&id| ((f64::from(logits[id]) - largest) / options.temperature).exp())
        .collect();
    // The nucleus is the shortest prefix that reaches the share top_p of the total weight.
    let total: f64 = weights.iter().sum();
    let nucleus_end = first_reaching(&weights, |sum| sum >= options.top_p * total);
    let nucleus = match nucleus_end {
        Some(last) => &weights[..=last],
        None => &weights[..],
    };
    // Inverse transform sampling: the first prefix sum above a uniform number in [0, total weight
    // of the nucleus).
    let drawn = rng.random_range(0.0..1.0) * nucleus.iter().sum::<f64>();
    let chosen = first_reaching(nucleus, |sum| sum > drawn).unwrap_or(nucleus.len() - 1);
    ids[chosen] as u32
}

/// The first index whose prefix sum, its own weight included, fulfils the condition. Because of
/// rounding it can be None for a condition that the exact total fulfils.
fn first_reaching(weights: &[f64], condition: impl Fn(f64) -> bool) -> Option<usize> {
    let mut sum = 0.0;
    weights.iter().position(|weight| {
        sum += weight;
        condition(sum)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use secateur_base::random::Seed;

    fn frequencies(options: &Options) -> Vec<f64> {
        let mut stream = Seed::from_u64(1).rng();
        let logits = [0.0, 2f32.ln(), 5f32.ln(), -1000.0];
        let mut counts = vec![0.0; 4];
        (0..8000).for_each(|_| {
            counts[choose_token(&logits, options, &mut stream) as usize] += 1.0 / 8000.0
        });
        counts
    }

    #[test]
    fn sampling_follows_temperature_top_k_and_top_p() {
        let assert_near = |options: Options, expected: [f64; 4]| {
            let found = frequencies(&options);
            assert!(
                found
                    .iter()
                    .zip(expected)
                    .all(|(a, b)| (a - b).abs() < 0.02),
                "{found:?}"
            );
        };
        let warm = Options {
            temperature: 1.0,
            ..Options::default()
        };
        assert_near(Options::default(), [0.0, 0.0, 1.0, 0.0]);
        assert_near(warm.clone(), [0.125, 0.25, 0.625, 0.0]);
        // a temperature of 0.5 squares the probabilities
        assert_near(
            Options {
                temperature: 0.5,
                ..warm.clone()
            },
            [1.0 / 30.0, 4.0 / 30.0, 25.0 / 30.0, 0.0],
        );
        assert_near(
            Options {
                top_k: Some(2),
                ..warm.clone()
            },
            [0.0, 2.0 / 7.0, 5.0 / 7.0, 0.0],
        );
        assert_near(
            Options {
                top_p: 0.6,
                ..warm.clone()
            },
            [0.0, 0.0, 1.0, 0.0],
        );
        assert_near(
            Options { top_p: 0.7, ..warm },
            [0.0, 2.0 / 7.0, 5.0 / 7.0, 0.0],
        );
    }
}
