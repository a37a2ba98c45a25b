//! `recover`: model and text → LoRA adapters (Hu et al. 2021; LLM-Pruner, equation 6), merged into
//! the model.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::environment::{Environment, OptionFault, UnusedOption, positive_faults, size_faults};
use super::error::{RestoreError, StageError};
use super::facts::EarlierStages;
use super::stage::{Stage, StageOutput, StageType, describe_options};
use super::stored;
use super::values::{ADAPTER, MODEL, StageValues, ValueKind};
use super::{Context, InputFile, MemoryBudget};
use crate::stages::train::{Decay, Divergence, LearningRateSchedule};
use secateur_data::corpus::{self, CorpusError, CorpusSource, Sample};
use secateur_data::row_sampler::RowSampler;
use secateur_model::family::Family;
use secateur_model::lora::Adapter;
use secateur_model::wiring::BlockTensor;
use secateur_model::{Model, ModelSource};
use secateur_store::cache::{ProductDraft, StoredProduct};
use secateur_store::tables::Table;

mod training;
pub use training::AdapterTraining;

pub static TYPE: StageType = StageType {
    needs: &[ValueKind::Model],
    makes: &[ValueKind::Model, ValueKind::Adapter],
    spends: &[ValueKind::Scores, ValueKind::GroupScores],
    uses_seed: true,
    summary: |options| describe_options(options, &["rank", "duration"]),
    ..StageType::new::<Options>("recover")
};

/// Trains low-rank adapters on the pruned model.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Training data: a text file, or rows (JSON Lines, JSON, CSV, Parquet, also compressed with
    /// gzip or Zstandard) with a text, or with token ids (with
    /// `labels` for a loss mask).
    pub corpus: String,
    /// The text between two documents of a text file. Default: the file is one document.
    pub separator: Option<String>,
    /// The field of a row that holds its text. Default `text`.
    pub field: Option<String>,
    /// `random`: documents in an order that is shuffled for every pass, each cut to a random window
    /// of `length` tokens; `file`: whole rows in file order. Default `random`.
    #[serde(default)]
    pub sample: Sample,
    /// Tokens of a window, at least 2; a shorter document is one window. Default 64.
    #[serde(default = "sixty_four")]
    pub length: usize,
    /// Rank of the adapters, 1 to 1048576. Default 8.
    #[serde(default = "eight")]
    pub rank: usize,
    /// The adapters' output is scaled by alpha / rank; above 0. Default 16.
    #[serde(default = "sixteen")]
    pub alpha: f64,
    /// Share of an adapter's inputs that dropout sets to zero in training, 0 to below 1. Default
    /// 0.05.
    #[serde(default = "five_percent")]
    pub dropout: f64,
    /// Which matrices of every block get an adapter. Default: all that the model's family has.
    #[serde(default = "all_targets")]
    pub targets: Vec<Target>,
    /// Peak learning rate, above 0. Default 1e-4.
    #[serde(default = "learning_rate")]
    pub learning_rate: f64,
    /// Updates of linear warm-up, at least 0; after them the learning rate falls linearly to 0.
    /// Default 0.
    #[serde(default)]
    pub warmup: usize,
    /// Rows per update, 1 to 1048576. Default 64.
    #[serde(default = "sixty_four")]
    pub batch: usize,
    /// Rows that are computed at once, 1 to 1048576: an update accumulates gradients over batch /
    /// micro_batch of them. Default: batch.
    pub micro_batch: Option<usize>,
    /// Length of the training, required: `{ updates = 60 }` or `{ epochs = 2 }`.
    pub duration: Duration,
    /// Largest global norm of the gradients, which are scaled down to it; above 0. Default 1.
    #[serde(default = "one")]
    pub clip: f64,
    /// Adapters to start from: float32 safetensors in PEFT's layout, of this rank and these
    /// targets. Default: A is drawn uniformly (Kaiming, a = √5), B is zero.
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
    /// The learning rate of a training of this many updates.
    fn schedule(&self, updates: usize) -> LearningRateSchedule {
        LearningRateSchedule {
            peak: self.learning_rate,
            warmup: self.warmup,
            updates,
            decay: Decay::Linear,
        }
    }

    /// Where the training data is read from.
    pub fn corpus_source(&self) -> CorpusSource {
        CorpusSource {
            separator: self.separator.clone(),
            field: self.field.clone(),
            ..CorpusSource::from_path(self.corpus.as_ref())
        }
    }
}

impl Stage for Options {
    fn stage_type(&self) -> &'static StageType {
        &TYPE
    }

    fn input_files(&self, _: Option<&Path>) -> Vec<InputFile> {
        let mut files = vec![InputFile::OnDisk((&self.corpus).into())];
        files.extend(self.init.iter().map(|path| InputFile::OnDisk(path.into())));
        files
    }

    fn option_faults(&self) -> Vec<OptionFault> {
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
                format!("{} is not a share from 0 to below 1", self.dropout),
                "write a number from 0 to below 1",
            ));
        }
        if self.targets.is_empty() {
            faults.push(OptionFault::new(
                "targets",
                "there is no target to train",
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
        // The updates of epochs are known when the corpus has been read.
        if let Duration::Updates(updates @ 1..) = self.duration {
            faults.extend(self.schedule(updates).warmup_fault());
        }
        faults
    }

    fn unused_options(&self, _: &EarlierStages) -> Vec<UnusedOption> {
        let mut unused = Vec::new();
        if self.sample == Sample::File {
            let reason = "`sample = \"file\"` takes every row whole";
            unused.push(UnusedOption::new("length", reason));
        }
        if self.micro_batch.is_some_and(|rows| rows >= self.batch) {
            let reason = "it is not smaller than `batch`";
            unused.push(UnusedOption::new("micro_batch", reason));
        }
        unused
    }

    fn environment_faults(&self, environment: &mut Environment) -> Vec<OptionFault> {
        environment.add_weights(2);
        environment.add_backward_walk(self.micro_batch.unwrap_or(self.batch), self.length);
        let mut faults = environment.check_corpus("corpus", &self.corpus_source());
        faults.extend(environment.check_length("length", "window", self.length));
        if let Some(model) = &environment.model
            && let Err(missing) = self.matrices(model.family)
        {
            faults.push(OptionFault::new("targets", missing.to_string(), ""));
        }
        if let Some(hidden) = environment
            .model
            .as_ref()
            .map(|model| model.hidden)
            .filter(|hidden| self.rank > *hidden)
        {
            let message = format!(
                "a rank of {} is more than the model's width of {hidden}",
                self.rank
            );
            faults.push(OptionFault::new("rank", message, "usual ranks are 8 to 64"));
        }
        if let Some(init) = &self.init
            && let Err(message) = environment.check_readable(init.as_ref())
        {
            faults.push(OptionFault::new("init", message, ""));
        }
        faults
    }

    fn run(&self, context: &Context, inputs: &StageValues) -> Result<StageOutput, StageError> {
        let (model, adapter, tables) = run(self, context, inputs.require(MODEL)?)?;
        let values = StageValues::default()
            .with(MODEL, model)
            .with(ADAPTER, adapter);
        Ok(StageOutput { values, tables })
    }

    fn store(&self, values: &StageValues, draft: &ProductDraft) -> Result<(), StageError> {
        stored::write_value(draft, values.require(ADAPTER)?)
    }

    fn restore(&self, product: &StoredProduct) -> Result<StageValues, RestoreError> {
        Ok(StageValues::default().with(ADAPTER, stored::read_value(product)?))
    }

    fn restore_model_inputs(&self) -> &'static [ValueKind] {
        &[ValueKind::Model]
    }

    /// Merges the stored adapter into the model again.
    fn restore_model(
        &self,
        product: &StoredProduct,
        inputs: &StageValues,
        _: MemoryBudget,
    ) -> Result<StageValues, RestoreError> {
        let adapter: Adapter = stored::read_value(product)?;
        let model = adapter.merge_into(inputs.require(MODEL)?);
        Ok(StageValues::default().with(MODEL, model))
    }
}

impl Options {
    /// The matrices that get an adapter. All seven targets, the default, mean all matrices of the
    /// family, even if it has fewer. Fewer targets must all be matrices of the family.
    fn matrices(&self, family: &Family) -> Result<Vec<BlockTensor>, MissingTarget> {
        let names_all = all_targets()
            .iter()
            .all(|target| self.targets.contains(target));
        if names_all {
            return Ok(family.matrices().collect());
        }
        let find_matrix = |&target: &Target| {
            let tensor = BlockTensor::from(target);
            let missing = || MissingTarget {
                target: tensor.role(),
                present: family
                    .matrices()
                    .map(BlockTensor::role)
                    .collect::<Vec<_>>()
                    .join(", "),
            };
            family.spec(tensor).map(|_| tensor).ok_or_else(missing)
        };
        self.targets.iter().map(find_matrix).collect()
    }
}

/// A target that the model's family does not have.
#[derive(Debug, thiserror::Error)]
#[error("the model has no matrix `{target}`; it has {present}")]
pub struct MissingTarget {
    target: &'static str,
    present: String,
}

/// Recovery failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    MissingTarget(#[from] MissingTarget),
    #[error("{0}; write a smaller `warmup`, or a longer training")]
    NoLearningRate(String),
    #[error("cannot write the adapter: {0}")]
    WriteAdapter(String),
    #[error(
        "the adapter is still zero after update {update} with a learning rate of {rate}: it would \
         change nothing"
    )]
    AdapterStillZero { update: usize, rate: f64 },
}

/// Trains adapters, saves them in PEFT's layout as `adapter/` (`adapter-2/` for the second
/// `recover` of a variant), and returns the model with the adapters merged into its weights.
pub fn run(
    options: &Options,
    context: &Context,
    model: &Model,
) -> Result<(Model, Adapter, Vec<Table>), StageError> {
    let targets = options.matrices(model.family).map_err(Error::from)?;
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
    // random windows of this length, drawn with this seed; None: whole rows in file order
    let random_windows =
        (options.sample == Sample::Random).then(|| (options.length, context.seed.derive("rows")));
    let mut sampler = RowSampler::new(rows, random_windows)
        .ok_or_else(|| CorpusError::NothingToPredict((&options.corpus).into()))?;
    let updates = match options.duration {
        Duration::Updates(updates) => updates,
        Duration::Epochs(epochs) => sampler
            .rows_per_pass()
            .saturating_mul(epochs)
            .div_ceil(options.batch),
    };
    // The check knows the updates unless they are counted in epochs.
    let is_unchecked = matches!(options.duration, Duration::Epochs(_));
    if let Some(fault) = options
        .schedule(updates)
        .warmup_fault()
        .filter(|_| is_unchecked)
    {
        if !fault.is_warning {
            return Err(Error::NoLearningRate(fault.message).into());
        }
        tracing::warn!("{}", fault.message);
    }
    let trainer = AdapterTraining::trainer(options, context, model, adapter, updates);
    let (training, update_rows) = trainer.run(&mut sampler, context)?;
    let adapter = training.into_adapter();
    let merged = adapter.merge_into(model);
    if !merged.is_finite()? {
        return Err(Divergence::NonFiniteWeight.into());
    }
    let folder = context.output_path("adapter", "");
    save_adapter(&adapter, &model.source, options.dropout, &folder)?;
    tracing::info!(
        loss = update_rows.last().map(|row| row.loss),
        first_loss = update_rows.first().map(|row| row.loss),
        updates,
        "recovered"
    );
    let table = Table::from_rows("recover", &update_rows)?;
    Ok((merged, adapter, vec![table]))
}

/// `adapter_model.safetensors` and `adapter_config.json`, as PEFT names them, and a README that says
/// which model the adapter belongs to.
fn save_adapter(
    adapter: &Adapter,
    base: &ModelSource,
    dropout: f64,
    folder: &Path,
) -> Result<(), Error> {
    let write_error = |error: &dyn std::fmt::Display| {
        Error::WriteAdapter(format!("`{}`: {error}", folder.display()))
    };
    std::fs::create_dir_all(folder).map_err(|error| write_error(&error))?;
    adapter
        .save(&folder.join("adapter_model.safetensors"))
        .map_err(|error| write_error(&error))?;
    let config = adapter.peft_config(base.name.as_deref(), dropout);
    let config = serde_json::to_string_pretty(&config).map_err(|error| write_error(&error))?;
    for (name, text) in [
        ("adapter_config.json", config),
        ("README.md", adapter_readme(base)),
    ] {
        std::fs::write(folder.join(name), text).map_err(|error| write_error(&error))?;
    }
    Ok(())
}

/// Which model an adapter belongs to. A pruned model has no folder of its own before recovery, so
/// the config names the folder that was pruned.
fn adapter_readme(base: &ModelSource) -> String {
    let trained_on = match (&base.name, base.is_pruned) {
        (Some(name), false) => format!("It was trained on the model in `{name}`."),
        (Some(name), true) => format!(
            "It was trained on the model in `{name}` after pruning, and has the shapes of the \
             pruned model: it does not fit the model in that folder as it is. The pruned model is \
             that folder with the units that `plan.json` keeps (`export` with \
             `formats = [\"plan\"]`)."
        ),
        (None, _) => "It was trained on a model that this pipeline made.".to_owned(),
    };
    format!(
        "A LoRA adapter in PEFT's layout, written by `recover`. {trained_on}\n\nAn `export` after \
         `recover` writes a model into which the adapter is merged already; it needs no adapter.\n"
    )
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
