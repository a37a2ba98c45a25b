//! Sizes from shapes alone: what a LLaMA of these widths holds and computes, weights or no weights.

use super::Model;
use super::wiring::Part;

/// The shape of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of an attention head.
    pub head_dim: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// One for each block.
    pub blocks: Vec<BlockShape>,
}

/// The widths inside one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockShape {
    /// Query heads.
    pub queries: usize,
    /// Key/value heads.
    pub keys: usize,
    /// Channels of the MLP.
    pub mlp: usize,
}

impl Shape {
    pub fn of(model: &Model) -> Self {
        let config = &model.config;
        let block = |block: &super::Block| {
            let heads = block.heads(config.head_dim);
            BlockShape { queries: heads.queries, keys: heads.keys, mlp: block[Part::Gate].rows() }
        };
        Self {
            hidden: config.hidden,
            head_dim: config.head_dim,
            vocab: config.vocab,
            tied: model.head.is_none(),
            blocks: model.blocks.iter().map(block).collect(),
        }
    }

    /// Elements of one block's seven matrices.
    fn matrices(&self, block: BlockShape) -> u64 {
        let heads = 2 * self.head_dim * (block.queries + block.keys);
        (self.hidden * (heads + 3 * block.mlp)) as u64
    }

    /// Parameters, a tied head counted once.
    pub fn parameters(&self) -> u64 {
        let blocks: u64 = self.blocks.iter().map(|&block| self.matrices(block) + 2 * self.hidden as u64).sum();
        let embeddings = if self.tied { 1 } else { 2 };
        (embeddings * self.vocab * self.hidden + self.hidden) as u64 + blocks
    }

    /// Multiply-accumulates of one forward pass over `t` tokens, counted as LLM-Pruner counts them: rotary 2·2·t·heads·dim,
    /// scores heads·(2·t²·dim + t²), the seven matrices, SiLU t·mlp, norms 2·t·hidden, the head. The embedding costs none.
    pub fn macs(&self, t: u64) -> u64 {
        let (hidden, dim) = (self.hidden as u64, self.head_dim as u64);
        let blocks = self.blocks.iter().map(|&block| {
            let (heads, mlp) = (block.queries as u64, block.mlp as u64);
            4 * t * heads * dim + heads * (2 * t * t * dim + t * t) + t * self.matrices(block) + t * mlp + 2 * 2 * t * hidden
        });
        blocks.sum::<u64>() + 2 * t * hidden + t * hidden * self.vocab as u64
    }
}
