//! `pretrain`: text → a small LLaMA trained from scratch, with a tokenizer of its own.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::products::UpdateRow;
use super::{
    Context, Environment, InputFile, Interrupted, OptionFault, positive_faults, size_faults,
};
use crate::stages::train::adam::{
    AdamMoments, BETA2_PRETRAIN, clip_factor, cosine_schedule, global_norm,
};
use secateur_data::corpus::{self, CorpusError, CorpusSource, TokenRow as Tokens};
use secateur_data::row_sampler::RowSampler;
use secateur_model::blocks::GradientRequests;
use secateur_model::tokenizer::{Tokenizer, TokenizerError};
use secateur_model::walk::{self, GradientVisitor, Pack, Sequence};
use secateur_model::wiring::{BlockTensor, TensorId};
use secateur_model::{Model, ModelHeader};
use secateur_store::tables::{Table, TableError};
use secateur_tensor::Weight;
use secateur_tensor::ops::{GradientQuery, GradientResult};

mod initial;

/// Trains a LLaMA from scratch on text.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Training text: a text file, or JSONL with a text field.
    pub corpus: String,
    /// What separates the documents of a text file. Default: the file is one document.
    pub separator: Option<String>,
    /// The field of a JSONL row that holds its text. Default `text`.
    pub field: Option<String>,
    /// Entries of the byte-level BPE vocabulary that is learned from the corpus, at least 259. Default 512.
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
    /// Base of the rotary frequencies, above 1. Short texts are read better with a small one. Default 10000.
    #[serde(default = "rope_theta")]
    pub rope_theta: f64,
    /// Width of the MLP, 1 to 1048576. Default 344.
    #[serde(default = "mlp")]
    pub mlp: usize,
    /// Longest row in tokens, at least 2: a document is a row, a longer one is cut. Default 128.
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
    /// Updates of linear warm-up, from 0; after it the rate falls along a cosine to a tenth of the peak. Default 100.
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
    10_000.0
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
    /// Where the training text is read from.
    pub fn corpus_source(&self) -> CorpusSource {
        CorpusSource {
            separator: self.separator.clone(),
            field: self.field.clone(),
            ..CorpusSource::from_path(self.corpus.as_ref())
        }
    }

    /// What the stage reads.
    pub fn inputs(&self, _: Option<&Path>) -> Vec<InputFile> {
        vec![InputFile::OnDisk((&self.corpus).into())]
    }

    /// Longest sequence that the model is made for.
    fn max_positions(&self) -> usize {
        self.length.max(512)
    }

    /// Key/value heads and the width of a head, with their defaults.
    fn kv_heads_and_head_dim(&self) -> (usize, usize) {
        (
            self.kv_heads.unwrap_or(self.heads),
            self.head_dim.unwrap_or(self.hidden / self.heads.max(1)),
        )
    }

    pub fn faults(&self) -> Vec<OptionFault> {
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
        if self.vocabulary < 259 {
            faults.push(OptionFault::new(
                "vocabulary",
                format!(
                    "{} entries cannot hold 256 bytes and the special tokens",
                    self.vocabulary
                ),
                "write at least 259",
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
                format!("{} is not a share", self.weight_decay),
                "write a number from 0 to below 1",
            ));
        }
        faults
    }

    pub fn environment_faults(&self, world: &mut Environment) -> Vec<OptionFault> {
        let (kv_heads, head_dim) = self.kv_heads_and_head_dim();
        let block = self
            .hidden
            .saturating_mul(2 * head_dim * (self.heads + kv_heads) + 3 * self.mlp + 2);
        world.model = Some(ModelHeader {
            kv_values_per_token: self.blocks.saturating_mul(2 * kv_heads * head_dim) as u64,
            layers: self.blocks,
            hidden: self.hidden,
            heads: self.heads,
            vocab: self.vocabulary,
            max_positions: self.max_positions(),
            parameters: (self.vocabulary * self.hidden + self.hidden)
                .saturating_add(self.blocks.saturating_mul(block)) as u64,
            has_tokenizer: true,
        });
        // weights, gradients and two moments
        world.add_weights(4);
        world.add_backward_walk(self.batch, self.length);
        world.check_corpus("corpus", &self.corpus_source())
    }
}

/// Training failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Metrics(#[from] TableError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error(
        "a weight is no number after the last update: training has diverged; lower `learning_rate`, or lengthen `warmup`"
    )]
    NonFiniteWeight,
    #[error(
        "the loss of update {update} is {loss}: training has diverged; lower `learning_rate`, or lengthen `warmup`"
    )]
    NonFiniteLoss { update: usize, loss: f64 },
}

/// Gradients are scaled down to this global norm.
const MAX_GRADIENT_NORM: f64 = 1.0;

/// The learning rate ends at this share of its peak.
const FINAL_LEARNING_RATE_SHARE: f64 = 0.1;

/// Learns a tokenizer and a model from the text.
pub fn run(options: &Options, context: &Context) -> Result<(Model, Vec<Table>), Error> {
    let documents = corpus::read_text_documents(&options.corpus_source())?;
    let tokenizer = Tokenizer::train(documents.iter().cloned(), options.vocabulary)?;
    let mut rows = Vec::new();
    for document in &documents {
        let ids = tokenizer.encode(document, true)?;
        rows.extend(ids.chunks(options.length).map(|ids| Tokens {
            ids: ids.to_vec(),
            loss_mask: vec![true; ids.len()],
        }));
    }
    let mut model = initial::initial_model(options, tokenizer, context.seed.derive("weights"));
    let tokens: usize = rows.iter().map(|row| row.ids.len()).sum();
    tracing::debug!(
        tokens,
        rows = rows.len(),
        vocabulary = model.config.vocab,
        "corpus"
    );
    let mut feed = RowSampler::new(rows, Some((options.length, context.seed.derive("rows"))))
        .ok_or_else(|| CorpusError::NothingToPredict((&options.corpus).into()))?;

    let mut moments: BTreeMap<TensorId, AdamMoments> = model
        .tensor_ids()
        .into_iter()
        .map(|place| {
            (
                place,
                AdamMoments::new(model.weight(place).len(), BETA2_PRETRAIN),
            )
        })
        .collect();
    let mut table: Vec<UpdateRow> = Vec::new();
    if let Some(left) = context.checkpoint.read::<(Vec<Weight>, _, _)>() {
        let weights;
        (weights, moments, table) = left;
        model
            .tensor_ids()
            .into_iter()
            .zip(weights)
            .for_each(|(place, weight)| *model.weight_mut(place) = weight);
        feed.skip(table.len() * options.batch);
        tracing::info!(
            updates = table.len(),
            "training goes on where it was interrupted"
        );
    }
    let bar = context.progress.bar("pretrain", options.updates as u64);
    bar.skip(table.len() as u64);
    for update in table.len()..options.updates {
        let weights = || -> Vec<&Weight> {
            model
                .tensor_ids()
                .into_iter()
                .map(|place| model.weight(place))
                .collect()
        };
        context.checkpoint_or_stop(|| (weights(), &moments, &table))?;
        let batch: Vec<Sequence> = (0..options.batch)
            .map(|_| feed.next_row())
            .map(|row| Sequence::new(row.ids, &row.loss_mask))
            .collect();
        let mut gradients = WeightGradientSums {
            memory_bytes: context.memory_budget.bytes,
            sums: BTreeMap::new(),
        };
        let loss = walk::backward(&model, &batch, 0, &mut gradients);
        let norm = global_norm(gradients.sums.values().map(|g| &g[..]));
        if !loss.mean.is_finite() || !norm.is_finite() {
            return Err(Error::NonFiniteLoss {
                update: update + 1,
                loss: loss.mean,
            });
        }
        let (clip, rate) = (
            clip_factor(norm, MAX_GRADIENT_NORM),
            options.learning_rate
                * cosine_schedule(
                    update,
                    options.warmup,
                    options.updates,
                    FINAL_LEARNING_RATE_SHARE,
                ),
        );
        for (place, mut gradient) in gradients.sums {
            gradient.iter_mut().for_each(|g| *g *= clip);
            let decays =
                matches!(place, TensorId::Block(_, part) if BlockTensor::MATRICES.contains(&part));
            let decay = if decays { options.weight_decay } else { 0.0 };
            if let Some(moments) = moments.get_mut(&place) {
                model
                    .weight_mut(place)
                    .update(|w| moments.step(w, &gradient, update + 1, rate, decay));
            }
        }
        table.push(UpdateRow {
            update: update as u32 + 1,
            loss: loss.mean,
            grad_norm: norm,
            lr: rate,
            tokens: loss.target_count as u64,
        });
        bar.set_note(format_args!("loss {:.4}", loss.mean));
        bar.step();
    }
    if !model.is_finite() {
        return Err(Error::NonFiniteWeight);
    }
    tracing::info!(
        parameters = model.parameter_count(),
        loss = table.last().map(|row| row.loss),
        "pretrained"
    );
    Ok((model, vec![Table::from_rows("pretrain", &table)?]))
}

/// Adds up the gradient of every weight; a tied head's goes to the embedding.
struct WeightGradientSums {
    memory_bytes: u64,
    sums: BTreeMap<TensorId, Vec<f32>>,
}

impl WeightGradientSums {
    fn add_result(&mut self, place: TensorId, answer: GradientResult) {
        let GradientResult::Gradient { gradient, .. } = answer else {
            return;
        };
        let gradient = gradient.into_vec();
        match self.sums.get_mut(&place) {
            Some(sum) => sum.iter_mut().zip(gradient).for_each(|(s, g)| *s += g),
            None => drop(self.sums.insert(place, gradient)),
        }
    }
}

impl GradientVisitor for WeightGradientSums {
    type Hooks = GradientRequests;

    fn hooks(&self, _: usize, _: &Pack) -> GradientRequests {
        GradientRequests::from_queries(BlockTensor::ALL.map(|part| (part, GradientQuery::Gradient)))
    }

    fn visit_block(&mut self, layer: usize, _: &Pack, lens: GradientRequests) {
        lens.into_results()
            .for_each(|(part, answer)| self.add_result(TensorId::Block(layer, part), answer));
    }

    fn query(&self, _: TensorId, _: &Pack) -> Option<GradientQuery> {
        Some(GradientQuery::Gradient)
    }

    fn visit_outer_tensor(&mut self, at: TensorId, _: &Pack, answer: GradientResult) {
        self.add_result(
            if at == TensorId::LmHead {
                TensorId::Embedding
            } else {
                at
            },
            answer,
        );
    }

    fn memory_limit(&self) -> Option<u64> {
        Some(self.memory_bytes)
    }
}
