//! The values that stages hand to each other, beside the model's own types. Plain data.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use secateur_model::wiring::BlockTensor;

/// Where the reference implementation differs from the paper or has a defect worth reproducing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Compat {
    /// Query head h is credited to the key/value head it uses, h div repeat. Global pruning takes exactly the number
    /// asked for, from scores made comparable between groups, and empties no group.
    #[default]
    Corrected,
    /// Query head h is credited to key/value head h mod count; magnitudes reduce by mean, and leave out the
    /// embedding. Global pruning compares raw
    /// scores, takes every unit at or below the threshold, and leaves alone a group that it would empty.
    Reference,
}

/// What `importance` hands on: for each group of the graph, in its order, the scores of its members.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChannelScores {
    pub groups: Vec<Vec<MemberScores>>,
    /// Whether sums of scores are what counts, and their magnitude is taken last (the `vector` forms).
    pub is_signed: bool,
    /// Whether these are magnitudes of weights, which the reference always reduces by mean.
    pub is_magnitude: bool,
    pub compat: Compat,
    /// What `wifv` sees besides; empty for the other methods.
    pub input_means: InputMeans,
}

/// Means of what goes into the matrices that write back to the residual stream, over the calibration tokens: layer, part
/// (`o_proj` or `down_proj`), and one mean per input channel.
pub type InputMeans = Vec<(usize, BlockTensor, Vec<f64>)>;

/// One score per channel of a member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberScores {
    /// Index into the group's members.
    pub member_index: usize,
    pub channels: Vec<f64>,
}

/// What `aggregate` hands on: for each group of the graph, in its order, one score per unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupScores {
    pub groups: Vec<Vec<f64>>,
    /// As the importance saw them.
    pub input_means: InputMeans,
}

/// One row of `pretrain.parquet` and `recover.parquet`: one update of the optimiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpdateRow {
    /// Counted from 1.
    pub update: u32,
    /// Mean cross entropy of the update's rows before it, in nats.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of this update.
    pub lr: f64,
    /// Predictions that counted.
    pub tokens: u64,
}
