//! Names for everything that can have a gradient: a weight of the model, or a factor of an adapter.

use serde::{Deserialize, Serialize};

use crate::wiring::{BlockTensor, TensorId};

/// A parameter whose gradient a backward walk can compute. The order is that of the model, A before
/// B.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ParameterId {
    /// A weight of the model.
    Weight(TensorId),
    /// A factor of the adapter of a matrix: layer, matrix, factor.
    LoraFactor(usize, BlockTensor, Factor),
}

/// A factor of a low-rank adapter B·A.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Factor {
    /// (rank, inputs)
    A,
    /// (outputs, rank)
    B,
}

impl ParameterId {
    /// The weight, if this is one.
    pub fn weight(self) -> Option<TensorId> {
        match self {
            Self::Weight(tensor) => Some(tensor),
            Self::LoraFactor(..) => None,
        }
    }
}
