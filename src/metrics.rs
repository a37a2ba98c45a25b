//! Tables: rows of a stage → arrow → Parquet.
//! (skeleton: the interface is fixed, the body is being written)

use arrow::array::RecordBatch;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The rows that a stage measured, without the columns `variant`, `step`, `stage`, which the spine adds.
#[derive(Clone, Debug)]
pub struct Table {
    /// The file's stem: `evaluate`, `evaluate_samples`, `prune`, `prune_sizes`, …
    pub name: &'static str,
    pub rows: RecordBatch,
}

/// A table could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {}

impl Table {
    /// A table of plain structs: one column per field, in the order of the fields.
    pub fn of<R: Serialize + DeserializeOwned>(_name: &'static str, _rows: &[R]) -> Result<Self, MetricsError> {
        unimplemented!()
    }
}
