//! A family as a table: every weight, and which space it reads and writes. Two weights that name the same space are
//! coupled; the groups of structural pruning follow from that alone (after mergekit's architecture tables).

use serde::{Deserialize, Serialize};

/// A weight of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Part {
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

impl Part {
    pub const ALL: [Part; 9] =
        [Part::InputNorm, Part::Q, Part::K, Part::V, Part::O, Part::PostAttentionNorm, Part::Gate, Part::Up, Part::Down];
    /// The matrices, which LoRA can adapt.
    pub const MATRICES: [Part; 7] = [Part::Q, Part::K, Part::V, Part::O, Part::Gate, Part::Up, Part::Down];
    /// Those of the attention, and those of the MLP.
    pub const ATTENTION: [Part; 4] = [Part::Q, Part::K, Part::V, Part::O];
    pub const MLP: [Part; 3] = [Part::Gate, Part::Up, Part::Down];
}

/// Where a weight stands in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Place {
    Embedding,
    Block(usize, Part),
    FinalNorm,
    Head,
}

/// What the channels of an activation are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
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
pub struct Wire<P> {
    pub at: P,
    /// Its name in the checkpoint, inside the block for a block's weight.
    pub name: &'static str,
    pub reads: (Space, Axis),
    /// None for a scale inside a space, such as a norm: it goes with its space and feeds no other.
    pub writes: Option<(Space, Axis)>,
}

/// A family of models.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_types: &'static [&'static str],
    /// Weights outside the blocks.
    pub outside: &'static [Wire<Place>],
    /// What stands before a block's number in a tensor's name.
    pub block_prefix: &'static str,
    /// Weights of one block.
    pub block: &'static [Wire<Part>],
}

/// y = x · Wᵀ reads its columns and writes its rows.
const fn linear<P: Copy>(at: P, name: &'static str, reads: Space, writes: Space) -> Wire<P> {
    Wire { at, name, reads: (reads, Axis::Cols), writes: Some((writes, Axis::Rows)) }
}

/// A vector that scales a space.
const fn scale<P: Copy>(at: P, name: &'static str, space: Space) -> Wire<P> {
    Wire { at, name, reads: (space, Axis::Cols), writes: None }
}

/// LLaMA, Mistral without a sliding window, and Granite with its multipliers at rest: RMSNorm, rotary positions, SwiGLU, grouped-query attention.
pub static LLAMA: Family = Family {
    model_types: &["llama", "mistral", "granite"],
    outside: &[
        Wire {
            at: Place::Embedding,
            name: "model.embed_tokens.weight",
            reads: (Space::Vocabulary, Axis::Rows),
            writes: Some((Space::Hidden, Axis::Cols)),
        },
        scale(Place::FinalNorm, "model.norm.weight", Space::Hidden),
        linear(Place::Head, "lm_head.weight", Space::Hidden, Space::Vocabulary),
    ],
    block_prefix: "model.layers.",
    block: &[
        scale(Part::InputNorm, "input_layernorm.weight", Space::Hidden),
        linear(Part::Q, "self_attn.q_proj.weight", Space::Hidden, Space::Heads),
        linear(Part::K, "self_attn.k_proj.weight", Space::Hidden, Space::Heads),
        linear(Part::V, "self_attn.v_proj.weight", Space::Hidden, Space::Heads),
        linear(Part::O, "self_attn.o_proj.weight", Space::Heads, Space::Hidden),
        scale(Part::PostAttentionNorm, "post_attention_layernorm.weight", Space::Hidden),
        linear(Part::Gate, "mlp.gate_proj.weight", Space::Hidden, Space::Mlp),
        linear(Part::Up, "mlp.up_proj.weight", Space::Hidden, Space::Mlp),
        linear(Part::Down, "mlp.down_proj.weight", Space::Mlp, Space::Hidden),
    ],
};

impl Family {
    /// The name of the bias beside a block's matrix.
    pub fn bias(&self, layer: usize, part: Part) -> String {
        self.tensor(Place::Block(layer, part)).replace(".weight", ".bias")
    }

    /// The tensor's name in a checkpoint.
    pub fn tensor(&self, place: Place) -> String {
        match place {
            Place::Block(layer, part) => {
                let name = self.block.iter().find(|wire| wire.at == part).map_or("", |wire| wire.name);
                format!("{}{layer}.{name}", self.block_prefix)
            }
            outside => self.outside.iter().find(|wire| wire.at == outside).map_or("", |wire| wire.name).to_owned(),
        }
    }
}
