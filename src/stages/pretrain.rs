//! `pretrain`: text → a small LLaMA trained from scratch, with a tokenizer of its own.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::products::UpdateRow;
use super::{Context, Fault, Input, Interrupted, World, positive_faults, size_faults};
use crate::adam::{Moments, SHORT_MEMORY, clip_factor, cosine_schedule, global_norm};
use crate::data::corpus::{self, CorpusError, CorpusSource, Row as Tokens};
use crate::data::feed::Feed;
use crate::metrics::{MetricsError, Table};
use crate::model::blocks::Slots;
use crate::model::tokenizer::{Tokenizer, TokenizerError};
use crate::model::walk::{self, Pack, Sequence, Visitor};
use crate::model::wiring::{Part, Place};
use crate::model::{Model, ModelHeader};
use crate::ops::{Answer, Ask};
use crate::tensor::Weight;

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
    pub fn source(&self) -> CorpusSource {
        CorpusSource { separator: self.separator.clone(), field: self.field.clone(), ..CorpusSource::whole(self.corpus.as_ref()) }
    }

    /// What the stage reads.
    pub fn inputs(&self, _: Option<&Path>) -> Vec<Input> {
        vec![Input::File((&self.corpus).into())]
    }

    /// Longest sequence that the model is made for.
    fn positions(&self) -> usize {
        self.length.max(512)
    }

    /// Key/value heads and the width of a head, with their defaults.
    fn attention(&self) -> (usize, usize) {
        (self.kv_heads.unwrap_or(self.heads), self.head_dim.unwrap_or(self.hidden / self.heads.max(1)))
    }

    pub fn faults(&self) -> Vec<Fault> {
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
        let (kv_heads, head_dim) = self.attention();
        if kv_heads > 0 && !self.heads.is_multiple_of(kv_heads) {
            faults.push(Fault::new(
                "kv_heads",
                format!("{} query heads cannot share {kv_heads} key/value heads evenly", self.heads),
                "write a divisor of `heads`",
            ));
        }
        if head_dim == 0 || head_dim % 2 == 1 {
            faults.push(Fault::new(
                "head_dim",
                format!("a head of {head_dim} channels cannot be rotated in pairs"),
                "write an even number",
            ));
        }
        if self.vocabulary < 259 {
            faults.push(Fault::new(
                "vocabulary",
                format!("{} entries cannot hold 256 bytes and the special tokens", self.vocabulary),
                "write at least 259",
            ));
        }
        if self.length < 2 {
            faults.push(Fault::new("length", format!("a window of {} tokens predicts nothing", self.length), "write at least 2"));
        }
        if !(self.rope_theta > 1.0 && self.rope_theta.is_finite()) {
            faults.push(Fault::new(
                "rope_theta",
                format!("{} is not a base above 1", self.rope_theta),
                "the usual number is 10000",
            ));
        }
        if !(0.0..1.0).contains(&self.weight_decay) {
            faults.push(Fault::new(
                "weight_decay",
                format!("{} is not a share", self.weight_decay),
                "write a number from 0 to below 1",
            ));
        }
        faults
    }

    pub fn world(&self, world: &mut World) -> Vec<Fault> {
        let (kv_heads, head_dim) = self.attention();
        let block = self.hidden.saturating_mul(2 * head_dim * (self.heads + kv_heads) + 3 * self.mlp + 2);
        world.model = Some(ModelHeader {
            cached: self.blocks.saturating_mul(2 * kv_heads * head_dim) as u64,
            layers: self.blocks,
            hidden: self.hidden,
            heads: self.heads,
            vocab: self.vocabulary,
            max_positions: self.positions(),
            parameters: (self.vocabulary * self.hidden + self.hidden).saturating_add(self.blocks.saturating_mul(block)) as u64,
            has_tokenizer: true,
        });
        // weights, gradients and two moments
        world.holds_weights(4);
        world.walks(self.batch, self.length);
        world.corpus("corpus", &self.source())
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
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("a weight is no number after the last update: training has diverged; lower `learning_rate`, or lengthen `warmup`")]
    Diverged,
    #[error("the loss of update {update} is {loss}: training has diverged; lower `learning_rate`, or lengthen `warmup`")]
    NotFinite { update: usize, loss: f64 },
}

/// Gradients are scaled down to this global norm.
const CLIP: f64 = 1.0;

/// The learning rate ends at this share of its peak.
const FLOOR: f64 = 0.1;

/// Learns a tokenizer and a model from the text.
pub fn run(options: &Options, context: &Context) -> Result<(Model, Vec<Table>), Error> {
    let documents = corpus::documents(&options.source())?;
    let tokenizer = Tokenizer::train(documents.iter().cloned(), options.vocabulary)?;
    let mut rows = Vec::new();
    for document in &documents {
        let ids = tokenizer.encode(document, true)?;
        rows.extend(ids.chunks(options.length).map(|ids| Tokens { ids: ids.to_vec(), counts: vec![true; ids.len()] }));
    }
    let mut model = initial::model(options, tokenizer, context.seed.derive("weights"));
    let tokens: usize = rows.iter().map(|row| row.ids.len()).sum();
    tracing::debug!(tokens, rows = rows.len(), vocabulary = model.config.vocab, "corpus");
    let mut feed = Feed::new(rows, Some((options.length, context.seed.derive("rows"))))
        .ok_or_else(|| CorpusError::NothingToPredict((&options.corpus).into()))?;

    let mut moments: BTreeMap<Place, Moments> =
        model.places().into_iter().map(|place| (place, Moments::new(model.weight(place).len(), SHORT_MEMORY))).collect();
    let mut table: Vec<UpdateRow> = Vec::new();
    if let Some(left) = context.state.read::<(Vec<Weight>, _, _)>() {
        let weights;
        (weights, moments, table) = left;
        model.places().into_iter().zip(weights).for_each(|(place, weight)| *model.weight_mut(place) = weight);
        feed.skip(table.len() * options.batch);
        tracing::info!(updates = table.len(), "training goes on where it was interrupted");
    }
    let bar = context.progress.bar("pretrain", options.updates as u64);
    bar.skip(table.len() as u64);
    for update in table.len()..options.updates {
        let weights = || -> Vec<&Weight> { model.places().into_iter().map(|place| model.weight(place)).collect() };
        context.go_on_or_keep(|| (weights(), &moments, &table))?;
        let batch: Vec<Sequence> =
            (0..options.batch).map(|_| feed.draw()).map(|row| Sequence::new(row.ids, &row.counts)).collect();
        let mut gradients = Gradients { memory: context.budget.bytes, sums: BTreeMap::new() };
        let loss = walk::backward(&model, &batch, 0, &mut gradients);
        let norm = global_norm(gradients.sums.values().map(|g| &g[..]));
        if !loss.mean.is_finite() || !norm.is_finite() {
            return Err(Error::NotFinite { update: update + 1, loss: loss.mean });
        }
        let (clip, rate) =
            (clip_factor(norm, CLIP), options.learning_rate * cosine_schedule(update, options.warmup, options.updates, FLOOR));
        for (place, mut gradient) in gradients.sums {
            gradient.iter_mut().for_each(|g| *g *= clip);
            let decays = matches!(place, Place::Block(_, part) if Part::MATRICES.contains(&part));
            let decay = if decays { options.weight_decay } else { 0.0 };
            if let Some(moments) = moments.get_mut(&place) {
                model.weight_mut(place).update(|w| moments.step(w, &gradient, update + 1, rate, decay));
            }
        }
        table.push(UpdateRow {
            update: update as u32 + 1,
            loss: loss.mean,
            grad_norm: norm,
            lr: rate,
            tokens: loss.targets as u64,
        });
        bar.note(format_args!("loss {:.4}", loss.mean));
        bar.step();
    }
    if !model.is_finite() {
        return Err(Error::Diverged);
    }
    tracing::info!(parameters = model.parameters(), loss = table.last().map(|row| row.loss), "pretrained");
    Ok((model, vec![Table::of("pretrain", &table)?]))
}

/// Adds up the gradient of every weight; a tied head's goes to the embedding.
struct Gradients {
    memory: u64,
    sums: BTreeMap<Place, Vec<f32>>,
}

impl Gradients {
    fn add(&mut self, place: Place, answer: Answer) {
        let Answer::Gradient { gradient, .. } = answer else { return };
        let gradient = gradient.into_vec();
        match self.sums.get_mut(&place) {
            Some(sum) => sum.iter_mut().zip(gradient).for_each(|(s, g)| *s += g),
            None => drop(self.sums.insert(place, gradient)),
        }
    }
}

impl Visitor for Gradients {
    type Lens = Slots;

    fn lens(&self, _: usize, _: &Pack) -> Slots {
        Slots::of(Part::ALL.map(|part| (part, Ask::Gradient)))
    }

    fn block(&mut self, layer: usize, _: &Pack, lens: Slots) {
        lens.answers().for_each(|(part, answer)| self.add(Place::Block(layer, part), answer));
    }

    fn asks(&self, _: Place, _: &Pack) -> Option<Ask> {
        Some(Ask::Gradient)
    }

    fn outside(&mut self, at: Place, _: &Pack, answer: Answer) {
        self.add(if at == Place::Head { Place::Embedding } else { at }, answer);
    }

    fn memory(&self) -> Option<u64> {
        Some(self.memory)
    }
}
