//! `aggregate`: scores of channels → one score per unit of each group (LLM-Pruner, section 3.2, "group importance").

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fault, World};

/// Reduces the members of a group to one score per unit.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How the members of a group are reduced. Default `sum`; magnitudes under `compat = "reference"`: `mean`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub with: Option<Reduction>,
    /// Whether members are reduced per channel or per unit. Default `channel`.
    pub level: Level,
}

/// The reduction over the members of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Σ over the members.
    Sum,
    /// The arithmetic mean over the members.
    Mean,
    /// The largest member.
    Max,
    /// Π over the members.
    Product,
    /// The member that writes back to the residual stream alone: `o_proj`, `down_proj` (the paper's "last-only").
    Last,
    /// The root of the group alone: `q_proj` (`k_proj` with grouped queries), `gate_proj`.
    First,
    /// The reference's second member: `o_proj`, `up_proj`. Only under `compat = "reference"` of the importance.
    Second,
}

/// Where the reduction takes place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Members are reduced channel by channel, then a unit's channels are summed, as the reference computes.
    #[default]
    Channel,
    /// Each member's whole share of the unit first, then the members, as the paper's equations say.
    Unit,
}

impl Options {
    pub fn faults(&self) -> Vec<Fault> {
        Vec::new()
    }

    pub fn world(&self, _: &mut World) -> Vec<Fault> {
        Vec::new()
    }
}
