//! Logits → log probabilities, losses, and the gradient a walk backward starts from. Sums are taken in f64.

use dfdx::prelude::*;
use rayon::prelude::*;

use crate::tensor::Hidden;

/// A prediction that counts: the logits at `position` are asked for `id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub position: usize,
    pub id: u32,
}

/// How a model rates one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm of the token's probability.
    pub log_probability: f64,
    /// Whether no other token has a larger logit (the first of equals counts).
    pub greedy: bool,
}

/// A loss and where to go from it.
#[derive(Clone, Debug)]
pub struct Scored {
    /// Σ −log p over the targets, in nats.
    pub nll: f64,
    /// The gradient of `scale · nll` with respect to the logits: (positions, vocabulary).
    pub gradient: Vec<f32>,
}

/// Rates the targets; the logits are (positions, vocabulary).
pub fn token_scores(logits: &Hidden, targets: &[Target]) -> Vec<TokenScore> {
    let vocabulary = logits.shape().1;
    let values = logits.as_vec();
    targets
        .par_iter()
        .map(|target| {
            let row = &values[target.position * vocabulary..(target.position + 1) * vocabulary];
            let (best, _) =
                row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &l)| if l > best.1 { (i, l) } else { best });
            TokenScore {
                log_probability: f64::from(row[target.id as usize]) - log_sum_exp(row),
                greedy: best == target.id as usize,
            }
        })
        .collect()
}

/// The summed cross entropy of the targets, and its gradient times `scale`. Two targets never share a position.
pub fn cross_entropy(logits: &Hidden, targets: &[Target], scale: f32) -> Scored {
    let (positions, vocabulary) = *logits.shape();
    let values = logits.as_vec();
    let mut gradient = vec![0.0; positions * vocabulary];
    let mut nll = 0.0;
    for target in targets {
        let at = target.position * vocabulary..(target.position + 1) * vocabulary;
        let (row, out) = (&values[at.clone()], &mut gradient[at]);
        let total = log_sum_exp(row);
        nll += total - f64::from(row[target.id as usize]);
        out.iter_mut().zip(row).for_each(|(g, &l)| *g = scale * (f64::from(l) - total).exp() as f32);
        out[target.id as usize] -= scale;
    }
    Scored { nll, gradient }
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(largest) + row.iter().map(|&l| f64::from(l - largest).exp()).sum::<f64>().ln()
}
