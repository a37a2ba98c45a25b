//! AdamW over runtime shapes (Kingma and Ba 2015; Loshchilov and Hutter 2019), and the global norm that clips it.
//! Weights and gradients are plain slices, so one parameter is one loop.

use serde::{Deserialize, Serialize};

/// The first moment's decay rate and ε, as PyTorch's defaults.
const BETA1: f32 = 0.9;
const EPSILON: f32 = 1e-8;

/// The second moment's decay rate by PyTorch's default.
pub const BETA2_DEFAULT: f32 = 0.999;
/// The one usual in pretraining (Brown et al. 2020): early, large gradients are forgotten sooner.
pub const BETA2_PRETRAIN: f32 = 0.95;

/// The running moments of one parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamMoments {
    first: Vec<f32>,
    second: Vec<f32>,
    beta2: f32,
}

impl AdamMoments {
    /// Moments of a parameter of so many numbers; `beta2` is the second moment's decay rate.
    pub fn new(len: usize, beta2: f32) -> Self {
        Self {
            first: vec![0.0; len],
            second: vec![0.0; len],
            beta2,
        }
    }

    /// One step. `update` counts from 1; `decay` is the decoupled weight decay.
    pub fn step(
        &mut self,
        weights: &mut [f32],
        gradient: &[f32],
        update: usize,
        learning_rate: f64,
        decay: f64,
    ) {
        let correction = |beta: f32| 1.0 - f64::from(beta).powi(update as i32);
        let step = (learning_rate / correction(BETA1)) as f32;
        let beta2 = self.beta2;
        let root = correction(beta2).sqrt() as f32;
        let keep = (1.0 - learning_rate * decay) as f32;
        for (((w, g), m), v) in weights
            .iter_mut()
            .zip(gradient)
            .zip(&mut self.first)
            .zip(&mut self.second)
        {
            *m += (g - *m) * (1.0 - BETA1);
            *v = *v * beta2 + g * g * (1.0 - beta2);
            *w = *w * keep - step * *m / (v.sqrt() / root + EPSILON);
        }
    }
}

/// √Σg² over all gradients, summed in f64.
pub fn global_norm<'a>(gradients: impl IntoIterator<Item = &'a [f32]>) -> f64 {
    gradients
        .into_iter()
        .flatten()
        .map(|&g| f64::from(g) * f64::from(g))
        .sum::<f64>()
        .sqrt()
}

/// What gradients are multiplied by so that their norm does not exceed `largest` (PyTorch's `clip_grad_norm_`).
pub fn clip_factor(norm: f64, largest: f64) -> f32 {
    (largest / (norm + 1e-6)).min(1.0) as f32
}

/// Linear warm-up to 1, then linear decay to 0; `update` counts from 0 (transformers'
/// `get_linear_schedule_with_warmup`: the first update of a warm-up has rate 0).
pub fn linear_schedule(update: usize, warmup: usize, updates: usize) -> f64 {
    if update < warmup {
        update as f64 / warmup as f64
    } else {
        updates.saturating_sub(update) as f64 / (updates - warmup.min(updates)).max(1) as f64
    }
}

/// Linear warm-up to 1, then a cosine down to `floor`; `update` counts from 0.
pub fn cosine_schedule(update: usize, warmup: usize, updates: usize, floor: f64) -> f64 {
    if update < warmup {
        return (update + 1) as f64 / warmup as f64;
    }
    let share = (update - warmup) as f64 / updates.saturating_sub(warmup).max(1) as f64;
    floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * share).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two steps by hand: with a constant gradient both moments are unbiased, so each step is the learning rate.
    #[test]
    fn a_constant_gradient_moves_by_the_learning_rate() {
        let (mut w, mut moments) = (vec![1.0f32, -1.0], AdamMoments::new(2, BETA2_DEFAULT));
        for update in 1..=2 {
            moments.step(&mut w, &[0.5, -2.0], update, 0.1, 0.0);
        }
        assert!(
            (w[0] - 0.8).abs() < 1e-6 && (w[1] + 0.8).abs() < 1e-6,
            "{w:?}"
        );
    }

    #[test]
    fn schedules_meet_their_ends() {
        let rates: Vec<f64> = [0, 5, 10, 35, 60]
            .iter()
            .map(|&u| linear_schedule(u, 10, 60))
            .collect();
        assert_eq!(rates, [0.0, 0.5, 1.0, 0.5, 0.0]);
        assert!((cosine_schedule(100, 0, 100, 0.1) - 0.1).abs() < 1e-12);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(2.0, 1.0) - 0.5).abs() < 1e-6);
        assert_eq!(global_norm([&[3.0f32][..], &[4.0]]), 5.0);
    }
}
