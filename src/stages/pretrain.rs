//! `pretrain`: text → a small model of the default family and its tokenizer, both trained from
//! scratch.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::environment::{Environment, OptionFault, positive_faults, size_faults};
use super::error::{RestoreError, StageError};
use super::stage::{Stage, StageOutput, StageType, describe_options};
use super::values::{MODEL, StageValues, ValueKind};
use super::{Context, InputFile, MemoryBudget};
use crate::stages::train::{Decay, Divergence, LearningRateSchedule};
use secateur_data::corpus::{self, CorpusError, CorpusSource, TokenRow};
use secateur_data::row_sampler::RowSampler;
use secateur_model::config::DEFAULT_ROPE_THETA;
use secateur_model::stored::StorageDtype;
use secateur_model::tokenizer::{SpecialTokenFaults, Tokenizer, TokenizerError};
use secateur_model::{BlockWidths, Model, ModelHeader, families};
use secateur_store::cache::{MODEL_FOLDER, ProductDraft, StoredProduct};
use secateur_store::tables::Table;

mod initial;
mod training;
use training::ModelTraining;

pub static TYPE: StageType = StageType {
    makes: &[ValueKind::Model, ValueKind::Dense],
    spends: &[
        ValueKind::Graph,
        ValueKind::Scores,
        ValueKind::GroupScores,
        ValueKind::Plan,
        ValueKind::Adapter,
    ],
    uses_seed: true,
    summary: |options| describe_options(options, &["updates"]),
    ..StageType::new::<Options>("pretrain")
};

/// The smallest vocabulary: one token for each byte, and the two special tokens.
const MIN_VOCABULARY: usize = 256 + 2;

/// The model has at least this many positions, also if its training rows are shorter.
const MIN_POSITIONS: usize = 512;

/// The learning rate ends at this share of its peak.
const FINAL_LEARNING_RATE_SHARE: f64 = 0.1;

/// Trains a LLaMA from scratch on text.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Training text: a text file, or rows (JSON Lines, JSON, CSV, Parquet, also compressed with
    /// gzip or Zstandard) with a text.
    pub corpus: String,
    /// The text between two documents of a text file. Default: the file is one document.
    pub separator: Option<String>,
    /// The field of a row that holds its text. Default `text`.
    pub field: Option<String>,
    /// Entries of the byte-level BPE vocabulary that is learned from the corpus, at least 259.
    /// Default 512.
    #[serde(default = "vocabulary")]
    pub vocabulary: usize,
    /// Width of the residual stream, 1 to 1048576. Default 128.
    #[serde(default = "hidden")]
    pub hidden: usize,
    /// Number of blocks, 1 to 1048576. Default 6.
    #[serde(default = "blocks")]
    pub blocks: usize,
    /// Query heads, 1 to 1048576. Default 8.
    #[serde(default = "heads")]
    pub heads: usize,
    /// Key/value heads; divides `heads`. Default: as many as query heads.
    pub kv_heads: Option<usize>,
    /// Width of a head, even. Default: hidden / heads.
    pub head_dim: Option<usize>,
    /// Base of the rotary frequencies, above 1. A smaller one suits short texts. Default 10000.
    #[serde(default = "rope_theta")]
    pub rope_theta: f64,
    /// Width of the MLP, 1 to 1048576. Default 344.
    #[serde(default = "mlp")]
    pub mlp: usize,
    /// Longest row in tokens, at least 2. A document is a row; a longer one is cut into several.
    /// Default 128.
    #[serde(default = "length")]
    pub length: usize,
    /// Rows per update, 1 to 1048576. Default 32.
    #[serde(default = "batch")]
    pub batch: usize,
    /// Steps of the optimiser, 1 to 1048576. Default 1000.
    #[serde(default = "updates")]
    pub updates: usize,
    /// Peak learning rate, above 0. Default 2e-3.
    #[serde(default = "learning_rate")]
    pub learning_rate: f64,
    /// Updates of linear warm-up, at least 0; after them the learning rate falls along a cosine to
    /// a tenth of the peak. Default 100.
    #[serde(default = "warmup")]
    pub warmup: usize,
    /// Decoupled weight decay of the matrices, 0 to below 1. Default 0.1.
    #[serde(default = "weight_decay")]
    pub weight_decay: f64,
}

fn vocabulary() -> usize {
    512
}
fn hidden() -> usize {
    128
}
fn blocks() -> usize {
    6
}
fn heads() -> usize {
    8
}
fn rope_theta() -> f64 {
    DEFAULT_ROPE_THETA
}
fn mlp() -> usize {
    344
}
fn length() -> usize {
    128
}
fn batch() -> usize {
    32
}
fn updates() -> usize {
    1000
}
fn learning_rate() -> f64 {
    2e-3
}
fn warmup() -> usize {
    100
}
fn weight_decay() -> f64 {
    0.1
}

impl Options {
    fn schedule(&self) -> LearningRateSchedule {
        LearningRateSchedule {
            peak: self.learning_rate,
            warmup: self.warmup,
            updates: self.updates,
            decay: Decay::Cosine {
                final_share: FINAL_LEARNING_RATE_SHARE,
            },
        }
    }

    /// Where the training text is read from.
    pub fn corpus_source(&self) -> CorpusSource {
        CorpusSource {
            separator: self.separator.clone(),
            field: self.field.clone(),
            ..CorpusSource::from_path(self.corpus.as_ref())
        }
    }

    /// Longest sequence that the model is made for, in tokens.
    fn max_positions(&self) -> usize {
        self.length.max(MIN_POSITIONS)
    }

    /// Key/value heads and the width of a head, with their defaults.
    fn kv_heads_and_head_dim(&self) -> (usize, usize) {
        (
            self.kv_heads.unwrap_or(self.heads),
            self.head_dim.unwrap_or(self.hidden / self.heads.max(1)),
        )
    }
}

impl Stage for Options {
    fn stage_type(&self) -> &'static StageType {
        &TYPE
    }

    fn input_files(&self, _: Option<&Path>) -> Vec<InputFile> {
        vec![InputFile::OnDisk((&self.corpus).into())]
    }

    fn option_faults(&self) -> Vec<OptionFault> {
        let mut faults = size_faults([
            ("vocabulary", self.vocabulary),
            ("hidden", self.hidden),
            ("blocks", self.blocks),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads.unwrap_or(1)),
            ("head_dim", self.head_dim.unwrap_or(1)),
            ("mlp", self.mlp),
            ("length", self.length),
            ("batch", self.batch),
            ("updates", self.updates),
        ]);
        faults.extend(positive_faults([("learning_rate", self.learning_rate)]));
        let (kv_heads, head_dim) = self.kv_heads_and_head_dim();
        if kv_heads > 0 && !self.heads.is_multiple_of(kv_heads) {
            faults.push(OptionFault::new(
                "kv_heads",
                format!(
                    "{} query heads cannot share {kv_heads} key/value heads evenly",
                    self.heads
                ),
                "write a divisor of `heads`",
            ));
        }
        if head_dim == 0 || head_dim % 2 == 1 {
            faults.push(OptionFault::new(
                "head_dim",
                format!("a head of {head_dim} channels cannot be rotated in pairs"),
                "write an even number",
            ));
        }
        if self.vocabulary < MIN_VOCABULARY {
            faults.push(OptionFault::new(
                "vocabulary",
                format!(
                    "{} entries cannot hold the 256 bytes and the two special tokens",
                    self.vocabulary
                ),
                format!("write at least {MIN_VOCABULARY}"),
            ));
        }
        if self.length < 2 {
            faults.push(OptionFault::new(
                "length",
                format!("a window of {} tokens predicts nothing", self.length),
                "write at least 2",
            ));
        }
        if !(self.rope_theta > 1.0 && self.rope_theta.is_finite()) {
            faults.push(OptionFault::new(
                "rope_theta",
                format!("{} is not a base above 1", self.rope_theta),
                "the usual number is 10000",
            ));
        }
        if !(0.0..1.0).contains(&self.weight_decay) {
            faults.push(OptionFault::new(
                "weight_decay",
                format!("{} is not a share from 0 to below 1", self.weight_decay),
                "write a number from 0 to below 1",
            ));
        }
        if self.updates > 0 {
            faults.extend(self.schedule().warmup_fault());
        }
        faults
    }

    fn environment_faults(&self, environment: &mut Environment) -> Vec<OptionFault> {
        let (kv_heads, head_dim) = self.kv_heads_and_head_dim();
        // Parameters of a block: Q and O, K and V, the three matrices of the MLP, two norms.
        let block = self
            .hidden
            .saturating_mul(2 * head_dim * (self.heads + kv_heads) + 3 * self.mlp + 2);
        environment.model = Some(ModelHeader {
            family: families::default_family(),
            kv_values_per_token: self.blocks.saturating_mul(2 * kv_heads * head_dim) as u64,
            layers: self.blocks,
            hidden: self.hidden,
            heads: self.heads,
            head_dim,
            declared_widths: BlockWidths {
                query_heads: Some(self.heads),
                key_value_heads: Some(kv_heads),
                mlp_channels: Some(self.mlp),
            },
            vocab: self.vocabulary,
            max_positions: self.max_positions(),
            parameters: (self.vocabulary * self.hidden + self.hidden)
                .saturating_add(self.blocks.saturating_mul(block)) as u64,
            dtype: StorageDtype::Float32,
            has_tokenizer: true,
            missing_tokenizer_help: String::new(),
            warnings: Vec::new(),
            special_token_faults: SpecialTokenFaults::default(),
        });
        // weights, gradients and two moments
        environment.add_weights(4);
        environment.add_backward_walk(self.batch, self.length);
        environment.check_corpus("corpus", &self.corpus_source())
    }

    fn run(&self, context: &Context, _: &StageValues) -> Result<StageOutput, StageError> {
        let (model, tables) = run(self, context)?;
        Ok(StageOutput {
            values: StageValues::from_dense_model(model),
            tables,
        })
    }

    fn store(&self, values: &StageValues, draft: &ProductDraft) -> Result<(), StageError> {
        let model = values.require(MODEL)?;
        let folder = draft.path().join(MODEL_FOLDER);
        model
            .save(&folder, StorageDtype::Float32)
            .map(drop)
            .map_err(StageError::store)
    }

    /// Opens the stored model.
    fn restore_model(
        &self,
        product: &StoredProduct,
        _: &StageValues,
        memory_budget: MemoryBudget,
    ) -> Result<StageValues, RestoreError> {
        let folder = product
            .verified_folder(MODEL_FOLDER)
            .map_err(RestoreError::Damaged)?;
        let model = memory_budget.open_model(&folder)?;
        Ok(StageValues::from_dense_model(model))
    }
}

/// Learns a tokenizer and a model from the text.
pub fn run(options: &Options, context: &Context) -> Result<(Model, Vec<Table>), StageError> {
    let documents = corpus::read_text_documents(&options.corpus_source())?;
    let tokenizer = Tokenizer::train(
        documents.iter().cloned(),
        options.vocabulary,
        options.max_positions(),
    )?;
    let rows = token_rows(&tokenizer, &documents, options.length)?;
    let tokens: usize = rows.iter().map(|row| row.ids.len()).sum();
    let row_count = rows.len();
    let model = initial::initial_model(options, tokenizer, context.seed.derive("weights"));
    let vocabulary = model.config.vocab;
    tracing::debug!(tokens, rows = row_count, vocabulary, "corpus");
    let mut sampler = RowSampler::new(rows, Some((options.length, context.seed.derive("rows"))))
        .ok_or_else(|| CorpusError::NothingToPredict((&options.corpus).into()))?;

    let trainer = ModelTraining::trainer(options, context, model);
    let (training, update_rows) = trainer.run(&mut sampler, context)?;
    let model = training.into_model();
    if !model.is_finite()? {
        return Err(Divergence::NonFiniteWeight.into());
    }
    let parameters = model.parameter_count();
    let loss = update_rows.last().map(|row| row.loss);
    tracing::info!(parameters, loss, "pretrained");
    Ok((model, vec![Table::from_rows("pretrain", &update_rows)?]))
}

/// The training rows: each document's tokens, cut into pieces of at most `length`. Every prediction
/// counts in the loss.
fn token_rows(
    tokenizer: &Tokenizer,
    documents: &[String],
    length: usize,
) -> Result<Vec<TokenRow>, TokenizerError> {
    let mut rows = Vec::new();
    for document in documents {
        let ids = tokenizer.encode(document, true)?;
        rows.extend(ids.chunks(length).map(|ids| TokenRow {
            ids: ids.to_vec(),
            loss_mask: vec![true; ids.len()],
        }));
    }
    Ok(rows)
}
