//! Predictions of tokens, their scores and their loss.

use crate::activations::Activations;

/// A prediction that is scored: token `token_id` from the logits at `position`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenTarget {
    pub position: usize,
    pub token_id: u32,
}

/// How a model scores one target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm of the token's probability.
    pub log_probability: f64,
    /// Whether the token is the first with the largest logit.
    pub is_greedy: bool,
}

/// The loss of a pack, and its gradient.
#[derive(Clone, Debug)]
pub struct LossAndGradient {
    /// Σ −log p over the targets, in nats.
    pub nll: f64,
    /// The gradient of `scale · nll` with respect to the final hidden states, (positions, hidden).
    pub gradient: Activations,
}
