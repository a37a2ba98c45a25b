//! `evaluate`: Model → accuracies of multiple-choice tasks (lm-evaluation-harness, zero-shot) and perplexities of texts.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Context, Fault, Input, Interrupted, World};
use crate::data::corpus::{CorpusError, CorpusSource};
use crate::data::task::{Task, TaskError};
use crate::metrics::{MetricsError, Table};
use crate::model::Model;
use crate::model::tokenizer::TokenizerError;

mod choices;
mod perplexity;

/// Measures the model as it stands at this place of the pipeline.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Tasks by name (`boolq`, `tiny_piqa`, …) or by the path of a task file.
    pub tasks: Vec<String>,
    /// Only the first so many rows of each task, at least 1. Default: all.
    pub limit: Option<usize>,
    /// Tokens of the longest request, at least 1; the left of a longer one is cut away. More than the model's positions are
    /// allowed, as in the harness. Default: the model's positions.
    pub max_length: Option<usize>,
    /// How requests are put together and scored. Default `harness`.
    pub protocol: Protocol,
    /// Texts, taken whole as they stand, or JSONL rows of token ids, whose perplexity is measured: paths.
    pub corpora: Vec<String>,
    /// Tokens of a perplexity window, 2 to the model's positions. Default 128, or the model's positions if they are fewer.
    pub window: Option<usize>,
}

/// How requests are put together and scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// lm-evaluation-harness 0.4: BOS where the tokenizer adds one, context and choice encoded together, the log
    /// likelihood of the choice's tokens summed, the left of a long request cut away.
    #[default]
    Harness,
}

impl Options {
    /// What the stage reads: tasks, their rows, and corpora.
    pub fn inputs(&self, data: Option<&Path>) -> Vec<Input> {
        let tasks = self.tasks.iter().filter_map(|name| Task::find(name, data).ok());
        let corpora = self.corpora.iter().map(|path| Input::File(path.into()));
        tasks.flat_map(|task| task.inputs()).chain(corpora).collect()
    }

    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.tasks.is_empty() && self.corpora.is_empty() {
            faults.push(Fault::new("", "nothing to evaluate", "add `tasks = [\"…\"]`, `corpora = [\"…\"]`, or both"));
        }
        if self.limit == Some(0) {
            faults.push(Fault::new("limit", "a limit of 0 rows measures nothing", "write at least 1, or remove the line"));
        }
        if self.max_length == Some(0) {
            faults.push(Fault::new(
                "max_length",
                "a request of 0 tokens holds no choice",
                "write at least 1, or remove the line",
            ));
        }
        let corpora: Vec<String> = self.corpora.iter().map(|path| perplexity::name(path.as_ref())).collect();
        faults.extend(repeated("tasks", &self.tasks));
        faults.extend(repeated("corpora", &corpora));
        if self.window.is_some_and(|w| w < 2) {
            faults.push(Fault::new("window", "a window below 2 tokens predicts nothing", "the usual number is 128"));
        }
        faults
    }

    pub fn world(&self, world: &mut World) -> Vec<Fault> {
        world.holds_weights(1);
        world.carries_forward(perplexity::CHUNK, self.window.unwrap_or(DEFAULT_WINDOW));
        let mut faults = Vec::new();
        let mut names = self.tasks.clone();
        for (i, name) in self.tasks.iter().enumerate() {
            match world.task(&format!("tasks[{i}]"), name, None) {
                Ok(task) => names[i] = task.name,
                Err(fault) => faults.push(fault),
            }
        }
        faults.extend(repeated("tasks", &names));
        for (i, corpus) in self.corpora.iter().enumerate() {
            faults.extend(world.corpus(&format!("corpora[{i}]"), &CorpusSource::whole(corpus.as_ref())));
        }
        if world.model.as_ref().is_some_and(|model| !model.has_tokenizer) && !self.tasks.is_empty() {
            faults.push(Fault::new(
                "tasks",
                "tasks are text, and the model's folder has no tokenizer.json",
                "put the tokenizer beside the model",
            ));
        }
        faults.extend(self.window.and_then(|window| world.too_long("window", "window", window)));
        faults
    }
}

/// Rows of the table are known by their names, so each may be measured once.
fn repeated(key: &str, names: &[String]) -> Vec<Fault> {
    let again = names.iter().enumerate().filter(|(i, name)| names[..*i].contains(name));
    let fault = |(i, name): (usize, &String)| {
        let message = format!("`{name}` is measured twice: a row of the table is known by its name");
        Fault::new(format!("{key}[{i}]"), message, "give each a name of its own")
    };
    again.map(fault).collect()
}

/// One row of `evaluate.parquet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The task's name, or the stem of a corpus.
    pub task: String,
    /// Empty for a corpus.
    pub split: String,
    /// `acc`, `acc_norm`, `perplexity`.
    pub metric: String,
    pub value: f64,
    /// √(sample variance / n); null for a perplexity.
    pub stderr: Option<f64>,
    /// Documents; for a perplexity, predicted tokens.
    pub n: u64,
}

/// One row of `evaluate_samples.parquet`: a choice of a document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleRow {
    pub task: String,
    /// Row of the file, from 0.
    pub doc: u64,
    /// In the harness's order: BoolQ is no, yes.
    pub choice: u32,
    /// Summed over the choice's tokens, in nats.
    pub loglikelihood: f64,
    pub tokens: u32,
    /// Characters of the choice, its joining space not counted.
    pub chars: u32,
    /// Whether every token is the model's first choice.
    pub greedy: bool,
    /// Whether this is the right choice.
    pub gold: bool,
}

/// An evaluation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Task(#[from] TaskError),
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("tasks are text, and the model's folder has no tokenizer.json")]
    NoTokenizer,
    #[error(
        "{task}, document {doc}: a choice of {tokens} tokens is longer than the {limit} that a request may have; raise `max_length`, or set `limit`"
    )]
    TooLong { task: String, doc: u64, tokens: usize, limit: usize },
    #[error("{task}, document {doc}: a {what} has no token: it is empty, and the tokenizer puts nothing in front of a text")]
    NoToken { task: String, doc: u64, what: &'static str },
    #[error("{what}: the result is {value}, the model is broken")]
    NotFinite { what: String, value: f64 },
}

/// What was measured so far; left on disk when the run is interrupted.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Measured {
    /// Tasks, then corpora, that are done.
    done: usize,
    rows: Vec<Row>,
    /// Of the tasks that are done, and of the one at work.
    samples: Vec<SampleRow>,
}

/// Measures tasks, then corpora.
pub fn run(options: &Options, context: &Context, model: &Model) -> Result<Vec<Table>, Error> {
    let mut measured: Measured = context.state.read().unwrap_or_default();
    for name in options.tasks.iter().skip(measured.done) {
        let task = Task::find(name, context.data.as_deref())?;
        choices::score(&task, options, context, model, &mut measured)?;
        let own: Vec<&SampleRow> = measured.samples.iter().filter(|sample| sample.task == task.name).collect();
        measured.rows.extend(choices::metrics(&task, &own));
        measured.done += 1;
    }
    for corpus in options.corpora.iter().skip(measured.done - options.tasks.len()) {
        context.go_on_or_keep(|| &measured)?;
        let window = options.window.unwrap_or(DEFAULT_WINDOW);
        let row = perplexity::measure(Path::new(corpus), window, context, model);
        if matches!(row, Err(Error::Interrupted(_))) {
            context.state.write(&measured);
        }
        measured.rows.push(row?);
        measured.done += 1;
    }
    let Measured { rows, samples, .. } = measured;
    let values: Vec<String> = rows.iter().map(|row| format!("{} {} {:.4}", row.task, row.metric, row.value)).collect();
    tracing::info!("evaluated: {}", values.join(", "));
    let mut tables = vec![Table::of("evaluate", &rows)?];
    if !options.tasks.is_empty() {
        tables.push(Table::of("evaluate_samples", &samples)?);
    }
    Ok(tables)
}

/// Tokens of a perplexity window where none are named: LLM-Pruner's.
const DEFAULT_WINDOW: usize = 128;
