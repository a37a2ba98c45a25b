//! `prune`: scores of units → the plan of what stays, and the smaller Model (LLM-Pruner, section 3.3).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::importance::Compat;
use super::{Fault, World};

/// Removes the least important units.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Share of the units of each group that is removed, strictly between 0 and 1.
    pub ratio: f64,
    /// Whether each group loses the same share, or the whole model is ranked at once. Default `local`.
    #[serde(default)]
    pub scope: Scope,
    /// Keep a multiple of this many units in each group of MLP or hidden channels. Default 1: no rounding.
    #[serde(default = "one")]
    pub round_to: usize,
    /// Which rule global ranking follows. Default `corrected`.
    #[serde(default)]
    pub compat: Compat,
}

fn one() -> usize {
    1
}

/// What is ranked together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Every group for itself.
    #[default]
    Local,
    /// All groups together: widths may differ from layer to layer.
    Global,
}

impl Options {
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if !(self.ratio > 0.0 && self.ratio < 1.0) {
            faults.push(Fault::new("ratio", format!("a ratio of {} prunes nothing or everything", self.ratio), "write a share strictly between 0 and 1, such as 0.25"));
        }
        if self.round_to == 0 {
            faults.push(Fault::new("round_to", "widths cannot be rounded to a multiple of 0", "write 1 for no rounding"));
        }
        faults
    }

    pub fn world(&self, _: &mut World) -> Vec<Fault> {
        Vec::new()
    }
}
