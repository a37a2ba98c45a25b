//! What a check may know of the world outside the pipeline file, and how it says that something is wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::MemoryBudget;
use secateur_data::corpus::CorpusSource;
use secateur_data::task::{FewShot, FileLocation, Task, TaskError};
use secateur_model::{ModelHeader, cost};
use secateur_tensor::Precision;

/// A mistake in one option. It names the option, not its place: the pipeline knows where each option was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionFault {
    /// The option, dotted where it is nested: `ratio`, `duration.updates`. Empty: the stage as a whole.
    pub key: String,
    /// What is wrong, in one sentence.
    pub message: String,
    /// What to write instead. May be empty.
    pub help: String,
    /// Where it is wrong, if that is a place in a file that the option names.
    pub location: Option<Box<FileLocation>>,
}

impl OptionFault {
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
        }
    }

    /// The same, at a place in a file that the option names.
    pub fn with_location(self, place: FileLocation) -> Self {
        Self {
            location: Some(Box::new(place)),
            ..self
        }
    }
}

/// A fault where a number is not one that a size can be: 1 to 1048576.
pub fn size_faults<'a>(sizes: impl IntoIterator<Item = (&'a str, usize)>) -> Vec<OptionFault> {
    let wrong = sizes
        .into_iter()
        .filter(|(_, value)| !(1..=1 << 20).contains(value));
    wrong
        .map(|(key, value)| {
            OptionFault::new(
                key,
                format!("{value} is not a size"),
                "write a number from 1 to 1048576",
            )
        })
        .collect()
}

/// A fault where a number is not above zero and finite.
pub fn positive_faults<'a>(numbers: impl IntoIterator<Item = (&'a str, f64)>) -> Vec<OptionFault> {
    let wrong = numbers
        .into_iter()
        .filter(|(_, value)| !(*value > 0.0 && value.is_finite()));
    wrong
        .map(|(key, value)| OptionFault::new(key, format!("{value} is not a positive number"), ""))
        .collect()
}

/// The world pass of the check walks a variant's stages in order and hands each this value: where data lies, and what
/// the stages before it will have made, as far as headers tell.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `run.data`: the folder of published data sets.
    pub data_folder: Option<PathBuf>,
    /// The model that the stages so far will hand on, read from its headers alone. None: not known yet.
    pub model: Option<ModelHeader>,
    /// Whether the importance at hand has seen the means of activations.
    pub has_input_means: bool,
    /// How much memory the run may take. None: not known.
    pub memory_budget: Option<MemoryBudget>,
    /// Whether the run computes on a GPU.
    pub is_on_gpu: bool,
    /// How a GPU holds the model.
    pub precision: Precision,
    /// What the stage at hand will need; the stage says it.
    pub estimate: ResourceEstimate,
    /// What was found so far.
    pub lookup_cache: LookupCache,
}

/// What a stage will need at most, in bytes, as far as headers tell: the model as it was before pruning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResourceEstimate {
    /// Weights, kept block inputs, and what is at work.
    pub cpu_memory: u64,
    /// The same of a GPU, 0 where the run computes on none.
    pub gpu_memory: u64,
    /// What of that cannot be brought block by block.
    pub min_gpu_memory: u64,
    /// What it leaves in the results, tables not counted.
    pub disk_space: u64,
}

/// Answers of the world, remembered, so that five hundred variants open each file once.
#[derive(Clone, Debug, Default)]
pub struct LookupCache {
    readable: BTreeMap<PathBuf, Result<(), String>>,
    headers: BTreeMap<PathBuf, Result<ModelHeader, String>>,
    tasks: BTreeMap<(String, Option<FewShot>), Result<Task, OptionFault>>,
}

impl Environment {
    /// Whether `path` can be opened for reading; the answer is remembered.
    pub fn check_readable(&mut self, path: &Path) -> Result<(), String> {
        self.lookup_cache
            .readable
            .entry(path.to_path_buf())
            .or_insert_with(|| match std::fs::metadata(path) {
                Ok(found) if found.is_dir() => {
                    Err(format!("`{}` is a folder, not a file", path.display()))
                }
                Ok(found) if !found.is_file() => Err(format!(
                    "`{}` is neither a file nor a folder",
                    path.display()
                )),
                Ok(found) if found.len() == 0 => Err(format!("`{}` is empty", path.display())),
                Ok(_) => std::fs::File::open(path)
                    .map(drop)
                    .map_err(|e| format!("cannot read `{}`: {e}", path.display())),
                Err(e) => Err(format!("cannot read `{}`: {e}", path.display())),
            })
            .clone()
    }

    /// A task, whose first question or text was made to see that its templates fit its rows; the answer is remembered.
    pub fn check_task(
        &mut self,
        key: &str,
        name: &str,
        shots: Option<FewShot>,
    ) -> Result<Task, OptionFault> {
        let look = || {
            let task = Task::find(name, self.data_folder.as_deref())?;
            match task.is_text() {
                true => drop(task.text_documents(Some(1))?),
                false => drop(task.questions(Some(1), shots)?),
            }
            Ok(task)
        };
        let fault = |error: TaskError| {
            let fault = OptionFault::new("", error.message(), error.help());
            match error.location() {
                Some(place) => fault.with_location(place.clone()),
                None => fault,
            }
        };
        let found = self
            .lookup_cache
            .tasks
            .entry((name.to_owned(), shots))
            .or_insert_with(|| look().map_err(fault));
        found.clone().map_err(|fault| OptionFault {
            key: key.to_owned(),
            ..fault
        })
    }

    /// What is wrong with a corpus as far as its file and the model's tokenizer tell.
    pub fn check_corpus(&mut self, key: &str, source: &CorpusSource) -> Vec<OptionFault> {
        if let Err(message) = self.check_readable(&source.path) {
            return vec![OptionFault::new(
                key,
                message,
                "paths are relative to the working directory",
            )];
        }
        let misplaced = match (&source.separator, &source.field) {
            (Some(separator), _) if separator.is_empty() => Some((
                "separator",
                "an empty text separates nothing",
                "write what stands between documents, or remove the line",
            )),
            (Some(_), _) if source.is_jsonl() => Some((
                "separator",
                "a row of JSONL is a document: there is nothing to separate",
                "remove the line",
            )),
            (_, Some(_)) if !source.is_jsonl() => Some((
                "field",
                "a text has no fields",
                "remove the line, or give a file that ends in .jsonl",
            )),
            _ => None,
        };
        if let Some((key, message, help)) = misplaced {
            return vec![OptionFault::new(key, message, help)];
        }
        let no_tokenizer = self
            .model
            .as_ref()
            .is_some_and(|model| !model.has_tokenizer);
        if no_tokenizer && source.needs_tokenizer() {
            let message = format!(
                "`{}` is text, and the model's folder has no tokenizer.json",
                source.path.display()
            );
            return vec![OptionFault::new(
                key,
                message,
                "put the tokenizer beside the model, or give JSONL rows of token ids",
            )];
        }
        Vec::new()
    }

    /// Adds this many copies of the model's weights to the estimate; of a streamed model its blocks in memory instead.
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

    /// Adds a backward walk over `sequences` sequences of `length` tokens, which keeps the input of every block.
    pub fn add_backward_walk(&mut self, sequences: usize, length: usize) {
        let kept_inputs = self.model.as_ref().map_or(0, |model| model.layers + 1);
        self.add_walk(sequences, length, kept_inputs);
    }

    /// Adds a forward pass over `sequences` sequences of `length` tokens, which keeps one hidden state per token.
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

    /// A fault where a sequence is longer than the model was made for.
    pub fn check_length(&self, key: &str, what: &str, tokens: usize) -> Option<OptionFault> {
        let positions = self.model.as_ref()?.max_positions;
        let message =
            format!("a {what} of {tokens} tokens is longer than the model's {positions} positions");
        (tokens > positions)
            .then(|| OptionFault::new(key, message, format!("write at most {positions}")))
    }

    /// The header of a model folder; the answer is remembered.
    pub fn read_header(&mut self, folder: &Path) -> Result<ModelHeader, String> {
        self.lookup_cache
            .headers
            .entry(folder.to_path_buf())
            .or_insert_with(|| ModelHeader::read(folder).map_err(|e| e.to_string()))
            .clone()
    }
}
