//! The models: a family as a table (`wiring`), checkpoints in and out, the forward pass of a block, and the walk
//! through the blocks, forward and backward.

use std::path::Path;
use std::sync::Arc;

pub mod blocks;
pub mod checkpoint;
pub mod config;
pub mod groups;
pub mod lora;
pub mod plan;
mod save;
pub mod sizes;
pub mod stored;
mod stored_tensor;
pub mod tokenizer;
pub mod walk;
pub mod wiring;

use crate::ops::Rotary;
use crate::tensor::{Precision, Weight};
pub use blocks::Block;
pub use checkpoint::{Checkpoint, CheckpointError};
pub use config::Config;
use tokenizer::Tokenizer;
use wiring::{Part, Place};

/// A language model: embedding, blocks, head. A pruned model is a Model; so is a recovered one. Clones share weights.
#[derive(Clone)]
pub struct Model {
    pub config: Config,
    /// (vocabulary, hidden)
    pub embedding: Weight,
    pub blocks: Vec<Block>,
    /// (1, hidden)
    pub norm: Weight,
    /// (vocabulary, hidden). None: the embedding is the head.
    pub head: Option<Weight>,
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
    pub cached: u64,
    /// Whether the folder has a `tokenizer.json`.
    pub has_tokenizer: bool,
}

impl ModelHeader {
    /// Reads a folder's config, safetensors headers and tokenizer, and checks them against each other.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(folder)?;
        let tokenizer = Tokenizer::load(folder)?;
        if let Some(tokenizer) = &tokenizer {
            tokenizer.fits(checkpoint.config.vocab)?;
        }
        let Config { layers, hidden, vocab, max_positions, .. } = checkpoint.config;
        let keys = checkpoint.config.widths.keys.map_or(hidden, |keys| keys * checkpoint.config.head_dim);
        let heads = checkpoint.config.widths.queries.unwrap_or(hidden / checkpoint.config.head_dim.max(1));
        let (cached, has_tokenizer) = ((2 * layers * keys) as u64, tokenizer.is_some());
        Ok(Self { layers, hidden, heads, vocab, max_positions, parameters: checkpoint.parameters(), cached, has_tokenizer })
    }
}

impl Model {
    /// Reads a Hugging Face folder.
    ///
    /// # Errors
    /// Whatever is missing, broken or does not fit, by file and tensor.
    pub fn load(folder: &Path) -> Result<Self, CheckpointError> {
        Self::read(folder, Checkpoint::weight)
    }

    /// Opens a Hugging Face folder whose matrices stay on disk and are read whenever they are used.
    ///
    /// # Errors
    /// As [`Model::load`]; every weight is looked at once.
    pub fn stream(folder: &Path) -> Result<Self, CheckpointError> {
        Self::read(folder, |checkpoint, place| match place {
            Place::FinalNorm => checkpoint.weight(place),
            _ => checkpoint.weight_on_disk(place),
        })
    }

    fn read(
        folder: &Path,
        weight: impl Fn(&Checkpoint, Place) -> Result<Weight, CheckpointError>,
    ) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(folder)?;
        let tokenizer = Tokenizer::load(folder)?.map(Arc::new);
        if let Some(tokenizer) = &tokenizer {
            tokenizer.fits(checkpoint.config.vocab)?;
        }
        let block = |i| {
            let weights =
                Part::ALL.iter().map(|&part| weight(&checkpoint, Place::Block(i, part))).collect::<Result<Vec<_>, _>>()?;
            let mut block = Block::new(weights.try_into().unwrap_or_else(|_| unreachable!("nine parts, nine weights")));
            for part in checkpoint.config.biased() {
                block.set_bias(part, checkpoint.bias(i, part)?);
            }
            Ok::<_, CheckpointError>(block)
        };
        Ok(Self {
            embedding: weight(&checkpoint, Place::Embedding)?,
            blocks: (0..checkpoint.config.layers).map(block).collect::<Result<_, _>>()?,
            norm: weight(&checkpoint, Place::FinalNorm)?,
            head: if checkpoint.config.tied { None } else { Some(weight(&checkpoint, Place::Head)?) },
            tokenizer,
            config: checkpoint.config,
        })
    }

    /// The model whose blocks and head a GPU holds in this precision. Norms, and an embedding that is the head, stay in f32.
    pub fn held_in(mut self, precision: Precision) -> Self {
        for block in &mut self.blocks {
            for part in Part::MATRICES {
                block[part] = block[part].clone().held_in(precision);
            }
        }
        self.head = self.head.map(|head| head.held_in(precision));
        self
    }

    /// The weight at a place; a tied head is the embedding.
    pub fn weight(&self, place: Place) -> &Weight {
        match place {
            Place::Embedding => &self.embedding,
            Place::Block(layer, part) => &self.blocks[layer][part],
            Place::FinalNorm => &self.norm,
            Place::Head => self.head.as_ref().unwrap_or(&self.embedding),
        }
    }

    /// The weight at a place, to be changed.
    pub fn weight_mut(&mut self, place: Place) -> &mut Weight {
        match place {
            Place::Embedding => &mut self.embedding,
            Place::Block(layer, part) => &mut self.blocks[layer][part],
            Place::FinalNorm => &mut self.norm,
            Place::Head => self.head.as_mut().unwrap_or(&mut self.embedding),
        }
    }

    /// Every weight's place, a tied head not counted, in the order of the forward pass.
    pub fn places(&self) -> Vec<Place> {
        let blocks = (0..self.blocks.len()).flat_map(|i| Part::ALL.map(|part| Place::Block(i, part)));
        let head = self.head.as_ref().map(|_| Place::Head);
        [Place::Embedding].into_iter().chain(blocks).chain([Place::FinalNorm]).chain(head).collect()
    }

    /// Parameters, a tied head counted once.
    pub fn parameters(&self) -> u64 {
        let biases = self.blocks.iter().flat_map(Block::biases).map(|(_, bias)| bias);
        self.places().into_iter().map(|place| self.weight(place)).chain(biases).map(|weight| weight.len() as u64).sum()
    }

    /// The weights that a walk multiplies or adds: all but an embedding that is not the head.
    pub fn walked(&self) -> impl Iterator<Item = &Weight> {
        let is_walked = |place: &Place| *place != Place::Embedding || self.head.is_none();
        let biases = self.blocks.iter().flat_map(Block::biases).map(|(_, bias)| bias);
        self.places().into_iter().filter(is_walked).map(|place| self.weight(place)).chain(biases)
    }

    /// Whether every weight is a number.
    pub fn is_finite(&self) -> bool {
        let biases = self.blocks.iter().flat_map(Block::biases).map(|(_, bias)| bias);
        let mut all = self.places().into_iter().map(|place| self.weight(place)).chain(biases);
        all.all(|weight| weight.values().iter().all(|w| w.is_finite()))
    }

    /// The rotary tables for sequences of up to `positions` tokens.
    pub fn rotary(&self, positions: usize) -> Rotary {
        Rotary::new(&self.config.rope.frequencies(self.config.head_dim), positions)
    }
}
