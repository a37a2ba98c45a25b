//! The numbers of one variant's row in `variants.parquet`, as data.

use std::collections::BTreeMap;

use polars::prelude::AnyValue;

/// The columns of `prune_sizes.parquet` that `variants.parquet` repeats.
pub(crate) const SIZE_COLUMNS: [&str; 9] = [
    "params_before",
    "params_after",
    "macs_before",
    "macs_after",
    "bytes_before",
    "bytes_after",
    "group_ratio",
    "param_ratio",
    "dtype",
];

/// One metric of one task, measured by one `evaluate` stage.
#[derive(Clone, Debug)]
pub(crate) struct Measurement {
    pub(crate) task: String,
    pub(crate) metric: String,
    /// The position of the stage in the pipeline.
    pub(crate) step: u32,
    pub(crate) value: f64,
    pub(crate) stderr: Option<f64>,
    /// The accuracy of guessing.
    pub(crate) chance: Option<f64>,
    /// The accuracy of always giving the most frequent right answer.
    pub(crate) majority: Option<f64>,
}

/// Measurements by the name of their column, `task.metric`.
pub(crate) type Measurements = BTreeMap<String, Measurement>;

/// The numbers of one variant.
#[derive(Default)]
pub(crate) struct VariantMetrics {
    /// Of the model before any pruning.
    pub(crate) dense: Measurements,
    /// Of the model after the last pruning, before recovery.
    pub(crate) pruned: Measurements,
    /// Of the final model.
    pub(crate) last: Measurements,
    /// Standard errors of the differences `last - dense`, by the name of the metric's column.
    pub(crate) delta_stderr: BTreeMap<String, f64>,
    /// Values of [`SIZE_COLUMNS`]; empty for a variant that prunes nothing.
    pub(crate) sizes: BTreeMap<&'static str, AnyValue<'static>>,
}
