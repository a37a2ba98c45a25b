//! Sizes from shapes alone: what a LLaMA of these widths holds and computes, weights or no weights.

use super::Model;
use super::wiring::BlockTensor;

/// The shape of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of an attention head.
    pub head_dim: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Whether the output head is the embedding.
    pub tied_embeddings: bool,
    /// One for each block.
    pub blocks: Vec<BlockShape>,
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

impl ModelShape {
    pub fn from_model(model: &Model) -> Self {
        let config = &model.config;
        let block = |block: &super::Block| {
            let heads = block.attention_heads(config.head_dim);
            BlockShape {
                query_heads: heads.query_heads,
                key_value_heads: heads.key_value_heads,
                mlp_channels: block[BlockTensor::Gate].rows(),
            }
        };
        Self {
            hidden: config.hidden,
            head_dim: config.head_dim,
            vocab: config.vocab,
            tied_embeddings: model.lm_head.is_none(),
            blocks: model.blocks.iter().map(block).collect(),
        }
    }

    /// Elements of one block's seven matrices.
    fn matrix_elements(&self, block: BlockShape) -> u64 {
        let heads = 2 * self.head_dim * (block.query_heads + block.key_value_heads);
        (self.hidden * (heads + 3 * block.mlp_channels)) as u64
    }

    /// Parameters, a tied head counted once.
    pub fn parameter_count(&self) -> u64 {
        let blocks: u64 = self
            .blocks
            .iter()
            .map(|&block| self.matrix_elements(block) + 2 * self.hidden as u64)
            .sum();
        let embeddings = if self.tied_embeddings { 1 } else { 2 };
        (embeddings * self.vocab * self.hidden + self.hidden) as u64 + blocks
    }

    /// Multiply-accumulates of one forward pass over `t` tokens, counted as LLM-Pruner counts them: rotary 2·2·t·heads·dim,
    /// scores heads·(2·t²·dim + t²), the seven matrices, SiLU t·mlp, norms 2·t·hidden, the head. The embedding costs none.
    pub fn macs(&self, t: u64) -> u64 {
        let (hidden, dim) = (self.hidden as u64, self.head_dim as u64);
        let blocks = self.blocks.iter().map(|&block| {
            let (heads, mlp) = (block.query_heads as u64, block.mlp_channels as u64);
            4 * t * heads * dim
                + heads * (2 * t * t * dim + t * t)
                + t * self.matrix_elements(block)
                + t * mlp
                + 2 * 2 * t * hidden
        });
        blocks.sum::<u64>() + 2 * t * hidden + t * hidden * self.vocab as u64
    }
}
