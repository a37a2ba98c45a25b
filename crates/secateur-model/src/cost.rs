//! The cost model: parameters, multiply-accumulates and memory, from the family and the widths
//! alone. The check's estimates, the walk's decision to keep tapes, `prune` and `profile` use these
//! functions.

use crate::family::{BlockShape, Family, MlpKind, Residual};
use crate::wiring::BlockTensor;
use crate::{Block, Config, Model, ModelHeader};
use secateur_tensor::ops::{CPU_LOGIT_TILE_ELEMENTS, GPU_LOGIT_TILE_ELEMENTS, QUERY_CHUNK_ROWS};
use secateur_tensor::{PACK_TOKENS, Precision};

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
        let vocab_matrices = if self.tied_embeddings { 1 } else { 2 };
        let final_norm = self.hidden;
        let outer_elements = vocab_matrices * self.vocab * self.hidden + final_norm;
        outer_elements as u64 + blocks + self.bias_elements
    }

    /// Multiply-accumulates of one forward pass over `tokens` tokens, counted as LLM-Pruner counts
    /// them, with t tokens: rotary positions 2·2·t·heads·rotated dimensions, attention scores and
    /// their weighted sums heads·(2·t²·head_dim + t²), matrices t·elements, the activation
    /// t·channels, norms 2·t·hidden each. The embedding and biases cost none.
    pub fn macs(&self, tokens: u64) -> u64 {
        let t = tokens;
        let norms_per_block = self
            .family
            .block_tensor_ids()
            .filter(|tensor| !tensor.is_matrix())
            .count() as u64;
        let (hidden, head_dim) = (self.hidden as u64, self.head_dim as u64);
        let norm = 2 * t * hidden;
        let block_macs = self.blocks.iter().map(|&block| {
            let (heads, mlp) = (block.query_heads as u64, block.mlp_channels as u64);
            let rotary = 4 * t * heads * self.rotated_dimensions as u64;
            let attention = heads * (2 * t * t * head_dim + t * t);
            rotary + attention + t * self.matrix_elements(block) + t * mlp + norms_per_block * norm
        });
        let output_matrix = t * hidden * self.vocab as u64;
        block_macs.sum::<u64>() + norm + output_matrix
    }
}

/// Values that a tape of a block keeps for each position: the inputs of the norms, queries, keys
/// and values, the attention's output and normalisers, and the inputs of the activation. The CPU
/// computes the outputs of norms and activation again from these; a GPU keeps them.
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
    // queries and the attention's output, keys and values
    let attention = 2 * (shape.query_heads + shape.key_value_heads) * config.head_dim;
    let attention_normalisers = shape.query_heads;
    let activation_inputs = match family.mlp {
        MlpKind::GatedSilu => 2 * shape.mlp_channels,
        MlpKind::ExactGelu => shape.mlp_channels,
    };
    let norm_and_activation_outputs = if on_gpu {
        2 * hidden + shape.mlp_channels
    } else {
        0
    };
    norm_inputs
        + attention
        + attention_normalisers
        + activation_inputs
        + norm_and_activation_outputs
}

/// Tokens of the forward pass whose multiply-accumulates a table reports, as in LLM-Pruner.
pub const MACS_TOKENS: u64 = 64;

pub(crate) const F32_BYTES: u64 = size_of::<f32>() as u64;

/// Score matrices, (query heads, query chunk, positions) each, that the attention on a GPU holds at
/// once in its backward pass.
const GPU_SCORE_MATRICES: f64 = 6.0;

/// Values of the tiles of logits that the loss of `positions` positions holds at once: the logits
/// and their gradients on the CPU, and the intermediate results of dfdx's operations on a GPU.
pub(crate) fn logit_tile_values(positions: f64, vocab: f64, on_gpu: bool) -> f64 {
    let logits = positions * vocab;
    match on_gpu {
        true => 6.0 * logits.min(GPU_LOGIT_TILE_ELEMENTS as f64),
        false => 2.0 * logits.min(CPU_LOGIT_TILE_ELEMENTS as f64),
    }
}

/// Values of the score matrices of a GPU's attention, for the sequences of one pack.
pub(crate) fn gpu_score_values(heads: usize, lengths: impl Iterator<Item = usize>) -> f64 {
    let chunk_scores = |length: usize| length.min(QUERY_CHUNK_ROWS) as f64 * length as f64;
    GPU_SCORE_MATRICES * heads as f64 * lengths.map(chunk_scores).sum::<f64>()
}

/// Bytes of all weights in f32.
pub fn weight_bytes(model: &ModelHeader) -> u64 {
    F32_BYTES * model.parameters
}

/// Bytes of the weights of a streamed model that are in memory at once: two blocks, one of which is
/// read ahead, and the output matrix.
pub fn streamed_weight_bytes(model: &ModelHeader) -> u64 {
    let output_matrix = (model.vocab * model.hidden) as u64;
    let two_blocks = 2 * model.parameters / model.layers.max(1) as u64;
    F32_BYTES * (two_blocks + output_matrix)
}

/// Bytes of the keys and values of `sequences` sequences of `tokens` tokens.
pub fn kv_cache_bytes(model: &ModelHeader, sequences: usize, tokens: usize) -> u64 {
    let bytes_per_token = F32_BYTES * model.kv_values_per_token;
    (sequences as u64)
        .saturating_mul(tokens as u64)
        .saturating_mul(bytes_per_token)
}

/// The memory of a walk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkBytes {
    /// On the CPU, the weights not counted.
    pub cpu: u64,
    /// On a GPU, with all weights there.
    pub gpu: u64,
    /// On a GPU, with two blocks and the output matrix there.
    pub min_gpu: u64,
}

/// An estimate, before any weight is read, of the memory of a walk over `sequences` sequences of
/// `length` tokens that keeps `kept_states` hidden states of every token. With more than one it is
/// a backward walk.
pub fn walk_bytes(
    model: &ModelHeader,
    sequences: usize,
    length: usize,
    kept_states: usize,
    gpu_precision: Precision,
) -> WalkBytes {
    let pack_tokens = sequences
        .saturating_mul(length)
        .min(PACK_TOKENS)
        .max(length) as f64;
    let [sequences, kept_states] = [sequences, kept_states].map(|n| n as f64);
    let [hidden, layers, vocab] =
        [model.hidden, model.layers.max(1), model.vocab].map(|n| n as f64);
    let parameters = model.parameters as f64;
    let kept_values = sequences * length as f64 * hidden * kept_states;

    // On the CPU: two blocks, one of which is read ahead; activations and gradients of one pack in
    // a block, about 24 values per channel; a tile of logits.
    let cpu_working_values = 2.0 * parameters / layers
        + pack_tokens * hidden * 24.0
        + logit_tile_values(pack_tokens, vocab, false);

    // On a GPU all weights but the embedding are multiplied, in the precision of the model.
    let embedding = vocab * hidden;
    let multiplied = parameters - embedding;
    let is_backward = kept_states > 1.0;
    // the gradients of a block's matrices, and what is computed from them
    let weight_gradients = match is_backward {
        true => 1.5 * multiplied / layers,
        false => 0.0,
    };
    let query_chunk = length.min(QUERY_CHUNK_ROWS) as f64;
    let scores = GPU_SCORE_MATRICES * pack_tokens * query_chunk * model.heads as f64;
    // activations and gradients of one pack in a block: about 36 values per channel
    let block_values = pack_tokens * hidden * 36.0 + scores + weight_gradients;
    // a tile of logits, with the output matrix in f32
    let head_values = logit_tile_values(pack_tokens, vocab, true) + embedding;
    let f32_bytes = F32_BYTES as f64;
    // a block and the head are computed one after the other, so only the larger counts
    let gpu_working_bytes = f32_bytes * (kept_values + block_values.max(head_values));
    let bytes_per_weight = gpu_precision.bytes() as f64;
    let two_blocks_and_head = embedding + 2.0 * multiplied / layers;
    // `as u64` saturates: an estimate that is too large becomes u64::MAX
    WalkBytes {
        cpu: (f32_bytes * (kept_values + cpu_working_values)) as u64,
        gpu: (bytes_per_weight * multiplied + gpu_working_bytes) as u64,
        min_gpu: (bytes_per_weight * two_blocks_and_head + gpu_working_bytes) as u64,
    }
}
