//! The models: a family as a table (`wiring`), checkpoints in and out, the forward pass of a block, and the walk
//! through the blocks, forward and backward.

use std::path::Path;
use std::sync::Arc;

pub mod blocks;
pub mod checkpoint;
pub mod config;
pub mod groups;
pub mod hooks;
pub mod lora;
pub mod plan;
mod save;
pub mod sizes;
pub mod stored;
mod stored_tensor;
pub mod tokenizer;
pub mod walk;
pub mod wiring;

pub use blocks::Block;
pub use checkpoint::{Checkpoint, CheckpointError};
pub use config::Config;
use secateur_tensor::ops::RotaryTables;
use secateur_tensor::{Precision, Weight};
use tokenizer::Tokenizer;
use wiring::{BlockTensor, TensorId};

/// A language model: embedding, blocks, head. A pruned model is a Model; so is a recovered one. Clones share weights.
#[derive(Clone)]
pub struct Model {
    pub config: Config,
    /// (vocabulary, hidden)
    pub embedding: Weight,
    pub blocks: Vec<Block>,
    /// (1, hidden)
    pub final_norm: Weight,
    /// (vocabulary, hidden). None: the embedding is the head.
    pub lm_head: Option<Weight>,
    pub tokenizer: Option<Arc<Tokenizer>>,
}

/// What a model folder says before its weights are read.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelHeader {
    /// Number of blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// Parameters, a tied head counted once.
    pub parameters: u64,
    /// Numbers that a KV cache keeps of a token, all layers together, at most.
    pub kv_values_per_token: u64,
    /// Whether the folder has a `tokenizer.json`.
    pub has_tokenizer: bool,
}

impl ModelHeader {
    /// Reads a folder's config, safetensors headers and tokenizer, and checks them against each other.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(folder)?;
        let tokenizer = Tokenizer::load(folder)?;
        if let Some(tokenizer) = &tokenizer {
            tokenizer.check_fits_vocabulary(checkpoint.config.vocab)?;
        }
        let Config {
            layers,
            hidden,
            vocab,
            max_positions,
            ..
        } = checkpoint.config;
        let keys = checkpoint
            .config
            .declared_widths
            .key_value_heads
            .map_or(hidden, |keys| keys * checkpoint.config.head_dim);
        let heads = checkpoint
            .config
            .declared_widths
            .query_heads
            .unwrap_or(hidden / checkpoint.config.head_dim.max(1));
        let (cached, has_tokenizer) = ((2 * layers * keys) as u64, tokenizer.is_some());
        Ok(Self {
            layers,
            hidden,
            heads,
            vocab,
            max_positions,
            parameters: checkpoint.parameter_count(),
            kv_values_per_token: cached,
            has_tokenizer,
        })
    }
}

impl Model {
    /// Reads a Hugging Face folder.
    ///
    /// # Errors
    /// Whatever is missing, broken or does not fit, by file and tensor.
    pub fn load(folder: &Path) -> Result<Self, CheckpointError> {
        Self::load_with(folder, Checkpoint::read_weight)
    }

    /// Opens a Hugging Face folder whose matrices stay on disk and are read whenever they are used.
    ///
    /// # Errors
    /// As [`Model::load`]; every weight is looked at once.
    pub fn open_streaming(folder: &Path) -> Result<Self, CheckpointError> {
        Self::load_with(folder, |checkpoint, place| match place {
            TensorId::FinalNorm => checkpoint.read_weight(place),
            _ => checkpoint.open_weight(place),
        })
    }

    fn load_with(
        folder: &Path,
        weight: impl Fn(&Checkpoint, TensorId) -> Result<Weight, CheckpointError>,
    ) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(folder)?;
        let tokenizer = Tokenizer::load(folder)?.map(Arc::new);
        if let Some(tokenizer) = &tokenizer {
            tokenizer.check_fits_vocabulary(checkpoint.config.vocab)?;
        }
        let block = |i| {
            let weights = BlockTensor::ALL
                .iter()
                .map(|&part| weight(&checkpoint, TensorId::Block(i, part)))
                .collect::<Result<Vec<_>, _>>()?;
            let mut block = Block::new(
                weights
                    .try_into()
                    .unwrap_or_else(|_| unreachable!("nine parts, nine weights")),
            );
            for part in checkpoint.config.biased_tensors() {
                block.set_bias(part, checkpoint.read_bias(i, part)?);
            }
            Ok::<_, CheckpointError>(block)
        };
        Ok(Self {
            embedding: weight(&checkpoint, TensorId::Embedding)?,
            blocks: (0..checkpoint.config.layers)
                .map(block)
                .collect::<Result<_, _>>()?,
            final_norm: weight(&checkpoint, TensorId::FinalNorm)?,
            lm_head: if checkpoint.config.tied_embeddings {
                None
            } else {
                Some(weight(&checkpoint, TensorId::LmHead)?)
            },
            tokenizer,
            config: checkpoint.config,
        })
    }

    /// The model whose blocks and head a GPU holds in this precision. Norms, and an embedding that is the head, stay in f32.
    pub fn with_gpu_precision(mut self, precision: Precision) -> Self {
        for block in &mut self.blocks {
            for part in BlockTensor::MATRICES {
                block[part] = block[part].clone().with_precision(precision);
            }
        }
        self.lm_head = self.lm_head.map(|head| head.with_precision(precision));
        self
    }

    /// The weight at a place; a tied head is the embedding.
    pub fn weight(&self, place: TensorId) -> &Weight {
        match place {
            TensorId::Embedding => &self.embedding,
            TensorId::Block(layer, part) => &self.blocks[layer][part],
            TensorId::FinalNorm => &self.final_norm,
            TensorId::LmHead => self.lm_head.as_ref().unwrap_or(&self.embedding),
        }
    }

    /// The weight at a place, to be changed.
    pub fn weight_mut(&mut self, place: TensorId) -> &mut Weight {
        match place {
            TensorId::Embedding => &mut self.embedding,
            TensorId::Block(layer, part) => &mut self.blocks[layer][part],
            TensorId::FinalNorm => &mut self.final_norm,
            TensorId::LmHead => self.lm_head.as_mut().unwrap_or(&mut self.embedding),
        }
    }

    /// Every weight's place, a tied head not counted, in the order of the forward pass.
    pub fn tensor_ids(&self) -> Vec<TensorId> {
        let blocks = (0..self.blocks.len())
            .flat_map(|i| BlockTensor::ALL.map(|part| TensorId::Block(i, part)));
        let head = self.lm_head.as_ref().map(|_| TensorId::LmHead);
        [TensorId::Embedding]
            .into_iter()
            .chain(blocks)
            .chain([TensorId::FinalNorm])
            .chain(head)
            .collect()
    }

    /// Parameters, a tied head counted once.
    pub fn parameter_count(&self) -> u64 {
        let biases = self
            .blocks
            .iter()
            .flat_map(Block::biases)
            .map(|(_, bias)| bias);
        self.tensor_ids()
            .into_iter()
            .map(|place| self.weight(place))
            .chain(biases)
            .map(|weight| weight.len() as u64)
            .sum()
    }

    /// The weights that a walk multiplies or adds: all but an embedding that is not the head.
    pub fn weights_used_by_walk(&self) -> impl Iterator<Item = &Weight> {
        let is_walked = |place: &TensorId| *place != TensorId::Embedding || self.lm_head.is_none();
        let biases = self
            .blocks
            .iter()
            .flat_map(Block::biases)
            .map(|(_, bias)| bias);
        self.tensor_ids()
            .into_iter()
            .filter(is_walked)
            .map(|place| self.weight(place))
            .chain(biases)
    }

    /// Whether every weight is a number.
    pub fn is_finite(&self) -> bool {
        let biases = self
            .blocks
            .iter()
            .flat_map(Block::biases)
            .map(|(_, bias)| bias);
        let mut all = self
            .tensor_ids()
            .into_iter()
            .map(|place| self.weight(place))
            .chain(biases);
        all.all(|weight| weight.values().iter().all(|w| w.is_finite()))
    }

    /// The rotary tables for sequences of up to `positions` tokens.
    pub fn rotary_tables(&self, positions: usize) -> RotaryTables {
        RotaryTables::new(
            &self.config.rope.frequencies(self.config.head_dim),
            positions,
        )
    }
}
