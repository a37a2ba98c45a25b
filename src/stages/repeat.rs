//! `repeat`: runs its own list of stages several times: iterative pruning (reference, sections 4.1
//! and 4.2).
//!
//! The pipeline unrolls it, so only the stages of the list run. For a `prune` in the list, `ratio`
//! is the share that is removed after the last iteration. The share rises linearly, and refers to
//! the widths before the first iteration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::environment::OptionFault;

/// The largest number of iterations. The check unrolls a list that often at most, even if `times`
/// is larger, which is a fault.
pub const MAX_TIMES: u32 = 1000;

/// Runs its own `[[stage.stage]]` list several times.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// How many times the list runs, 1 to 1000.
    pub times: u32,
}

impl Options {
    pub fn faults(&self) -> Vec<OptionFault> {
        if (1..=MAX_TIMES).contains(&self.times) {
            return Vec::new();
        }
        vec![OptionFault::new(
            "times",
            format!("the list cannot run {} times", self.times),
            format!("write a number from 1 to {MAX_TIMES}"),
        )]
    }
}
