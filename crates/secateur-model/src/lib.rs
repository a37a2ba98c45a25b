//! Language models for structural pruning.
//!
//! A [`Model`] is an embedding, blocks and an output matrix, with a [`Family`] that says which
//! tensors a block has and what it computes. Everything else is derived from the two: reading and
//! writing checkpoints ([`Checkpoint`], [`Model::save`]), dependency groups and pruning (`groups`,
//! `plan`), the walk forward and backward through the blocks (`walk`), LoRA adapters (`lora`),
//! costs (`cost`).
//!
//! ```
//! use secateur_model::family::BlockShape;
//! use secateur_model::random::{RandomModel, random_model};
//! use secateur_model::{families, walk};
//!
//! let (family, _) = families::find("llama").unwrap();
//! let model = random_model(&RandomModel {
//!     family,
//!     hidden: 16,
//!     head_dim: 4,
//!     vocab: 11,
//!     blocks: vec![BlockShape { query_heads: 4, key_value_heads: 2, mlp_channels: 24 }; 2],
//!     tied_embeddings: true,
//!     seed: 1,
//! });
//! let logits = walk::logits(&model, &[3, 1, 4]).unwrap();
//! assert_eq!(logits.shape(), (3, 11)); // (positions, vocabulary)
//! ```

use std::path::Path;
use std::sync::Arc;

pub mod block;
pub mod checkpoint;
pub mod config;
pub mod cost;
pub mod families;
pub mod family;
pub mod groups;
pub mod hooks;
pub mod lora;
mod lora_hooks;
mod parameter;
pub mod plan;
pub mod random;
mod regular_file;
mod save;
pub mod source;
pub mod stored;
mod stored_tensor;
pub mod tokenizer;
pub mod walk;
pub mod wiring;

pub use block::Block;
pub use checkpoint::{Checkpoint, CheckpointError};
pub use config::{BlockWidths, Config};
pub use family::Family;
pub use lora_hooks::{Dropout, TrainedAdapters};
pub use parameter::{Factor, ParameterId};
pub use save::SaveReport;
pub use source::{CarriedFiles, ModelSource};

use secateur_tensor::ops::{GradientRequest, RotaryTables};
use secateur_tensor::{Activations, AnyTape, Precision, Weight, WeightReadError};
use stored::StorageDtype;
use tokenizer::{SpecialTokenFaults, Tokenizer};
use wiring::TensorId;

/// A language model: embedding, blocks, output matrix. A pruned model is a `Model`, and so is a
/// recovered one. Clones share weights.
#[derive(Clone)]
pub struct Model {
    pub family: &'static Family,
    pub config: Config,
    /// (vocabulary, hidden)
    pub embedding: Weight,
    pub blocks: Vec<Block>,
    /// (1, hidden), always in memory, as all biases are.
    pub final_norm: Weight,
    /// (1, hidden), where the family's norms have biases.
    pub final_norm_bias: Option<Weight>,
    /// The output matrix, (vocabulary, hidden). None: it is the embedding.
    pub lm_head: Option<Weight>,
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// What the model keeps of the folder that it was read from.
    pub source: ModelSource,
}

/// What `config.json` and the headers of the safetensors files say of a model, before a weight is
/// read.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelHeader {
    pub family: &'static Family,
    /// Number of blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Width of an attention head.
    pub head_dim: usize,
    /// Widths inside the blocks as `config.json` declares them.
    pub declared_widths: BlockWidths,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// Parameters, a tied output matrix counted once.
    pub parameters: u64,
    /// An upper bound of the values that a KV cache keeps for a token, over all layers.
    pub kv_values_per_token: u64,
    /// The element type of most of the stored weights.
    pub dtype: StorageDtype,
    /// Whether the folder has a `tokenizer.json`.
    pub has_tokenizer: bool,
    /// What to do about a missing `tokenizer.json` where text is read.
    pub missing_tokenizer_help: String,
    /// Where config, checkpoint and folder disagree and the model is read all the same, in one
    /// sentence each.
    pub warnings: Vec<String>,
    /// Special tokens of the tokenizer that the vocabulary lacks.
    pub special_token_faults: SpecialTokenFaults,
}

impl ModelHeader {
    /// Reads a folder's config, safetensors headers and tokenizer, and checks them against each
    /// other.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(folder)?;
        CarriedFiles::find(folder)?;
        let tokenizer = Tokenizer::load(folder)?
            .map(|tokenizer| tokenizer.for_vocabulary(checkpoint.config.vocab));
        let config = &checkpoint.config;
        let (hidden, head_dim) = (config.hidden, config.head_dim);
        let widths = config.declared_widths;
        let key_width = widths
            .key_value_heads
            .map_or(hidden, |heads| heads * head_dim);
        Ok(Self {
            family: checkpoint.family,
            layers: config.layers,
            hidden,
            heads: widths.query_heads.unwrap_or(hidden / head_dim.max(1)),
            head_dim,
            declared_widths: widths,
            vocab: config.vocab,
            max_positions: config.max_positions,
            parameters: checkpoint.parameter_count(),
            kv_values_per_token: (2 * config.layers * key_width) as u64,
            dtype: checkpoint.dtype(),
            has_tokenizer: tokenizer.is_some(),
            missing_tokenizer_help: tokenizer::missing_tokenizer_help(folder),
            warnings: checkpoint.warnings,
            special_token_faults: tokenizer
                .as_ref()
                .map(Tokenizer::special_token_faults)
                .unwrap_or_default(),
        })
    }
}

impl Model {
    /// Reads a Hugging Face folder.
    ///
    /// # Errors
    /// If a file or tensor is missing, broken or does not fit; the error names it.
    pub fn load(folder: &Path) -> Result<Self, CheckpointError> {
        Self::load_with(folder, Checkpoint::read_weight)
    }

    /// Opens a Hugging Face folder whose matrices stay on disk and are read for each walk.
    ///
    /// # Errors
    /// As [`Model::load`]: every weight is read once, to check that it can be read and is finite.
    pub fn open_streaming(folder: &Path) -> Result<Self, CheckpointError> {
        Self::load_with(folder, |checkpoint, id| match id {
            TensorId::FinalNorm => checkpoint.read_weight(id),
            _ => checkpoint.open_weight(id),
        })
    }

    fn load_with(
        folder: &Path,
        load_weight: impl Fn(&Checkpoint, TensorId) -> Result<Weight, CheckpointError>,
    ) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(folder)?;
        let source = ModelSource {
            dtype: checkpoint.dtype(),
            files: Arc::new(CarriedFiles::read(folder)?),
            ..ModelSource::default()
        };
        let tokenizer = Tokenizer::load(folder)?
            .map(|tokenizer| Arc::new(tokenizer.for_vocabulary(checkpoint.config.vocab)));
        let family = checkpoint.family;
        let load_block = |layer| {
            let load = |tensor| {
                let weight = load_weight(&checkpoint, TensorId::Block(layer, tensor))?;
                Ok((tensor, weight))
            };
            let weights = family
                .block_tensor_ids()
                .map(load)
                .collect::<Result<Vec<_>, CheckpointError>>()?;
            let mut block = Block::new(weights);
            for &tensor in &checkpoint.config.declared_biases {
                block.set_bias(tensor, checkpoint.read_bias(layer, tensor)?);
            }
            Ok(block)
        };
        let blocks: Result<Vec<Block>, CheckpointError> =
            (0..checkpoint.config.layers).map(load_block).collect();
        Ok(Self {
            family,
            embedding: load_weight(&checkpoint, TensorId::Embedding)?,
            blocks: blocks?,
            final_norm: load_weight(&checkpoint, TensorId::FinalNorm)?,
            final_norm_bias: checkpoint.read_final_norm_bias()?,
            lm_head: match checkpoint.config.tied_embeddings {
                true => None,
                false => Some(load_weight(&checkpoint, TensorId::LmHead)?),
            },
            tokenizer,
            source,
            config: checkpoint.config,
        })
    }

    /// The model whose blocks and output matrix a GPU holds in this precision. Norms, and an
    /// embedding that is the output matrix, stay in f32.
    pub fn with_gpu_precision(mut self, precision: Precision) -> Self {
        self.blocks = self
            .blocks
            .into_iter()
            .map(|block| block.with_gpu_precision(precision))
            .collect();
        self.lm_head = self.lm_head.map(|head| head.with_precision(precision));
        self
    }

    /// The weight with this id; a tied output matrix is the embedding.
    pub fn weight(&self, id: TensorId) -> &Weight {
        match id {
            TensorId::Embedding => &self.embedding,
            TensorId::Block(layer, tensor) => &self.blocks[layer][tensor],
            TensorId::FinalNorm => &self.final_norm,
            TensorId::LmHead => self.lm_head.as_ref().unwrap_or(&self.embedding),
        }
    }

    /// The weight with this id, to be changed; a tied output matrix is the embedding.
    pub fn weight_mut(&mut self, id: TensorId) -> &mut Weight {
        match id {
            TensorId::Embedding => &mut self.embedding,
            TensorId::Block(layer, tensor) => &mut self.blocks[layer][tensor],
            TensorId::FinalNorm => &mut self.final_norm,
            TensorId::LmHead => self.lm_head.as_mut().unwrap_or(&mut self.embedding),
        }
    }

    /// The id of every weight, without that of a tied output matrix, in the order of the forward
    /// pass.
    pub fn tensor_ids(&self) -> Vec<TensorId> {
        self.family
            .tensor_ids(self.blocks.len(), self.lm_head.is_none())
            .collect()
    }

    /// Every bias: those of the blocks, then that of the final norm.
    pub fn biases(&self) -> impl Iterator<Item = &Weight> {
        let block_biases = |block| Block::biases(block).map(|(_, bias)| bias);
        self.blocks
            .iter()
            .flat_map(block_biases)
            .chain(&self.final_norm_bias)
    }

    /// Parameters, a tied output matrix counted once.
    pub fn parameter_count(&self) -> u64 {
        self.tensor_ids()
            .into_iter()
            .map(|id| self.weight(id))
            .chain(self.biases())
            .map(|weight| weight.len() as u64)
            .sum()
    }

    /// Bytes of the weights in the type in which the loaded checkpoint stores most of them.
    pub fn stored_bytes(&self) -> u64 {
        self.parameter_count() * self.source.dtype.bytes_per_value() as u64
    }

    /// The weights that a walk multiplies or adds: all but an embedding that is not the output
    /// matrix.
    pub fn weights_used_by_walk(&self) -> impl Iterator<Item = &Weight> {
        let is_used = |id: &TensorId| *id != TensorId::Embedding || self.lm_head.is_none();
        self.tensor_ids()
            .into_iter()
            .filter(is_used)
            .map(|id| self.weight(id))
            .chain(self.biases())
    }

    /// Whether every weight is a finite number.
    ///
    /// # Errors
    /// If a weight on disk cannot be read.
    pub fn is_finite(&self) -> Result<bool, WeightReadError> {
        let ids = self.tensor_ids();
        let weights = ids.into_iter().map(|id| self.weight(id));
        for weight in weights.chain(self.biases()) {
            if !weight.read()?.iter().all(|w| w.is_finite()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The final norm of hidden states, which the output matrix reads. x and the result are
    /// (positions, hidden).
    pub(crate) fn normalize_output<T: AnyTape>(
        &self,
        x: Activations<T>,
        request: Option<&GradientRequest>,
    ) -> Activations<T> {
        block::normalize(
            x,
            self.family,
            self.config.norm_epsilon,
            &self.final_norm,
            self.final_norm_bias.as_ref(),
            request,
        )
    }

    /// The rotary tables for sequences of up to `positions` tokens.
    pub fn rotary_tables(&self, positions: usize) -> RotaryTables {
        RotaryTables::new(
            &self.config.rope.frequencies(self.config.head_dim),
            positions,
        )
    }
}
