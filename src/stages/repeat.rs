//! `repeat`: runs its own list of stages several times: iterative pruning (reference, sections 4.1
//! and 4.2).
//!
//! The pipeline unrolls it, so what runs are the stages of the list. The ratio of a `prune` inside
//! is the ratio after the last iteration; it rises linearly and counts from the widths at the
//! beginning of the repeat.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::environment::OptionFault;

/// Runs its own `[[stage.stage]]` list several times.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// How many times the list runs, 1 to 1000.
    pub times: u32,
}

impl Options {
    pub fn faults(&self) -> Vec<OptionFault> {
        if (1..=1000).contains(&self.times) {
            return Vec::new();
        }
        vec![OptionFault::new(
            "times",
            format!("the list cannot run {} times", self.times),
            "write a number from 1 to 1000",
        )]
    }
}
