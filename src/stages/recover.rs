//! `recover`: Model and text → LoRA adapters (Hu et al. 2021; LLM-Pruner, equation 6), merged into the Model that follows.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fault, World};
use crate::data::corpus::{CorpusSource, Sample};

/// Trains low-rank adapters on the pruned model.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Training data: a text file, JSONL with a text field, or JSONL rows of token ids (with `labels` for a loss mask).
    pub corpus: String,
    /// What separates the documents of a text file. Default: the file is one document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// The field of a JSONL row that holds its text. Default `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Which part of the corpus an update sees: random windows, or the rows in file order. Default `random`.
    #[serde(default)]
    pub sample: Sample,
    /// Tokens of a random window, at least 2. Default 64.
    #[serde(default = "sixty_four")]
    pub length: usize,
    /// Rank of the adapters, at least 1. Default 8.
    #[serde(default = "eight")]
    pub rank: usize,
    /// The adapters' output is scaled by alpha / rank. Default 16.
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
    /// Updates of linear warm-up; after it the rate falls linearly to 0. Default 0.
    #[serde(default)]
    pub warmup: usize,
    /// Rows per update, at least 1. Default 64.
    #[serde(default = "sixty_four")]
    pub batch: usize,
    /// Rows whose activations are held at once: an update accumulates over batch / micro_batch of them. Default: batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// How long: `{ updates = 60 }` or `{ epochs = 2 }`.
    pub duration: Duration,
    /// Gradients are scaled down to this global norm. Default 1.
    #[serde(default = "one")]
    pub clip: f64,
    /// Adapters to start from: safetensors in PEFT's layout. Default: A drawn uniformly (Kaiming, a = √5), B zero.
    #[serde(skip_serializing_if = "Option::is_none")]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
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
    /// Steps of the optimiser, at least 1.
    Updates(usize),
    /// Passes over the corpus, at least 1.
    Epochs(usize),
}

impl Options {
    /// Where the training data is read from.
    pub fn source(&self) -> CorpusSource {
        CorpusSource { path: (&self.corpus).into(), separator: self.separator.clone(), field: self.field.clone() }
    }

    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut at_least_one = |key: &str, value: usize| {
            if value == 0 {
                faults.push(Fault::new(key, "this cannot be 0", "write at least 1"));
            }
        };
        at_least_one("rank", self.rank);
        at_least_one("batch", self.batch);
        at_least_one("micro_batch", self.micro_batch.unwrap_or(1));
        match self.duration {
            Duration::Updates(n) => at_least_one("duration.updates", n),
            Duration::Epochs(n) => at_least_one("duration.epochs", n),
        }
        let mut positive = |key: &str, value: f64| {
            if !(value > 0.0 && value.is_finite()) {
                faults.push(Fault::new(key, format!("{value} is not a positive number"), ""));
            }
        };
        positive("alpha", self.alpha);
        positive("learning_rate", self.learning_rate);
        positive("clip", self.clip);
        if !(0.0..1.0).contains(&self.dropout) {
            faults.push(Fault::new("dropout", format!("a dropout of {} is not a share", self.dropout), "write a number from 0 to below 1"));
        }
        if self.targets.is_empty() {
            faults.push(Fault::new("targets", "without a target nothing is trained", "name at least one of q, k, v, o, gate, up, down"));
        }
        if self.length < 2 {
            faults.push(Fault::new("length", format!("a window of {} tokens predicts nothing", self.length), "write at least 2"));
        }
        faults
    }

    pub fn world(&self, world: &mut World) -> Vec<Fault> {
        let mut faults = world.corpus("corpus", &self.source());
        if let Some(init) = &self.init
            && let Err(message) = world.readable(init.as_ref())
        {
            faults.push(Fault::new("init", message, ""));
        }
        faults
    }
}
