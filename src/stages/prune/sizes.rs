//! `prune_sizes`: the sizes of the model before and after a pruning.

use serde::{Deserialize, Serialize};

use secateur_model::Model;
use secateur_model::cost::{MACS_TOKENS, ModelShape};
use secateur_model::groups::DependencyGraph;

/// The row of `prune_sizes.parquet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PruneSizesRow {
    pub params_before: u64,
    pub params_after: u64,
    /// Multiply-accumulates of a forward pass over 64 tokens.
    pub macs_before: u64,
    pub macs_after: u64,
    /// Size of the weights in the type `dtype`.
    pub bytes_before: u64,
    pub bytes_after: u64,
    /// Share of the units in the groups that was removed.
    pub group_ratio: f64,
    /// Share of all parameters that was removed.
    pub param_ratio: f64,
    /// The element type of the loaded checkpoint, or of most of its weights: `float32`, `float16`
    /// or `bfloat16`.
    pub dtype: String,
}

/// The sizes of the model before and after. `removed`: the removed units of each group.
pub(super) fn sizes_row(
    before: &Model,
    after: &Model,
    graph: &DependencyGraph,
    removed: &[Vec<usize>],
) -> PruneSizesRow {
    let (params_before, params_after) = (before.parameter_count(), after.parameter_count());
    let units: usize = graph.groups.iter().map(|group| group.unit_count).sum();
    let removed_units: usize = removed.iter().map(Vec::len).sum();
    PruneSizesRow {
        params_before,
        params_after,
        macs_before: ModelShape::from_model(before).macs(MACS_TOKENS),
        macs_after: ModelShape::from_model(after).macs(MACS_TOKENS),
        bytes_before: before.stored_bytes(),
        bytes_after: after.stored_bytes(),
        group_ratio: removed_units as f64 / units as f64,
        param_ratio: 1.0 - params_after as f64 / params_before as f64,
        dtype: before.source.dtype.torch_name().to_owned(),
    }
}
