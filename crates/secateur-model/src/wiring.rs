//! The logical tensors of a language model, and the spaces that they read and write.
//!
//! A logical tensor is what the operations see: `q`, `k` and `v` are three matrices even where a
//! checkpoint stores them as one. Two tensors that name the same space are coupled; the groups of
//! structural pruning follow from that alone (after mergekit's architecture tables).

use serde::{Deserialize, Serialize};

/// A weight of a block, by its role. A family has some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BlockTensor {
    /// The norm before the attention.
    InputNorm,
    Q,
    K,
    V,
    /// The output matrix of the attention.
    O,
    /// The norm before the MLP.
    PostAttentionNorm,
    /// The matrix whose activation multiplies `up`, in a gated MLP.
    Gate,
    /// The matrix that writes the MLP's channels.
    Up,
    /// The output matrix of the MLP.
    Down,
}

impl BlockTensor {
    /// Whether it is a matrix, which has rows and columns and which LoRA can adapt; norms are
    /// vectors.
    pub fn is_matrix(self) -> bool {
        !matches!(self, Self::InputNorm | Self::PostAttentionNorm)
    }

    /// The name of its role, as `recover.targets` writes it.
    pub fn role(self) -> &'static str {
        match self {
            Self::InputNorm => "input-norm",
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::O => "o",
            Self::PostAttentionNorm => "post-attention-norm",
            Self::Gate => "gate",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// Identifies a weight of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TensorId {
    Embedding,
    /// A weight of the block with this index.
    Block(usize, BlockTensor),
    FinalNorm,
    LmHead,
}

/// What the channels of an activation are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChannelSpace {
    /// The entries of the vocabulary: token ids and logits.
    Vocabulary,
    /// The residual stream, one for the whole model.
    Hidden,
    /// The attention of one layer. Its unit is a key/value head with the query heads that use it.
    /// Members have different widths; in each, a unit owns an equal, contiguous share of the axis.
    Heads,
    /// The MLP of one layer. Its unit is a channel.
    Mlp,
}

impl ChannelSpace {
    /// Whether each block has its own space of this kind.
    pub fn is_inside_block(self) -> bool {
        matches!(self, Self::Heads | Self::Mlp)
    }
}

/// An axis of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Axis {
    Rows,
    Cols,
}
