//! `recover`: Model and text → LoRA adapters (Hu et al. 2021; LLM-Pruner, equation 6), merged into the Model that follows.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Environment, InputFile, Interrupted, OptionFault, positive_faults, size_faults,
};
use secateur_data::corpus::{self, CorpusError, CorpusSource, Sample};
use secateur_data::row_sampler::RowSampler;
use secateur_model::Model;
use secateur_model::lora::{Adapter, AdapterError};
use secateur_model::walk::Sequence;
use secateur_model::wiring::BlockTensor;
use secateur_store::tables::{Table, TableError};

mod training;
pub use training::AdapterTraining;

/// Trains low-rank adapters on the pruned model.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Training data: a text file, JSONL with a text field, or JSONL rows of token ids (with `labels` for a loss mask).
    pub corpus: String,
    /// What separates the documents of a text file. Default: the file is one document.
    pub separator: Option<String>,
    /// The field of a JSONL row that holds its text. Default `text`.
    pub field: Option<String>,
    /// `random`: documents in an order shuffled anew for every pass, each cut to a random window of `length` tokens;
    /// `file`: rows whole, in file order. Default `random`.
    #[serde(default)]
    pub sample: Sample,
    /// Tokens of a window, at least 2; shorter documents are taken whole. Default 64.
    #[serde(default = "sixty_four")]
    pub length: usize,
    /// Rank of the adapters, 1 to 1048576. Default 8.
    #[serde(default = "eight")]
    pub rank: usize,
    /// The adapters' output is scaled by alpha / rank; above 0. Default 16.
    #[serde(default = "sixteen")]
    pub alpha: f64,
    /// Share of an adapter's inputs that is dropped in training, 0 to below 1. Default 0.05.
    #[serde(default = "five_percent")]
    pub dropout: f64,
    /// Which matrices of every block get an adapter. Default: all seven.
    #[serde(default = "all_targets")]
    pub targets: Vec<Target>,
    /// Peak learning rate, above 0. Default 1e-4.
    #[serde(default = "learning_rate")]
    pub learning_rate: f64,
    /// Updates of linear warm-up, from 0; after it the rate falls linearly to 0. Default 0.
    #[serde(default)]
    pub warmup: usize,
    /// Rows per update, 1 to 1048576. Default 64.
    #[serde(default = "sixty_four")]
    pub batch: usize,
    /// Rows whose activations are held at once, at least 1: an update accumulates over batch / micro_batch of them. Default:
    /// batch.
    pub micro_batch: Option<usize>,
    /// How long, required: `{ updates = 60 }` or `{ epochs = 2 }`.
    pub duration: Duration,
    /// Gradients are scaled down to this global norm, above 0. Default 1.
    #[serde(default = "one")]
    pub clip: f64,
    /// Adapters to start from: float32 safetensors in PEFT's layout, of this rank and these targets. Default: A drawn uniformly (Kaiming, a = √5), B zero.
    pub init: Option<String>,
}

fn sixty_four() -> usize {
    64
}
fn eight() -> usize {
    8
}
fn sixteen() -> f64 {
    16.0
}
fn five_percent() -> f64 {
    0.05
}
fn learning_rate() -> f64 {
    1e-4
}
fn one() -> f64 {
    1.0
}
fn all_targets() -> Vec<Target> {
    use Target::*;
    vec![Q, K, V, O, Gate, Up, Down]
}

/// A matrix of a block.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

/// How long training lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Duration {
    /// Steps of the optimiser, 1 to 1048576.
    Updates(usize),
    /// Passes over the corpus, 1 to 1048576.
    Epochs(usize),
}

impl Options {
    /// Where the training data is read from.
    pub fn corpus_source(&self) -> CorpusSource {
        CorpusSource {
            separator: self.separator.clone(),
            field: self.field.clone(),
            ..CorpusSource::from_path(self.corpus.as_ref())
        }
    }

    /// What the stage reads.
    pub fn inputs(&self, _: Option<&Path>) -> Vec<InputFile> {
        [&self.corpus]
            .into_iter()
            .chain(&self.init)
            .map(|path| InputFile::OnDisk(path.into()))
            .collect()
    }

    pub fn faults(&self) -> Vec<OptionFault> {
        let duration = match self.duration {
            Duration::Updates(updates) => ("duration.updates", updates),
            Duration::Epochs(epochs) => ("duration.epochs", epochs),
        };
        let mut faults = size_faults([
            ("rank", self.rank),
            ("length", self.length),
            ("batch", self.batch),
            ("micro_batch", self.micro_batch.unwrap_or(1)),
            duration,
        ]);
        faults.extend(positive_faults([
            ("alpha", self.alpha),
            ("learning_rate", self.learning_rate),
            ("clip", self.clip),
        ]));
        if !(0.0..1.0).contains(&self.dropout) {
            faults.push(OptionFault::new(
                "dropout",
                format!("a dropout of {} is not a share", self.dropout),
                "write a number from 0 to below 1",
            ));
        }
        if self.targets.is_empty() {
            faults.push(OptionFault::new(
                "targets",
                "without a target nothing is trained",
                "name at least one of q, k, v, o, gate, up, down",
            ));
        }
        if self.length < 2 {
            faults.push(OptionFault::new(
                "length",
                format!("a window of {} tokens predicts nothing", self.length),
                "write at least 2",
            ));
        }
        faults
    }

    pub fn environment_faults(&self, world: &mut Environment) -> Vec<OptionFault> {
        world.add_weights(2);
        world.add_backward_walk(self.micro_batch.unwrap_or(self.batch), self.length);
        let mut faults = world.check_corpus("corpus", &self.corpus_source());
        faults.extend(world.check_length("length", "window", self.length));
        if let Some(hidden) = world
            .model
            .as_ref()
            .map(|model| model.hidden)
            .filter(|hidden| self.rank > *hidden)
        {
            let message = format!(
                "a rank of {} is more than the model's width of {hidden}",
                self.rank
            );
            faults.push(OptionFault::new(
                "rank",
                message,
                "the usual numbers are 8 to 64",
            ));
        }
        if let Some(init) = &self.init
            && let Err(message) = world.check_readable(init.as_ref())
        {
            faults.push(OptionFault::new("init", message, ""));
        }
        faults
    }
}

/// Recovery failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(transparent)]
    Metrics(#[from] TableError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("cannot write the adapter: {0}")]
    WriteAdapter(String),
    #[error(
        "the loss of update {update} is {loss}: training has diverged; lower `learning_rate`, or lengthen `warmup`"
    )]
    NonFiniteLoss { update: usize, loss: f64 },
    #[error(
        "a weight is no number after the last update: training has diverged; lower `learning_rate`, or lengthen `warmup`"
    )]
    NonFiniteWeight,
    #[error(
        "the adapter is still zero after update {update} with a learning rate of {rate}: it would change nothing"
    )]
    AdapterStillZero { update: usize, rate: f64 },
}

/// Trains adapters, saves them as `adapter/` (`adapter-2/` the second time) in PEFT's layout, and hands on the model with them merged.
pub fn run(
    options: &Options,
    context: &Context,
    model: &Model,
) -> Result<(Model, Adapter, Vec<Table>), Error> {
    let targets: Vec<BlockTensor> = options
        .targets
        .iter()
        .map(|&target| target.into())
        .collect();
    let adapter = match &options.init {
        Some(path) => Adapter::load(path.as_ref(), model, &targets, options.rank, options.alpha)?,
        None => Adapter::new(
            model,
            &targets,
            options.rank,
            options.alpha,
            context.seed.derive("adapter"),
        ),
    };
    let rows = corpus::read_rows(
        &options.corpus_source(),
        model.tokenizer.as_deref(),
        model.config.vocab,
    )?;
    if options.sample == Sample::File {
        corpus::check_row_lengths(&options.corpus_source(), &rows, model.config.max_positions)?;
    }
    let random =
        (options.sample == Sample::Random).then(|| (options.length, context.seed.derive("rows")));
    let mut feed = RowSampler::new(rows, random)
        .ok_or_else(|| CorpusError::NothingToPredict((&options.corpus).into()))?;
    let updates = match options.duration {
        Duration::Updates(updates) => updates,
        Duration::Epochs(epochs) => feed
            .rows_per_pass()
            .saturating_mul(epochs)
            .div_ceil(options.batch),
    };
    let mut training = match context.checkpoint.read::<AdapterTraining>() {
        Some(left) => {
            feed.skip(left.completed_updates() * options.batch);
            tracing::info!(
                updates = left.completed_updates(),
                "recovery goes on where it was interrupted"
            );
            left
        }
        None => AdapterTraining::new(adapter),
    };
    let bar = context.progress.bar("recover", updates as u64);
    bar.skip(training.completed_updates() as u64);
    while training.completed_updates() < updates {
        context.checkpoint_or_stop(|| &training)?;
        let batch: Vec<Sequence> = (0..options.batch)
            .map(|_| feed.next_row())
            .map(|row| Sequence::new(row.ids, &row.loss_mask))
            .collect();
        let loss = training.run_update(options, context, model, &batch, updates)?;
        bar.set_note(format_args!("loss {loss:.4}"));
        bar.step();
    }
    let (adapter, table) = training.into_adapter_and_rows();
    let merged = adapter.merge_into(model);
    if !merged.is_finite() {
        return Err(Error::NonFiniteWeight);
    }
    save_adapter(&adapter, &context.output_path("adapter", ""))?;
    tracing::info!(
        updates,
        first = table.first().map(|r| r.loss),
        last = table.last().map(|r| r.loss),
        "recovered"
    );
    Ok((merged, adapter, vec![Table::from_rows("recover", &table)?]))
}

/// `adapter_model.safetensors` and `adapter_config.json`, as PEFT names them.
fn save_adapter(adapter: &Adapter, folder: &Path) -> Result<(), Error> {
    let failed =
        |e: &dyn std::fmt::Display| Error::WriteAdapter(format!("`{}`: {e}", folder.display()));
    std::fs::create_dir_all(folder).map_err(|e| failed(&e))?;
    adapter
        .save(&folder.join("adapter_model.safetensors"))
        .map_err(|e| failed(&e))?;
    let config = serde_json::to_string_pretty(&adapter.peft_config()).map_err(|e| failed(&e))?;
    std::fs::write(folder.join("adapter_config.json"), config).map_err(|e| failed(&e))
}

impl From<Target> for BlockTensor {
    fn from(target: Target) -> Self {
        match target {
            Target::Q => BlockTensor::Q,
            Target::K => BlockTensor::K,
            Target::V => BlockTensor::V,
            Target::O => BlockTensor::O,
            Target::Gate => BlockTensor::Gate,
            Target::Up => BlockTensor::Up,
            Target::Down => BlockTensor::Down,
        }
    }
}
