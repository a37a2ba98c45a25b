//! A family as a table: every weight, and which space it reads and writes. Two weights that name the same space are
//! coupled; the groups of structural pruning follow from that alone (after mergekit's architecture tables).

use serde::{Deserialize, Serialize};

/// A weight of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BlockTensor {
    InputNorm,
    Q,
    K,
    V,
    O,
    PostAttentionNorm,
    Gate,
    Up,
    Down,
}

impl BlockTensor {
    pub const ALL: [BlockTensor; 9] = [
        BlockTensor::InputNorm,
        BlockTensor::Q,
        BlockTensor::K,
        BlockTensor::V,
        BlockTensor::O,
        BlockTensor::PostAttentionNorm,
        BlockTensor::Gate,
        BlockTensor::Up,
        BlockTensor::Down,
    ];
    /// The matrices, which LoRA can adapt.
    pub const MATRICES: [BlockTensor; 7] = [
        BlockTensor::Q,
        BlockTensor::K,
        BlockTensor::V,
        BlockTensor::O,
        BlockTensor::Gate,
        BlockTensor::Up,
        BlockTensor::Down,
    ];
    /// Those of the attention, and those of the MLP.
    pub const ATTENTION: [BlockTensor; 4] = [
        BlockTensor::Q,
        BlockTensor::K,
        BlockTensor::V,
        BlockTensor::O,
    ];
    pub const MLP: [BlockTensor; 3] = [BlockTensor::Gate, BlockTensor::Up, BlockTensor::Down];
}

/// Where a weight stands in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TensorId {
    Embedding,
    Block(usize, BlockTensor),
    FinalNorm,
    LmHead,
}

/// What the channels of an activation are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChannelSpace {
    /// Token ids.
    Vocabulary,
    /// The residual stream, one for the whole model.
    Hidden,
    /// The attention of one layer. Its unit is a key/value head with the query heads that use it: whatever a member's
    /// width is, each unit owns an equal, contiguous share of it.
    Heads,
    /// The MLP of one layer. Its unit is a channel.
    Mlp,
}

/// The axis of a weight that lies in a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Axis {
    Rows,
    Cols,
}

/// One line of the table: a weight, the space it reads and the space it writes, each with its axis.
#[derive(Clone, Copy, Debug)]
pub struct TensorWiring<P> {
    pub tensor: P,
    /// Its name in the checkpoint, inside the block for a block's weight.
    pub name: &'static str,
    pub reads: (ChannelSpace, Axis),
    /// None for a scale inside a space, such as a norm: it goes with its space and feeds no other.
    pub writes: Option<(ChannelSpace, Axis)>,
}

/// A family of models.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_types: &'static [&'static str],
    /// Weights outside the blocks.
    pub outer_tensors: &'static [TensorWiring<TensorId>],
    /// What stands before a block's number in a tensor's name.
    pub block_prefix: &'static str,
    /// Weights of one block.
    pub block_tensors: &'static [TensorWiring<BlockTensor>],
}

/// y = x · Wᵀ reads its columns and writes its rows.
const fn linear_wiring<P: Copy>(
    at: P,
    name: &'static str,
    reads: ChannelSpace,
    writes: ChannelSpace,
) -> TensorWiring<P> {
    TensorWiring {
        tensor: at,
        name,
        reads: (reads, Axis::Cols),
        writes: Some((writes, Axis::Rows)),
    }
}

/// A vector that scales a space.
const fn scale_wiring<P: Copy>(at: P, name: &'static str, space: ChannelSpace) -> TensorWiring<P> {
    TensorWiring {
        tensor: at,
        name,
        reads: (space, Axis::Cols),
        writes: None,
    }
}

/// LLaMA, Mistral without a sliding window, and Granite with its multipliers at rest: RMSNorm, rotary positions, SwiGLU, grouped-query attention.
pub static LLAMA: Family = Family {
    model_types: &["llama", "mistral", "granite"],
    outer_tensors: &[
        TensorWiring {
            tensor: TensorId::Embedding,
            name: "model.embed_tokens.weight",
            reads: (ChannelSpace::Vocabulary, Axis::Rows),
            writes: Some((ChannelSpace::Hidden, Axis::Cols)),
        },
        scale_wiring(
            TensorId::FinalNorm,
            "model.norm.weight",
            ChannelSpace::Hidden,
        ),
        linear_wiring(
            TensorId::LmHead,
            "lm_head.weight",
            ChannelSpace::Hidden,
            ChannelSpace::Vocabulary,
        ),
    ],
    block_prefix: "model.layers.",
    block_tensors: &[
        scale_wiring(
            BlockTensor::InputNorm,
            "input_layernorm.weight",
            ChannelSpace::Hidden,
        ),
        linear_wiring(
            BlockTensor::Q,
            "self_attn.q_proj.weight",
            ChannelSpace::Hidden,
            ChannelSpace::Heads,
        ),
        linear_wiring(
            BlockTensor::K,
            "self_attn.k_proj.weight",
            ChannelSpace::Hidden,
            ChannelSpace::Heads,
        ),
        linear_wiring(
            BlockTensor::V,
            "self_attn.v_proj.weight",
            ChannelSpace::Hidden,
            ChannelSpace::Heads,
        ),
        linear_wiring(
            BlockTensor::O,
            "self_attn.o_proj.weight",
            ChannelSpace::Heads,
            ChannelSpace::Hidden,
        ),
        scale_wiring(
            BlockTensor::PostAttentionNorm,
            "post_attention_layernorm.weight",
            ChannelSpace::Hidden,
        ),
        linear_wiring(
            BlockTensor::Gate,
            "mlp.gate_proj.weight",
            ChannelSpace::Hidden,
            ChannelSpace::Mlp,
        ),
        linear_wiring(
            BlockTensor::Up,
            "mlp.up_proj.weight",
            ChannelSpace::Hidden,
            ChannelSpace::Mlp,
        ),
        linear_wiring(
            BlockTensor::Down,
            "mlp.down_proj.weight",
            ChannelSpace::Mlp,
            ChannelSpace::Hidden,
        ),
    ],
};

impl Family {
    /// The name of the bias beside a block's matrix.
    pub fn bias_name(&self, layer: usize, part: BlockTensor) -> String {
        self.tensor_name(TensorId::Block(layer, part))
            .replace(".weight", ".bias")
    }

    /// The tensor's name in a checkpoint.
    pub fn tensor_name(&self, place: TensorId) -> String {
        match place {
            TensorId::Block(layer, part) => {
                let name = self
                    .block_tensors
                    .iter()
                    .find(|wire| wire.tensor == part)
                    .map_or("", |wire| wire.name);
                format!("{}{layer}.{name}", self.block_prefix)
            }
            outside => self
                .outer_tensors
                .iter()
                .find(|wire| wire.tensor == outside)
                .map_or("", |wire| wire.name)
                .to_owned(),
        }
    }
}
