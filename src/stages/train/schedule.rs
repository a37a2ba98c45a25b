//! Learning rate schedules: linear warm-up, then decay.

use crate::stages::OptionFault;

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

impl LearningRateSchedule {
    /// The largest share of the peak that an update has: 1 if the warm-up ends before the training.
    fn largest_share(&self) -> f64 {
        match self.decay {
            _ if self.warmup < self.updates => 1.0,
            Decay::Linear => self.updates.saturating_sub(1) as f64 / self.warmup as f64,
            Decay::Cosine { .. } => self.updates as f64 / self.warmup as f64,
        }
    }

    /// A fault of the option `warmup` if the learning rate is 0 at every update, a warning if it
    /// never reaches its peak.
    pub fn warmup_fault(&self) -> Option<OptionFault> {
        let Self {
            warmup, updates, ..
        } = self;
        let share = self.largest_share();
        let help = "write a smaller `warmup`, or a longer training";
        let counts = format!("the warm-up takes {warmup} updates, and the training {updates}");
        if share == 0.0 {
            let message = format!("the learning rate is 0 at every update: {counts}");
            Some(OptionFault::new("warmup", message, help))
        } else if share < 1.0 {
            let message = format!(
                "{counts}: the learning rate reaches {:.2e}, not {:e}",
                share * self.peak,
                self.peak
            );
            Some(OptionFault::warning("warmup", message, help))
        } else {
            None
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

    #[test]
    fn a_warmup_that_does_not_end_is_a_fault() {
        let decays = [Decay::Linear, Decay::Cosine { final_share: 0.1 }];
        for decay in decays {
            for (warmup, updates) in [(0, 1), (1, 1), (1, 2), (3, 3), (3, 4), (100, 2), (5, 1)] {
                let schedule = LearningRateSchedule {
                    peak: 1e-3,
                    warmup,
                    updates,
                    decay,
                };
                let rates = (0..updates).map(|update| schedule.rate(update));
                let largest = rates.fold(0.0, f64::max);
                assert!((largest - 1e-3 * schedule.largest_share()).abs() < 1e-15);
                // None: the peak is reached; true: a warning.
                let expected = match largest {
                    0.0 => Some(false),
                    _ if warmup < updates => None,
                    _ => Some(largest < 1e-3).filter(|is_below| *is_below),
                };
                let fault = schedule.warmup_fault().map(|fault| fault.is_warning);
                assert_eq!(fault, expected, "{warmup} {updates} {decay:?}");
            }
        }
    }
}
