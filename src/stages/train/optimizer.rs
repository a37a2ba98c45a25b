//! AdamW over runtime shapes (Kingma and Ba 2015; Loshchilov and Hutter 2019), and gradient
//! clipping. Weights and gradients are plain slices, so one parameter is one loop.

use serde::{Deserialize, Serialize};

/// The decay rate of the first moment, PyTorch's default.
const BETA1: f32 = 0.9;
/// Added to the denominator, PyTorch's default.
const EPSILON: f32 = 1e-8;

/// The decay rate of the second moment, PyTorch's default.
pub const BETA2_DEFAULT: f32 = 0.999;
/// The usual decay rate in pretraining (Brown et al. 2020): the large gradients of the first
/// updates lose their weight sooner.
pub const BETA2_PRETRAIN: f32 = 0.95;

/// The running moments of one parameter: m of its gradient, v of the gradient's square.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct AdamMoments {
    first: Vec<f32>,
    second: Vec<f32>,
}

impl AdamMoments {
    /// The moments of a parameter of `len` elements before its first update.
    pub(crate) fn zeros(len: usize) -> Self {
        Self {
            first: vec![0.0; len],
            second: vec![0.0; len],
        }
    }
}

/// One update of AdamW, for all parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamStep {
    beta2: f32,
    /// learning rate / (1 − β₁ᵗ), at update t
    step: f32,
    /// √(1 − β₂ᵗ)
    second_correction: f32,
    learning_rate: f64,
}

impl AdamStep {
    /// `update` counts from 1.
    pub(crate) fn new(beta2: f32, update: usize, learning_rate: f64) -> Self {
        let correction = |beta: f32| 1.0 - f64::from(beta).powi(update as i32);
        Self {
            beta2,
            step: (learning_rate / correction(BETA1)) as f32,
            second_correction: correction(beta2).sqrt() as f32,
            learning_rate,
        }
    }

    /// Updates one parameter, with decoupled weight decay λ:
    ///
    /// m ← m + (g − m)·(1 − β₁);  v ← β₂·v + (1 − β₂)·g²;
    /// w ← w·(1 − η·λ) − η / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
    pub(crate) fn apply(
        &self,
        weights: &mut [f32],
        gradient: &[f32],
        moments: &mut AdamMoments,
        weight_decay: f64,
    ) {
        let Self {
            beta2,
            step,
            second_correction,
            ..
        } = *self;
        let decay_factor = (1.0 - self.learning_rate * weight_decay) as f32;
        let elements = weights
            .iter_mut()
            .zip(gradient)
            .zip(&mut moments.first)
            .zip(&mut moments.second);
        for (((w, g), m), v) in elements {
            *m += (g - *m) * (1.0 - BETA1);
            *v = *v * beta2 + g * g * (1.0 - beta2);
            *w = *w * decay_factor - step * *m / (v.sqrt() / second_correction + EPSILON);
        }
    }
}

/// √Σg² over all gradients, in f64.
pub(crate) fn global_norm<'a>(gradients: impl IntoIterator<Item = &'a [f32]>) -> f64 {
    let sum_of_squares: f64 = gradients
        .into_iter()
        .flatten()
        .map(|&g| f64::from(g) * f64::from(g))
        .sum();
    sum_of_squares.sqrt()
}

/// The factor by which gradients are multiplied so that their norm is at most `max_norm`, as in
/// PyTorch's `clip_grad_norm_`: min(1, max_norm / (norm + 1e-6)).
pub(crate) fn clip_factor(norm: f64, max_norm: f64) -> f32 {
    (max_norm / (norm + 1e-6)).min(1.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a constant gradient both moments are unbiased after their corrections, so each of two
    /// steps is the learning rate.
    #[test]
    fn a_constant_gradient_moves_by_the_learning_rate() {
        let (mut weights, mut moments) = (vec![1.0f32, -1.0], AdamMoments::zeros(2));
        for update in 1..=2 {
            let step = AdamStep::new(BETA2_DEFAULT, update, 0.1);
            step.apply(&mut weights, &[0.5, -2.0], &mut moments, 0.0);
        }
        assert!(
            (weights[0] - 0.8).abs() < 1e-6 && (weights[1] + 0.8).abs() < 1e-6,
            "{weights:?}"
        );
    }

    #[test]
    fn clipping_limits_the_norm() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(2.0, 1.0) - 0.5).abs() < 1e-6);
        assert_eq!(global_norm([&[3.0f32][..], &[4.0]]), 5.0);
    }
}
