//! A family of models as a value: which tensors a model has, which spaces each reads and writes,
//! how a checkpoint names and stores them, and which computation a block does.
//!
//! Shapes and their checks, tensor names, dependency groups, parameter counts, saving, adapters and
//! the forward pass are derived from this value. `families` holds one file per family.

use crate::wiring::{Axis, BlockTensor, ChannelSpace, TensorId};

/// A family of models.
#[derive(Debug)]
pub struct Family {
    /// The classes of transformers whose checkpoints this family reads. An export is written as the
    /// first of them that can hold it.
    pub classes: &'static [ModelClass],
    /// Classes of other families, with the same tensor names, for exports that none of `classes`
    /// can hold.
    pub fallback_classes: &'static [ModelClass],
    pub keys: ConfigKeys,
    /// The embedding, the final norm and the output matrix.
    pub outer_tensors: &'static [TensorSpec<TensorId>],
    /// The part of a tensor's name before the index of its block.
    pub block_prefix: &'static str,
    /// The weights of one block, in the order of the forward pass.
    pub block_tensors: &'static [TensorSpec<BlockTensor>],
    /// Matrices that a checkpoint stores as one tensor.
    pub fused: &'static [FusedModule],
    /// Which matrices have biases.
    pub biases: &'static [BiasRule],
    pub norm: NormKind,
    pub positions: Positions,
    pub residual: ResidualRule,
    pub mlp: MlpKind,
    /// Members of an attention group in the order of LLM-Pruner, the root first. Index 0: a block
    /// with as many key/value heads as query heads; index 1: with fewer.
    pub attention_order: [&'static [BlockTensor]; 2],
    /// Ends of the names of stored tensors that hold no parameters, besides those that no family
    /// needs (rotary tables): masks.
    pub ignored_suffixes: &'static [&'static str],
}

/// One tensor: its name, the space that it reads and the space that it writes, each with its axis.
#[derive(Clone, Copy, Debug)]
pub struct TensorSpec<Id> {
    pub tensor: Id,
    /// The module's name in the checkpoint, inside the block for a block's tensor. A part of a
    /// fused module has the fused module's name and a suffix.
    pub module: &'static str,
    pub reads: (ChannelSpace, Axis),
    /// None for a scale inside a space, such as a norm: it is pruned with its space and writes no
    /// other one.
    pub writes: Option<(ChannelSpace, Axis)>,
}

/// y = x · Wᵀ reads its columns and writes its rows.
pub(crate) const fn linear<Id: Copy>(
    tensor: Id,
    module: &'static str,
    reads: ChannelSpace,
    writes: ChannelSpace,
) -> TensorSpec<Id> {
    TensorSpec {
        tensor,
        module,
        reads: (reads, Axis::Cols),
        writes: Some((writes, Axis::Rows)),
    }
}

/// A norm's vector, which scales the residual stream.
pub(crate) const fn norm<Id: Copy>(tensor: Id, module: &'static str) -> TensorSpec<Id> {
    TensorSpec {
        tensor,
        module,
        reads: (ChannelSpace::Hidden, Axis::Cols),
        writes: None,
    }
}

/// The embedding: token ids select rows, and a row is a state of the residual stream.
pub(crate) const fn embedding(module: &'static str) -> TensorSpec<TensorId> {
    TensorSpec {
        tensor: TensorId::Embedding,
        module,
        reads: (ChannelSpace::Vocabulary, Axis::Rows),
        writes: Some((ChannelSpace::Hidden, Axis::Cols)),
    }
}

/// Matrices whose rows a checkpoint stores in one tensor, biases likewise.
#[derive(Debug)]
pub struct FusedModule {
    /// The module's name inside the block.
    pub module: &'static str,
    pub parts: &'static [BlockTensor],
    pub rows: FusedRows,
}

/// The order of the rows of a fused tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FusedRows {
    /// Head by head, and for each head the rows of every part.
    HeadsInterleaved,
}

/// The rows of one part in a fused tensor: unit u of the part has the rows
/// `offset + u · stride .. offset + u · stride + length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowSegments {
    pub offset: usize,
    pub stride: usize,
    pub length: usize,
}

impl RowSegments {
    /// The row of the fused tensor that holds the part's row `row`.
    pub(crate) fn fused_row(&self, row: usize) -> usize {
        self.offset + row / self.length * self.stride + row % self.length
    }
}

impl FusedModule {
    /// The rows of a part in the fused tensor. `head_dim`: the width of a head.
    pub fn segments(&self, part_index: usize, head_dim: usize) -> RowSegments {
        match self.rows {
            FusedRows::HeadsInterleaved => RowSegments {
                offset: part_index * head_dim,
                stride: self.parts.len() * head_dim,
                length: head_dim,
            },
        }
    }

    /// The fused tensor has a multiple of this number of rows.
    pub(crate) fn row_unit(&self, head_dim: usize) -> usize {
        match self.rows {
            FusedRows::HeadsInterleaved => self.parts.len() * head_dim,
        }
    }

    /// For each row of the fused tensor the index of its part and its row in that part.
    /// `part_rows`: the number of rows of each part.
    pub(crate) fn row_order(&self, part_rows: &[usize], head_dim: usize) -> Vec<(usize, usize)> {
        let mut order = vec![(0, 0); part_rows.iter().sum()];
        for (part, &rows) in part_rows.iter().enumerate() {
            let segments = self.segments(part, head_dim);
            for row in 0..rows {
                order[segments.fused_row(row)] = (part, row);
            }
        }
        order
    }

    /// The index of a matrix among the parts.
    pub(crate) fn part_index(&self, tensor: BlockTensor) -> Option<usize> {
        self.parts.iter().position(|&part| part == tensor)
    }
}

/// Matrices that have biases together.
#[derive(Clone, Copy, Debug)]
pub struct BiasRule {
    pub tensors: &'static [BlockTensor],
    pub when: BiasCondition,
}

/// When the matrices of a rule have biases.
#[derive(Clone, Copy, Debug)]
pub enum BiasCondition {
    Always,
    /// If this key of `config.json` is true.
    Key {
        key: &'static str,
        default: bool,
    },
}

/// How hidden states are normalised before the attention, the MLP and the output matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// x / √(mean(x²) + ε) ⊙ w
    Rms,
    /// (x − mean(x)) / √(var(x) + ε) ⊙ w + b
    Layer,
}

/// How positions enter the attention.
#[derive(Clone, Copy, Debug)]
pub enum Positions {
    /// Queries and keys are rotated; dimension i is paired with i + d/2, where d is the number of
    /// rotated dimensions of a head.
    RotaryHalves {
        /// Keys of `config.json` that hold the base of the frequencies; an export writes the first.
        base_keys: &'static [&'static str],
        share: RotaryShare,
    },
}

/// The share of a head's dimensions that is rotated.
#[derive(Clone, Copy, Debug)]
pub enum RotaryShare {
    Whole,
    /// The value of the first of these keys that is present; an export writes the first.
    Keys {
        keys: &'static [&'static str],
        default: f64,
    },
}

/// How the attention and the MLP are added to the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// x ← x + attention(norm(x)), then x ← x + mlp(norm(x)).
    Sequential,
    /// x ← x + attention(norm₁(x)) + mlp(norm₂(x)).
    Parallel,
}

/// How a family decides between the residuals.
#[derive(Clone, Copy, Debug)]
pub enum ResidualRule {
    Always(Residual),
    /// Parallel where this key of `config.json` is true.
    ParallelIf {
        key: &'static str,
        default: bool,
    },
}

/// The MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpKind {
    /// down(silu(gate(x)) ⊙ up(x))
    GatedSilu,
    /// down(gelu(up(x))), with the exact, erf-based GELU.
    ExactGelu,
}

/// Keys of `config.json`, some with the default of transformers.
#[derive(Clone, Copy, Debug)]
pub struct ConfigKeys {
    pub hidden: &'static str,
    pub layers: &'static str,
    pub query_heads: &'static str,
    /// None: as many as query heads.
    pub key_value_heads: Option<&'static str>,
    pub mlp_channels: &'static str,
    pub vocab: &'static str,
    pub max_positions: (&'static str, usize),
    pub norm_epsilon: (&'static str, f64),
    /// The key of the MLP's activation, and the one value that the family computes.
    pub activation: (&'static str, &'static str),
    pub sliding_window: Option<SlidingWindowKeys>,
}

/// Keys of a sliding window. A window that is shorter than the model's positions is refused.
#[derive(Clone, Copy, Debug)]
pub struct SlidingWindowKeys {
    pub size: &'static str,
    /// A key that must be true for the window to count.
    pub enabled_by: Option<&'static str>,
}

impl ConfigKeys {
    /// The keys that most families share.
    pub(crate) const COMMON: Self = Self {
        hidden: "hidden_size",
        layers: "num_hidden_layers",
        query_heads: "num_attention_heads",
        key_value_heads: Some("num_key_value_heads"),
        mlp_channels: "intermediate_size",
        vocab: "vocab_size",
        max_positions: ("max_position_embeddings", 2048),
        norm_epsilon: ("rms_norm_eps", 1e-6),
        activation: ("hidden_act", "silu"),
        sliding_window: None,
    };
}

/// A class of transformers.
#[derive(Clone, Copy, Debug)]
pub struct ModelClass {
    /// As `architectures` names it.
    pub architecture: &'static str,
    pub model_type: &'static str,
    /// Whether it refuses a width that is not a multiple of the query heads.
    pub requires_divisible_width: bool,
    /// The biases that it can hold.
    pub biases: &'static [BiasRule],
    /// Keys of this class alone, each with the value at which the class computes the same as the
    /// family. A checkpoint with another value is refused.
    pub constants: &'static [(&'static str, Constant)],
}

/// The value of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Constant {
    Null,
    One,
    /// 1 / √head_dim
    InverseRootOfHeadDim,
}

impl Constant {
    /// The number that the key must have, if it is one.
    pub(crate) fn number(self, head_dim: usize) -> Option<f64> {
        match self {
            Self::Null => None,
            Self::One => Some(1.0),
            Self::InverseRootOfHeadDim => Some((head_dim as f64).powf(-0.5)),
        }
    }
}

/// The widths inside one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockShape {
    /// Query heads.
    pub query_heads: usize,
    /// Key/value heads.
    pub key_value_heads: usize,
    /// Channels of the MLP.
    pub mlp_channels: usize,
}

impl Family {
    /// The logical tensors of a block, in the order of the forward pass.
    pub fn block_tensor_ids(&self) -> impl Iterator<Item = BlockTensor> + Clone + use<> {
        let specs: &'static [TensorSpec<BlockTensor>] = self.block_tensors;
        specs.iter().map(|spec| spec.tensor)
    }

    /// The id of every weight of a model with `layers` blocks, in the order of the forward pass.
    pub(crate) fn tensor_ids(
        &'static self,
        layers: usize,
        tied_embeddings: bool,
    ) -> impl Iterator<Item = TensorId> {
        let block_ids = |layer| {
            self.block_tensor_ids()
                .map(move |tensor| TensorId::Block(layer, tensor))
        };
        let head = (!tied_embeddings).then_some(TensorId::LmHead);
        [TensorId::Embedding]
            .into_iter()
            .chain((0..layers).flat_map(block_ids))
            .chain([TensorId::FinalNorm])
            .chain(head)
    }

    /// The matrices of a block, which LoRA can adapt.
    pub fn matrices(&self) -> impl Iterator<Item = BlockTensor> + Clone + use<> {
        self.block_tensor_ids().filter(|tensor| tensor.is_matrix())
    }

    /// The spec of a block's tensor, if the family has it.
    pub fn spec(&self, tensor: BlockTensor) -> Option<&'static TensorSpec<BlockTensor>> {
        self.block_tensors.iter().find(|spec| spec.tensor == tensor)
    }

    /// The module that stores a matrix together with others, and the matrix's index there.
    pub fn fused_module(&self, tensor: BlockTensor) -> Option<(&'static FusedModule, usize)> {
        self.fused
            .iter()
            .find_map(|module| Some((module, module.part_index(tensor)?)))
    }

    /// The name of a logical tensor's module, unique in the model.
    fn module_name(&self, id: TensorId) -> String {
        match id {
            TensorId::Block(layer, tensor) => {
                let module = self.spec(tensor).map_or("", |spec| spec.module);
                format!("{}{layer}.{module}", self.block_prefix)
            }
            outer => self
                .outer_tensors
                .iter()
                .find(|spec| spec.tensor == outer)
                .map_or("", |spec| spec.module)
                .to_owned(),
        }
    }

    /// The name of a logical tensor, unique in the model. It is the tensor's name in a checkpoint,
    /// except for a part of a fused tensor, whose name no checkpoint has.
    pub fn tensor_name(&self, id: TensorId) -> String {
        format!("{}.weight", self.module_name(id))
    }

    /// The name of the bias of a block's tensor: `tensor_name` for biases.
    pub(crate) fn bias_name(&self, layer: usize, tensor: BlockTensor) -> String {
        format!("{}.bias", self.module_name(TensorId::Block(layer, tensor)))
    }

    /// The name of the final norm's bias.
    pub fn final_norm_bias_name(&self) -> String {
        format!("{}.bias", self.module_name(TensorId::FinalNorm))
    }

    /// The module in which a checkpoint stores a block's tensor.
    pub(crate) fn stored_module(&self, tensor: BlockTensor) -> &'static str {
        match self.fused_module(tensor) {
            Some((fused, _)) => fused.module,
            None => self.spec(tensor).map_or("", |spec| spec.module),
        }
    }

    /// The name under which a checkpoint stores a logical tensor, alone or with others.
    pub fn stored_name(&self, id: TensorId) -> String {
        match id {
            TensorId::Block(layer, tensor) => self.stored_in_block(layer, tensor, "weight"),
            outer => self.tensor_name(outer),
        }
    }

    /// The name under which a checkpoint stores the bias of a block's tensor, alone or with others.
    pub fn stored_bias_name(&self, layer: usize, tensor: BlockTensor) -> String {
        self.stored_in_block(layer, tensor, "bias")
    }

    /// `kind`: `weight` or `bias`.
    fn stored_in_block(&self, layer: usize, tensor: BlockTensor, kind: &str) -> String {
        let module = self.stored_module(tensor);
        format!("{}{layer}.{module}.{kind}", self.block_prefix)
    }

    /// Whether norms have biases.
    pub(crate) fn norms_have_biases(&self) -> bool {
        self.norm == NormKind::Layer
    }

    /// The axis of a tensor along which its bias lies: that of its outputs.
    pub fn bias_axis(&self, tensor: BlockTensor) -> Axis {
        self.spec(tensor)
            .and_then(|spec| spec.writes)
            .map_or(Axis::Cols, |(_, axis)| axis)
    }

    /// (rows, columns) of a block's tensor in a model of these widths; a vector is one row. (0, 0)
    /// if the family does not have the tensor.
    pub(crate) fn tensor_shape(
        &self,
        tensor: BlockTensor,
        hidden: usize,
        head_dim: usize,
        shape: BlockShape,
    ) -> (usize, usize) {
        // K and V have the key/value heads, Q and O the query heads.
        let heads = match tensor {
            BlockTensor::K | BlockTensor::V => shape.key_value_heads,
            _ => shape.query_heads,
        };
        let width = |space| match space {
            ChannelSpace::Hidden => hidden,
            ChannelSpace::Heads => heads * head_dim,
            ChannelSpace::Mlp => shape.mlp_channels,
            ChannelSpace::Vocabulary => 0, // no tensor of a block reads or writes it
        };
        let Some(spec) = self.spec(tensor) else {
            return (0, 0);
        };
        (
            spec.writes.map_or(1, |(space, _)| width(space)),
            width(spec.reads.0),
        )
    }

    /// The first matrix that writes the MLP's channels; others that write them have as many rows.
    pub(crate) fn mlp_writer(&self) -> BlockTensor {
        let writes_mlp = |spec: &&TensorSpec<BlockTensor>| {
            spec.writes
                .is_some_and(|(space, _)| space == ChannelSpace::Mlp)
        };
        self.block_tensors
            .iter()
            .find(writes_mlp)
            .map_or(BlockTensor::Up, |spec| spec.tensor)
    }

    /// A matrix's module name, as PEFT's `target_modules` has it: the last part of the stored name.
    pub(crate) fn peft_module(&self, tensor: BlockTensor) -> &'static str {
        let module = self.stored_module(tensor);
        module.rsplit_once('.').map_or(module, |(_, last)| last)
    }

    /// The classes in which an export can be written, the preferred one first.
    pub(crate) fn export_classes(&self) -> impl Iterator<Item = &'static ModelClass> + use<> {
        self.classes.iter().chain(self.fallback_classes)
    }
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Family {}
