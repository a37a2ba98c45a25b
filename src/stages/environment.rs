//! What the environment pass of the check reads besides the pipeline file (files, headers, tasks),
//! the estimate of resources, and the faults by which a stage reports a mistake in an option.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::context::MemoryBudget;
use data::CorpusCheck;
use secateur_data::corpus::CorpusSource;
use secateur_data::data_file::open_regular_file;
use secateur_data::task::{FewShot, FileLocation, Task};
use secateur_model::groups::GroupKind;
use secateur_model::{CheckpointError, ModelHeader, cost};
use secateur_tensor::Precision;

mod data;

/// A mistake in one option, or a warning about it. It names the option, and the pipeline adds where
/// that option is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionFault {
    /// The option, dotted where it is nested: `ratio`, `duration.updates`. Empty: the stage as a
    /// whole.
    pub key: String,
    /// What is wrong, in one sentence.
    pub message: String,
    /// What to write instead. May be empty.
    pub help: String,
    /// The place of the mistake, if it is in a file that the option names.
    pub location: Option<Box<FileLocation>>,
    /// Whether the pipeline runs all the same.
    pub is_warning: bool,
}

impl OptionFault {
    /// A mistake: the pipeline cannot run.
    pub fn new(
        key: impl Into<String>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            key: key.into(),
            message: message.into(),
            help: help.into(),
            location: None,
            is_warning: false,
        }
    }

    /// A warning: the pipeline runs, but the option has probably not the intended effect.
    pub fn warning(
        key: impl Into<String>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            is_warning: true,
            ..Self::new(key, message, help)
        }
    }

    /// The option in the stage's table: `duration` for `duration.updates`, `tasks` for `tasks[0]`.
    pub fn option(&self) -> &str {
        self.key.split(['.', '[']).next().unwrap_or(&self.key)
    }

    /// The same, at a place in a file that the option names.
    pub fn with_location(self, location: FileLocation) -> Self {
        Self {
            location: Some(Box::new(location)),
            ..self
        }
    }
}

/// An option that has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnusedOption {
    pub key: &'static str,
    /// Why, for messages such as "`fisher` has no effect: *`method` is not `taylor`*".
    pub reason: String,
}

impl UnusedOption {
    pub fn new(key: &'static str, reason: impl Into<String>) -> Self {
        Self {
            key,
            reason: reason.into(),
        }
    }

    /// Several options that have no effect for the same reason.
    pub fn all(keys: &[&'static str], reason: &str) -> impl Iterator<Item = Self> {
        keys.iter().map(move |key| Self::new(key, reason))
    }
}

/// The largest size that an option accepts.
const MAX_SIZE: usize = 1 << 20;

/// A fault for each number that is not a size: 1 to 1048576.
pub fn size_faults<'a>(sizes: impl IntoIterator<Item = (&'a str, usize)>) -> Vec<OptionFault> {
    let mut faults = Vec::new();
    for (key, value) in sizes {
        if !(1..=MAX_SIZE).contains(&value) {
            faults.push(OptionFault::new(
                key,
                format!("`{key}` must be a number from 1 to {MAX_SIZE}, not {value}"),
                "",
            ));
        }
    }
    faults
}

/// A fault for each number that is not finite and above zero.
pub fn positive_faults<'a>(numbers: impl IntoIterator<Item = (&'a str, f64)>) -> Vec<OptionFault> {
    let mut faults = Vec::new();
    for (key, value) in numbers {
        if !(value > 0.0 && value.is_finite()) {
            let message = format!("`{key}` must be a number above 0, not {value}");
            faults.push(OptionFault::new(key, message, ""));
        }
    }
    faults
}

/// The state of the environment pass of the check when it reaches a stage: the folder of data, and
/// the header of the model that earlier stages will have made. The pass visits a variant's stages
/// in order; each stage updates the state.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `run.data`: the folder of published data sets.
    pub data_folder: Option<PathBuf>,
    /// The header of the model that earlier stages will have made, with the widths before any
    /// pruning. None: not known.
    pub model: Option<ModelHeader>,
    /// The groups that the last `dependencies` stage will find, with their sizes before any pruning.
    /// Empty: not known.
    pub groups: Vec<ExpectedGroups>,
    /// How much memory the run may take. None: not known.
    pub memory_budget: Option<MemoryBudget>,
    /// Whether the run computes on a GPU.
    pub is_on_gpu: bool,
    /// The element type of the model's weights on a GPU.
    pub precision: Precision,
    /// Options of the current stage that have no effect, as its files and headers show. The stage
    /// adds to it.
    pub unused_options: Vec<UnusedOption>,
    /// What the current stage will need. The stage adds to it.
    pub estimate: ResourceEstimate,
    /// Results of earlier look-ups.
    pub lookup_cache: LookupCache,
}

/// Groups of one kind and size that a model has before any pruning.
#[derive(Clone, Copy, Debug)]
pub struct ExpectedGroups {
    pub kind: GroupKind,
    /// The number of groups.
    pub count: usize,
    /// Units of each group.
    pub units: usize,
    /// Channels of a unit: the width of a head; 1 for other kinds.
    pub unit_width: usize,
}

/// An upper estimate of what a stage needs, in bytes, from headers alone: for the model before any
/// pruning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResourceEstimate {
    /// Memory of the process: weights, kept block inputs, and the activations of the running
    /// operation.
    pub cpu_memory: u64,
    /// Memory of the GPU with all weights on it; 0 if the run computes on the CPU.
    pub gpu_memory: u64,
    /// Memory of the GPU if the weights are uploaded block by block.
    pub min_gpu_memory: u64,
    /// Size of the files that the stage writes into the results, without its tables.
    pub disk_space: u64,
}

/// Results of look-ups, so that a sweep with many variants opens each file once.
#[derive(Clone, Debug, Default)]
pub struct LookupCache {
    readable: BTreeMap<PathBuf, Result<(), String>>,
    headers: BTreeMap<PathBuf, Result<ModelHeader, HeaderFault>>,
    tasks: BTreeMap<(String, Option<FewShot>), Result<Task, OptionFault>>,
    row_counts: BTreeMap<(String, usize), usize>,
    corpora: BTreeMap<CorpusSource, Result<CorpusCheck, OptionFault>>,
}

/// Why the header of a model folder cannot be read.
#[derive(Clone, Debug)]
pub struct HeaderFault {
    pub message: String,
    /// What to do instead. May be empty.
    pub help: String,
}

impl From<CheckpointError> for HeaderFault {
    fn from(error: CheckpointError) -> Self {
        Self {
            message: error.to_string(),
            help: error.help().to_owned(),
        }
    }
}

impl Environment {
    /// Whether `path` can be opened for reading. The result is cached.
    pub fn check_readable(&mut self, path: &Path) -> Result<(), String> {
        self.lookup_cache
            .readable
            .entry(path.to_path_buf())
            .or_insert_with(|| check_readable_file(path))
            .clone()
    }

    /// A fault if the tokenizer puts a token around every text that the model's vocabulary lacks.
    pub fn check_special_tokens(&self, key: &str) -> Option<OptionFault> {
        let faults = &self.model.as_ref()?.special_token_faults;
        let message = faults.around_text.as_ref()?;
        Some(OptionFault::new(
            key,
            format!("the tokenizer adds a special token to every text: {message}"),
            "correct `post_processor` in tokenizer.json, or `vocab_size` in config.json",
        ))
    }

    /// A fault if the token before the first token of a text is not in the model's vocabulary.
    pub fn check_prefix_token(&self, key: &str) -> Option<OptionFault> {
        let faults = &self.model.as_ref()?.special_token_faults;
        let message = faults.prefix.as_ref()?;
        Some(OptionFault::new(
            key,
            format!("the first token of a text is predicted from BOS or EOS: {message}"),
            "correct `bos_token` in tokenizer_config.json, or `vocab_size` in config.json",
        ))
    }

    /// Adds this many copies of the model's weights to the estimate. For a streamed model it adds
    /// the blocks that are in memory at once instead.
    pub fn add_weights(&mut self, copies: u64) {
        let Some(model) = &self.model else { return };
        let whole_bytes = cost::weight_bytes(model);
        let is_streamed = self
            .memory_budget
            .is_some_and(|budget| budget.should_stream(whole_bytes));
        self.estimate.cpu_memory += match is_streamed {
            true => cost::streamed_weight_bytes(model),
            false => copies * whole_bytes,
        };
    }

    /// Adds a backward walk over `sequences` sequences of `length` tokens, which keeps the input of
    /// every block.
    pub fn add_backward_walk(&mut self, sequences: usize, length: usize) {
        let kept_inputs = self.model.as_ref().map_or(0, |model| model.layers + 1);
        self.add_walk(sequences, length, kept_inputs);
    }

    /// Adds a forward pass over `sequences` sequences of `length` tokens, which keeps one hidden
    /// state per token.
    pub fn add_forward_pass(&mut self, sequences: usize, length: usize) {
        self.add_walk(sequences, length, 1);
    }

    /// Adds a walk that keeps `kept_states` hidden states of every token.
    fn add_walk(&mut self, sequences: usize, length: usize, kept_states: usize) {
        let Some(model) = &self.model else { return };
        let bytes = cost::walk_bytes(model, sequences, length, kept_states, self.precision);
        let estimate = &mut self.estimate;
        estimate.cpu_memory = estimate.cpu_memory.saturating_add(bytes.cpu);
        if self.is_on_gpu {
            estimate.gpu_memory = estimate.gpu_memory.max(bytes.gpu);
            estimate.min_gpu_memory = estimate.min_gpu_memory.max(bytes.min_gpu);
        }
    }

    /// Adds the keys and values of `sequences` sequences of `tokens` tokens.
    pub fn add_kv_cache(&mut self, sequences: usize, tokens: usize) {
        let Some(model) = &self.model else { return };
        let bytes = cost::kv_cache_bytes(model, sequences, tokens);
        self.estimate.cpu_memory = self.estimate.cpu_memory.saturating_add(bytes);
    }

    /// A fault if a sequence has more tokens than the model has positions. `what`: the noun for the
    /// sequence.
    pub fn check_length(&self, key: &str, what: &str, tokens: usize) -> Option<OptionFault> {
        let positions = self.model.as_ref()?.max_positions;
        if tokens <= positions {
            return None;
        }
        let message =
            format!("a {what} of {tokens} tokens is longer than the model's {positions} positions");
        let help = format!("write at most {positions}");
        Some(OptionFault::new(key, message, help))
    }

    /// The header of a model folder. The result is cached.
    pub fn read_header(&mut self, folder: &Path) -> Result<ModelHeader, HeaderFault> {
        self.lookup_cache
            .headers
            .entry(folder.to_path_buf())
            .or_insert_with(|| ModelHeader::read(folder).map_err(HeaderFault::from))
            .clone()
    }
}

fn check_readable_file(path: &Path) -> Result<(), String> {
    let file = open_regular_file(path).map_err(|error| error.to_string())?;
    match file.metadata() {
        Ok(metadata) if metadata.len() == 0 => Err(format!("`{}` is empty", path.display())),
        _ => Ok(()),
    }
}
