//! Learning rate schedules: linear warm-up, then decay.

/// The learning rate of every update.
#[derive(Clone, Copy, Debug)]
pub struct LearningRateSchedule {
    pub peak: f64,
    /// Updates of linear warm-up.
    pub warmup: usize,
    /// Number of updates, warm-up included.
    pub updates: usize,
    pub decay: Decay,
}

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug)]
pub enum Decay {
    /// Linearly to 0. The first update of a warm-up has rate 0 (transformers'
    /// `get_linear_schedule_with_warmup`).
    Linear,
    /// Along half a cosine to this share of the peak. The first update of a warm-up has rate peak /
    /// warmup.
    Cosine { final_share: f64 },
}

impl LearningRateSchedule {
    /// The learning rate of an update, counted from 0.
    pub fn rate(&self, update: usize) -> f64 {
        let Self {
            peak,
            warmup,
            updates,
            decay,
        } = *self;
        peak * match decay {
            Decay::Linear => linear_share(update, warmup, updates),
            Decay::Cosine { final_share } => cosine_share(update, warmup, updates, final_share),
        }
    }
}

/// The rate as a share of its peak: update / warmup, then (updates − update) / (updates − warmup).
fn linear_share(update: usize, warmup: usize, updates: usize) -> f64 {
    if update < warmup {
        update as f64 / warmup as f64
    } else {
        updates.saturating_sub(update) as f64 / (updates - warmup.min(updates)).max(1) as f64
    }
}

/// The rate as a share of its peak: (update + 1) / warmup, then f + (1 − f) · (1 + cos(π·p)) / 2,
/// where p is the share of the decay that has passed and f the final share.
fn cosine_share(update: usize, warmup: usize, updates: usize, final_share: f64) -> f64 {
    if update < warmup {
        return (update + 1) as f64 / warmup as f64;
    }
    let passed = (update - warmup) as f64 / updates.saturating_sub(warmup).max(1) as f64;
    final_share + (1.0 - final_share) * 0.5 * (1.0 + (std::f64::consts::PI * passed).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_meet_their_ends() {
        let shares = [0, 5, 10, 35, 60].map(|update| linear_share(update, 10, 60));
        assert_eq!(shares, [0.0, 0.5, 1.0, 0.5, 0.0]);
        assert!((cosine_share(100, 0, 100, 0.1) - 0.1).abs() < 1e-12);
    }
}
