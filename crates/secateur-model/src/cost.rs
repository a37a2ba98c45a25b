//! The cost model: what a model of given widths holds, computes and keeps, from its shape alone.

use crate::family::{BlockShape, Family, MlpKind, Residual};
use crate::wiring::BlockTensor;
use crate::{Block, Config, Model};

/// The shape of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelShape {
    pub family: &'static Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of an attention head.
    pub head_dim: usize,
    /// Dimensions of a head that are rotated.
    pub rotated_dimensions: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Whether the output matrix is the embedding.
    pub tied_embeddings: bool,
    /// One for each block.
    pub blocks: Vec<BlockShape>,
    /// Parameters in biases, all together.
    pub bias_elements: u64,
}

impl ModelShape {
    pub fn from_model(model: &Model) -> Self {
        let config = &model.config;
        Self {
            family: model.family,
            hidden: config.hidden,
            head_dim: config.head_dim,
            rotated_dimensions: config.rope.rotated_dimensions(config.head_dim),
            vocab: config.vocab,
            tied_embeddings: model.lm_head.is_none(),
            blocks: model
                .blocks
                .iter()
                .map(|block| block.shape(config.head_dim))
                .collect(),
            bias_elements: model.biases().map(|bias| bias.len() as u64).sum(),
        }
    }

    /// Elements of one tensor of a block.
    fn elements(&self, tensor: BlockTensor, block: BlockShape) -> u64 {
        let (rows, cols) = self
            .family
            .tensor_shape(tensor, self.hidden, self.head_dim, block);
        (rows * cols) as u64
    }

    /// Elements of one block's matrices.
    fn matrix_elements(&self, block: BlockShape) -> u64 {
        self.family
            .matrices()
            .map(|tensor| self.elements(tensor, block))
            .sum()
    }

    /// Parameters, a tied output matrix counted once.
    pub fn parameter_count(&self) -> u64 {
        let block_elements = |&block: &BlockShape| -> u64 {
            self.family
                .block_tensor_ids()
                .map(|tensor| self.elements(tensor, block))
                .sum()
        };
        let blocks: u64 = self.blocks.iter().map(block_elements).sum();
        let embeddings = if self.tied_embeddings { 1 } else { 2 };
        let final_norm = self.hidden;
        (embeddings * self.vocab * self.hidden + final_norm) as u64 + blocks + self.bias_elements
    }

    /// Multiply-accumulates of one forward pass over `tokens` tokens, counted as LLM-Pruner counts
    /// them, with t tokens: rotary positions 2·2·t·heads·rotated dimensions, attention scores and
    /// their weighted sums heads·(2·t²·head_dim + t²), matrices t·elements, the activation t·channels,
    /// norms 2·t·hidden each. The embedding and biases cost none.
    pub fn macs(&self, tokens: u64) -> u64 {
        let t = tokens;
        let norms_per_block = self
            .family
            .block_tensor_ids()
            .filter(|tensor| !tensor.is_matrix())
            .count() as u64;
        let (hidden, head_dim) = (self.hidden as u64, self.head_dim as u64);
        let norm = 2 * t * hidden;
        let blocks = self.blocks.iter().map(|&block| {
            let (heads, mlp) = (block.query_heads as u64, block.mlp_channels as u64);
            let rotary = 4 * t * heads * self.rotated_dimensions as u64;
            let attention = heads * (2 * t * t * head_dim + t * t);
            rotary + attention + t * self.matrix_elements(block) + t * mlp + norms_per_block * norm
        });
        let output_matrix = t * hidden * self.vocab as u64;
        blocks.sum::<u64>() + norm + output_matrix
    }
}

/// Values that a tape of a block keeps for each position: the inputs of the norms, queries, keys and
/// values, the attention's output and normalisers, and the inputs of the activation. The CPU computes
/// the outputs of norms and activation again from these; a GPU keeps them.
pub(crate) fn tape_values_per_position(
    family: &Family,
    config: &Config,
    block: &Block,
    on_gpu: bool,
) -> usize {
    let (hidden, shape) = (config.hidden, block.shape(config.head_dim));
    let norm_inputs = match config.residual {
        Residual::Sequential => 2 * hidden,
        Residual::Parallel => hidden, // both norms read the same states
    };
    let heads = 2 * (shape.query_heads + shape.key_value_heads) * config.head_dim;
    let activation_inputs = match family.mlp {
        MlpKind::GatedSilu => 2 * shape.mlp_channels,
        MlpKind::ExactGelu => shape.mlp_channels,
    };
    let outputs = if on_gpu {
        2 * hidden + shape.mlp_channels
    } else {
        0
    };
    norm_inputs + heads + shape.query_heads + activation_inputs + outputs
}
