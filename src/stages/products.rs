//! The types of the values that stages pass to later stages, besides those of the model crate.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use secateur_model::groups::GroupKind;
use secateur_model::plan::PruningPlan;
use secateur_model::wiring::BlockTensor;

/// Which implementation is followed where the reference implementation differs from the paper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Compat {
    /// Query head h belongs to the key/value head that it uses, h div repeat. Global pruning
    /// removes exactly the number of units asked for, from scores made comparable between groups,
    /// and leaves every group at least one unit.
    #[default]
    Corrected,
    /// Query head h belongs to key/value head h mod count; magnitudes reduce by mean, and leave out
    /// the embedding. Global pruning compares raw scores, removes every unit at or below the
    /// threshold, and skips a group that would lose all units.
    Reference,
}

/// The value of `importance`: for each group of the graph, in its order, the scores of its members.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChannelScores {
    pub groups: Vec<Vec<MemberScores>>,
    /// Whether scores have a sign, are added up with it, and count by the magnitude of the sum (the
    /// `vector` forms).
    pub is_signed: bool,
    /// Whether these are magnitudes of weights, which the reference always reduces by mean.
    pub is_magnitude: bool,
    pub compat: Compat,
    /// The means that `wifv` records; empty for the other methods.
    pub input_means: InputMeans,
}

/// Means over the calibration tokens of the inputs of the matrices that write back to the residual
/// stream: layer, matrix (`o_proj` or `down_proj`), and one mean per input channel.
pub type InputMeans = Vec<(usize, BlockTensor, Vec<f64>)>;

/// One score per channel of a member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberScores {
    /// Index into the group's members.
    pub member_index: usize,
    pub channels: Vec<f64>,
}

/// The value of `aggregate`: for each group of the graph, in its order, one score per unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupScores {
    pub groups: Vec<Vec<f64>>,
    /// Copied from the [`ChannelScores`].
    pub input_means: InputMeans,
}

/// The value of `prune`. Together with the model and the groups it rebuilds the pruned model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PruningResult {
    /// The units of each group of the graph that are kept: indices in the model before this
    /// pruning.
    pub kept_units: Vec<Vec<usize>>,
    /// The units that this and all earlier prunings have kept: indices in the dense model.
    pub plan: PruningPlan,
    /// Number of units of each group before the first iteration of a repeat.
    pub initial_units: InitialUnits,
    /// What is added to the outputs of matrices: layer of the model before this pruning, matrix,
    /// one number per output.
    pub added_biases: Vec<(usize, BlockTensor, Vec<f32>)>,
}

/// Number of units of a group before the first iteration of a repeat, by the group's kind and its
/// layer in the dense model.
pub type InitialUnits = BTreeMap<(GroupKind, usize), usize>;

/// One row of `pretrain.parquet` and `recover.parquet`: one update of the optimiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpdateRow {
    /// From 1.
    pub update: u32,
    /// Mean cross entropy of the update's rows before it, in nats.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of this update.
    pub lr: f64,
    /// Predicted tokens that count in the loss.
    pub tokens: u64,
}
