//! `evaluate`: Model → accuracies of multiple-choice tasks and perplexities of texts, as lm-evaluation-harness or LLM-Pruner
//! measures them.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::environment::{Environment, OptionFault};
use super::error::StageError;
use super::stage::{Stage, StageOutput, StageType, describe_options};
use super::values::{MODEL, StageValues, ValueKind};
use super::{Context, InputFile};
use secateur_data::corpus::CorpusSource;
use secateur_data::task::{FewShot, Metric, Task};
use secateur_model::Model;
use secateur_store::tables::Table;

mod choices;
mod perplexity;
mod requests;
mod rows;
mod statistics;

pub use rows::{DocumentRow, EvaluateRow, SampleRow};

pub static TYPE: StageType = StageType {
    needs: &[ValueKind::Model],
    summary: |options| describe_options(options, &["tasks", "corpora", "shots"]),
    ..StageType::new::<Options>("evaluate")
};

/// Measures the model as it stands at this place of the pipeline.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Tasks by name (`boolq`, `tiny_piqa`, `wikitext`, …) or by the path of a task file.
    pub tasks: Vec<String>,
    /// Only the first so many rows of each task (documents of a text), at least 1. Default: all.
    pub limit: Option<usize>,
    /// Tokens of the longest request, at least 1; the left of a longer one is cut away. More than the model's positions are
    /// allowed, as in the harness. Default: the model's positions.
    pub max_length: Option<usize>,
    /// How multiple-choice requests are put together and scored. Default `harness`.
    pub protocol: Protocol,
    /// Whether the tokenizer's own special tokens, usually BOS in front, stand around a context or a text. Default true, as in
    /// the harness. `llm-pruner` has none around contexts in any case.
    // This and the next two are younger than the others: variants without them keep their ids.
    #[serde(skip_serializing_if = "is_true")]
    pub add_bos_token: bool,
    /// Few-shot: so many answered examples stand before every question. Default 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub shots: usize,
    /// Seed of the examples' draw; the harness draws the same with its `fewshot_random_seed`. Default 1234, the harness's.
    #[serde(skip_serializing_if = "is_harness_seed")]
    pub shots_seed: u32,
    /// Texts, taken whole as they stand, or JSONL rows of token ids, whose perplexity is measured: paths.
    pub corpora: Vec<String>,
    /// Tokens of a perplexity window, 2 to the model's positions. Default 128, or the model's positions if they are fewer.
    pub window: Option<usize>,
}

fn is_true(flag: &bool) -> bool {
    *flag
}

fn is_zero(shots: &usize) -> bool {
    *shots == 0
}

fn is_harness_seed(seed: &u32) -> bool {
    *seed == HARNESS_SEED
}

/// lm-evaluation-harness's default.
const HARNESS_SEED: u32 = 1234;

impl Default for Options {
    fn default() -> Self {
        Self {
            tasks: Vec::new(),
            limit: None,
            max_length: None,
            protocol: Protocol::Harness,
            add_bos_token: true,
            shots: 0,
            shots_seed: HARNESS_SEED,
            corpora: Vec::new(),
            window: None,
        }
    }
}

/// How multiple-choice requests are put together and scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// lm-evaluation-harness 0.4: BOS where the tokenizer adds one, context and choice encoded together, the log
    /// likelihood of the choice's tokens summed, the left of a long request cut away.
    #[default]
    Harness,
    /// The tables of LLM-Pruner's paper (lm-evaluation-harness 0.3 at 4d21ab6): context and choice encoded apart, no BOS; of each
    /// task the one metric that stands in the tables, and their mean.
    LlmPruner,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Harness => "harness",
            Self::LlmPruner => "llm-pruner",
        }
    }
}

impl Options {
    fn few_shot(&self) -> Option<FewShot> {
        (self.shots > 0).then_some(FewShot {
            count: self.shots,
            seed: self.shots_seed,
        })
    }

    fn window_or_default(&self) -> usize {
        self.window.unwrap_or(DEFAULT_WINDOW)
    }

    /// How something was measured, as it stands in the table: `harness`, `llm-pruner`, `harness, 2 shots`, `harness, no BOS`.
    fn protocol_label(&self, protocol: Protocol, asks: bool) -> String {
        let shots = if asks && self.shots > 0 {
            format!(", {} shots", self.shots)
        } else {
            String::new()
        };
        // the paper's questions have none in any case
        let is_apart = asks && protocol == Protocol::LlmPruner;
        format!(
            "{}{shots}{}",
            protocol.name(),
            if self.add_bos_token || is_apart {
                ""
            } else {
                ", no BOS"
            }
        )
    }
}

impl Stage for Options {
    fn stage_type(&self) -> &'static StageType {
        &TYPE
    }

    /// Task files, their rows, and corpora.
    fn input_files(&self, data_folder: Option<&Path>) -> Vec<InputFile> {
        let tasks = self
            .tasks
            .iter()
            .filter_map(|name| Task::find(name, data_folder).ok());
        let corpora = self
            .corpora
            .iter()
            .map(|path| InputFile::OnDisk(path.into()));
        tasks
            .flat_map(|task| task.input_files(self.shots > 0))
            .chain(corpora)
            .collect()
    }

    fn option_faults(&self) -> Vec<OptionFault> {
        let mut faults = Vec::new();
        if self.tasks.is_empty() && self.corpora.is_empty() {
            faults.push(OptionFault::new(
                "",
                "nothing to evaluate",
                "add `tasks = [\"…\"]`, `corpora = [\"…\"]`, or both",
            ));
        }
        if self.limit == Some(0) {
            faults.push(OptionFault::new(
                "limit",
                "a limit of 0 rows measures nothing",
                "write at least 1, or remove the line",
            ));
        }
        if self.max_length == Some(0) {
            faults.push(OptionFault::new(
                "max_length",
                "a request of 0 tokens holds no choice",
                "write at least 1, or remove the line",
            ));
        }
        let corpora: Vec<String> = self
            .corpora
            .iter()
            .map(|path| perplexity::corpus_name(path.as_ref()))
            .collect();
        faults.extend(duplicate_name_faults(&self.tasks, &corpora));
        if self.window.is_some_and(|w| w < 2) {
            faults.push(OptionFault::new(
                "window",
                "a window below 2 tokens predicts nothing",
                "the usual number is 128",
            ));
        }
        faults
    }

    fn environment_faults(&self, environment: &mut Environment) -> Vec<OptionFault> {
        environment.add_weights(1);
        environment.add_forward_pass(
            (perplexity::TOKENS_PER_CHUNK / self.window_or_default().max(1)).max(1),
            self.window_or_default(),
        );
        let mut faults = Vec::new();
        let mut names = self.tasks.clone();
        let mut asks = false;
        for (i, name) in self.tasks.iter().enumerate() {
            match environment.check_task(&format!("tasks[{i}]"), name, self.few_shot()) {
                Ok(task) => {
                    asks |= !task.is_text();
                    names[i] = task.name;
                }
                Err(fault) => {
                    asks = true;
                    faults.push(fault);
                }
            }
        }
        if self.shots > 0 && !asks {
            faults.push(OptionFault::new(
                "shots",
                "examples stand before questions, and there is no multiple-choice task",
                "",
            ));
        }
        let corpora: Vec<String> = self
            .corpora
            .iter()
            .map(|path| perplexity::corpus_name(path.as_ref()))
            .collect();
        faults.extend(duplicate_name_faults(&names, &corpora));
        for (i, corpus) in self.corpora.iter().enumerate() {
            faults.extend(environment.check_corpus(
                &format!("corpora[{i}]"),
                &CorpusSource::from_path(corpus.as_ref()),
            ));
        }
        if environment
            .model
            .as_ref()
            .is_some_and(|model| !model.has_tokenizer)
            && !self.tasks.is_empty()
        {
            faults.push(OptionFault::new(
                "tasks",
                "tasks are text, and the model's folder has no tokenizer.json",
                "put the tokenizer beside the model",
            ));
        }
        faults.extend(
            self.window
                .and_then(|window| environment.check_length("window", "window", window)),
        );
        faults
    }

    fn run(&self, context: &Context, inputs: &StageValues) -> Result<StageOutput, StageError> {
        Ok(run(self, context, inputs.require(MODEL)?)?.into())
    }
}

/// Rows of the table are known by their names, so each may be measured once.
fn duplicate_name_faults(tasks: &[String], corpora: &[String]) -> Vec<OptionFault> {
    let names: Vec<&String> = tasks.iter().chain(corpora).collect();
    let again = names
        .iter()
        .enumerate()
        .filter(|(i, name)| names[..*i].contains(name) || **name == choices::AVERAGE_TASK_NAME);
    let fault = |(i, name): (usize, &&String)| {
        let key = if i < tasks.len() {
            format!("tasks[{i}]")
        } else {
            format!("corpora[{}]", i - tasks.len())
        };
        let message = match name.as_str() {
            choices::AVERAGE_TASK_NAME => format!("`{name}` is the name of the tasks' mean"),
            _ => format!("`{name}` is measured twice: a row of the table is known by its name"),
        };
        OptionFault::new(key, message, "give each a name of its own")
    };
    again.map(fault).collect()
}

/// An evaluation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("tasks are text, and the model's folder has no tokenizer.json")]
    NoTokenizer,
    #[error(
        "{task}, document {doc}: a {what} has no token: it is empty, and the tokenizer names neither a BOS nor an EOS token"
    )]
    NoToken {
        task: String,
        doc: u64,
        what: &'static str,
    },
    #[error("`{0}` has nothing to predict: every document has one token, or none")]
    NothingToPredict(String),
    #[error("{what}: the result is {value}, the model is broken")]
    NotFinite { what: String, value: f64 },
}

/// What was measured so far; left on disk when the run is interrupted.
#[derive(Debug, Default, Serialize, Deserialize)]
struct PartialEvaluation {
    /// Tasks, then corpora, that are done.
    completed_count: usize,
    rows: Vec<EvaluateRow>,
    documents: Vec<DocumentRow>,
    /// Of the tasks that are done, and of the one at work.
    samples: Vec<SampleRow>,
    /// −Σ log p of the windows of the text at work, and which part of its measurement they are of.
    window_nlls: Vec<f64>,
    text_pass: u32,
}

/// Measures tasks, then corpora.
pub fn run(options: &Options, context: &Context, model: &Model) -> Result<Vec<Table>, StageError> {
    let mut measured: PartialEvaluation = context.checkpoint.read().unwrap_or_default();
    for at in measured.completed_count..options.tasks.len() + options.corpora.len() {
        context.checkpoint_or_stop(|| &measured)?;
        match options.tasks.get(at) {
            Some(name) => measure_task(
                &Task::find(name, context.data_folder.as_deref())?,
                options,
                context,
                model,
                &mut measured,
            )?,
            None => {
                let path = Path::new(&options.corpora[at - options.tasks.len()]);
                let found =
                    perplexity::corpus_perplexity(path, options, context, model, &mut measured)?;
                measured.add_rows(found);
            }
        }
        measured.completed_count += 1;
    }
    let PartialEvaluation {
        mut rows,
        documents,
        samples,
        ..
    } = measured;
    if options.protocol == Protocol::LlmPruner {
        rows.extend(choices::average_row(&rows));
    }
    let values: Vec<String> = rows
        .iter()
        .map(|row| format!("{} {} {:.4}", row.task, row.metric, row.value))
        .collect();
    tracing::info!("evaluated: {}", values.join(", "));
    let mut tables = vec![
        Table::from_rows("evaluate", &rows)?,
        Table::from_rows("evaluate_documents", &documents)?,
    ];
    if !samples.is_empty() {
        tables.push(Table::from_rows("evaluate_samples", &samples)?);
    }
    Ok(tables)
}

/// One task: questions, or a text in windows, in whole documents, or both.
fn measure_task(
    task: &Task,
    options: &Options,
    context: &Context,
    model: &Model,
    measured: &mut PartialEvaluation,
) -> Result<(), StageError> {
    if !task.is_text() {
        choices::score_choices(task, options, context, model, measured)?;
        let own: Vec<&SampleRow> = measured
            .samples
            .iter()
            .filter(|sample| sample.task == task.name)
            .collect();
        let found = choices::accuracy_rows(task, options, &own);
        measured.add_rows(found);
        return Ok(());
    }
    let mut found = MetricRows::default();
    if task.metrics.contains(&Metric::Perplexity) {
        found = perplexity::task_window_perplexity(task, options, context, model, measured)?;
    }
    if task
        .metrics
        .iter()
        .any(|&metric| metric != Metric::Perplexity)
    {
        let (rows, documents) =
            perplexity::document_perplexities(task, options, context, model, measured)?;
        found.0.extend(rows);
        found.1.extend(documents);
    }
    measured.add_rows(found);
    Ok(())
}

type MetricRows = (Vec<EvaluateRow>, Vec<DocumentRow>);

impl PartialEvaluation {
    /// What was found of one task or corpus, all of it: nothing is left at work.
    fn add_rows(&mut self, (rows, documents): MetricRows) {
        self.rows.extend(rows);
        self.documents.extend(documents);
        (self.window_nlls, self.text_pass) = (Vec::new(), 0);
    }
}

/// Tokens of a perplexity window where none are named: LLM-Pruner's.
const DEFAULT_WINDOW: usize = 128;
