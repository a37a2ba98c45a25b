//! `evaluate`: model → accuracies of multiple-choice tasks and perplexities of texts, measured as
//! lm-evaluation-harness or LLM-Pruner does.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::environment::{Environment, OptionFault, UnusedOption};
use super::error::StageError;
use super::facts::EarlierStages;
use super::stage::{Stage, StageOutput, StageType, describe_options};
use super::values::{MODEL, StageValues, ValueKind};
use super::{Context, InputFile};
use crate::progress::{format_percent, format_significant};
use secateur_data::corpus::CorpusSource;
use secateur_data::data_file::file_stem;
use secateur_data::task::{FewShot, Metric, Task};
use secateur_model::Model;
use secateur_store::tables::Table;

mod choices;
mod error;
mod perplexity;
mod requests;
mod rows;
mod statistics;

pub use error::Error;
pub use rows::{DocumentRow, EvaluateRow, SampleRow};

pub static TYPE: StageType = StageType {
    needs: &[ValueKind::Model],
    summary: |options| describe_options(options, &["tasks", "corpora", "shots"]),
    ..StageType::new::<Options>("evaluate")
};

/// Measures the model at this place of the pipeline.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Tasks by name (`boolq`, `tiny_piqa`, `wikitext`, …) or by the path of a task file.
    pub tasks: Vec<String>,
    /// Only this many rows of each task (documents of a text), from the first, at least 1. Default:
    /// all.
    pub limit: Option<usize>,
    /// Tokens of the longest request, at least 1; a longer one is cut on the left. More than the
    /// model's positions are allowed, as in the harness. Default: the model's positions.
    pub max_length: Option<usize>,
    /// How multiple-choice requests are built and scored. Default `harness`.
    pub protocol: Protocol,
    /// Whether the tokenizer adds its special tokens, usually BOS at the start, to a context or a
    /// text. Default true, as in the harness. A context or text that already begins with the BOS
    /// token (or with EOS, if there is no BOS) gets none. `llm-pruner` never adds them to contexts.
    // This and the next two were added after the first release: variants without them keep their
    // ids.
    #[serde(skip_serializing_if = "is_true")]
    pub add_bos_token: bool,
    /// Few-shot: the number of answered examples before every question. Default 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub shots: usize,
    /// Seed of the draw of examples; the harness draws the same ones with this
    /// `fewshot_random_seed`. Default 1234, as in the harness.
    #[serde(skip_serializing_if = "is_harness_seed")]
    pub shots_seed: u32,
    /// Paths of files whose perplexity is measured: texts, each as one document, or rows (JSON
    /// Lines, JSON, CSV, Parquet) with a text or with token ids, each row as one document.
    pub corpora: Vec<String>,
    /// Tokens of a perplexity window, 2 to the model's positions. Default 128, or the model's
    /// positions if there are fewer.
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

/// The default seed of few-shot draws in lm-evaluation-harness.
const HARNESS_SEED: u32 = 1234;

/// Default tokens of a perplexity window, as in LLM-Pruner.
const DEFAULT_WINDOW: usize = 128;

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

/// How multiple-choice requests are built and scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// lm-evaluation-harness 0.4: BOS if the tokenizer adds one; context and choice encoded
    /// together; the log likelihood of the choice's tokens summed; a long request cut on the left.
    #[default]
    Harness,
    /// The tables of LLM-Pruner's paper (lm-evaluation-harness 0.3 at 4d21ab6): context and choice
    /// encoded separately; no BOS; of each task only the metric that the tables show, and the mean
    /// over tasks.
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

    fn corpus_names(&self) -> Vec<String> {
        self.corpora
            .iter()
            .map(|path| file_stem(path.as_ref()))
            .collect()
    }

    fn corpus_source(&self, path: &Path) -> CorpusSource {
        CorpusSource {
            adds_special_tokens: self.add_bos_token,
            ..CorpusSource::from_path(path)
        }
    }

    fn window_or_default(&self) -> usize {
        self.window.unwrap_or(DEFAULT_WINDOW)
    }

    /// The text in the table's column `protocol`: `harness`, `llm-pruner`, `harness, 2 shots`,
    /// `harness, no BOS`. `is_multiple_choice`: whether questions were measured; else texts.
    fn protocol_label(&self, protocol: Protocol, is_multiple_choice: bool) -> String {
        let shots = if is_multiple_choice && self.shots > 0 {
            format!(", {} shots", self.shots)
        } else {
            String::new()
        };
        // The paper's questions never have a BOS, so the option makes no difference for them.
        let is_paper_question = is_multiple_choice && protocol == Protocol::LlmPruner;
        let bos = if self.add_bos_token || is_paper_question {
            ""
        } else {
            ", no BOS"
        };
        format!("{}{shots}{bos}", protocol.name())
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
                "a request of 0 tokens has no room for a choice",
                "write at least 1, or remove the line",
            ));
        }
        faults.extend(duplicate_name_faults(&self.tasks, &self.corpus_names()));
        if self.window.is_some_and(|window| window < 2) {
            faults.push(OptionFault::new(
                "window",
                "a window below 2 tokens predicts nothing",
                "the usual number is 128",
            ));
        }
        faults
    }

    fn unused_options(&self, _: &EarlierStages) -> Vec<UnusedOption> {
        let mut unused = Vec::new();
        if self.tasks.is_empty() {
            let keys = ["limit", "max_length", "protocol", "shots", "shots_seed"];
            let reason = "it applies to `tasks`, and there are none";
            unused.extend(UnusedOption::all(&keys, reason));
        } else if self.shots == 0 {
            unused.push(UnusedOption::new("shots_seed", "`shots` is 0"));
        }
        unused
    }

    fn environment_faults(&self, environment: &mut Environment) -> Vec<OptionFault> {
        environment.add_weights(1);
        let window = self.window_or_default();
        environment.add_forward_pass(perplexity::windows_per_chunk(window), window);
        let mut faults = Vec::new();
        // The name of a task file is written inside it, so it is known only after it is read.
        let mut task_names = self.tasks.clone();
        let mut has_questions = false;
        let mut has_texts = !self.corpora.is_empty();
        let mut has_windows = has_texts;
        let mut uses_prefix_token = false;
        let mut reaches_limit = self.tasks.is_empty();
        for (index, name) in self.tasks.iter().enumerate() {
            match environment.check_task(&format!("tasks[{index}]"), name, self.few_shot()) {
                Ok(task) => {
                    has_questions |= !task.is_text();
                    has_texts |= task.is_text();
                    has_windows |= task.metrics.contains(&Metric::Perplexity);
                    uses_prefix_token |= task.is_text() && task.metrics != [Metric::Perplexity];
                    if let Some(limit) = self.limit.filter(|&limit| limit > 0) {
                        reaches_limit |= environment.count_rows(name, &task, limit) >= limit;
                    }
                    task_names[index] = task.name;
                }
                Err(fault) => {
                    // The task may have questions or texts: no option is reported as unused.
                    has_questions = true;
                    has_texts = true;
                    has_windows = true;
                    reaches_limit = true;
                    faults.push(fault);
                }
            }
        }
        let unused = &mut environment.unused_options;
        if !reaches_limit {
            let reason = "every task has fewer rows";
            unused.push(UnusedOption::new("limit", reason));
        }
        if !has_windows {
            let reason = "no text is measured in windows";
            unused.push(UnusedOption::new("window", reason));
        }
        if !has_texts && self.protocol == Protocol::LlmPruner {
            let reason = "questions of the protocol `llm-pruner` never have special tokens";
            unused.push(UnusedOption::new("add_bos_token", reason));
        }
        if !has_questions && !self.tasks.is_empty() {
            let reason = "it applies to questions, and every task is a text";
            let keys = ["protocol", "shots", "shots_seed"];
            unused.extend(UnusedOption::all(&keys, reason));
        }
        faults.extend(duplicate_name_faults(&task_names, &self.corpus_names()));
        for (index, corpus) in self.corpora.iter().enumerate() {
            let source = self.corpus_source(corpus.as_ref());
            faults.extend(environment.check_corpus(&format!("corpora[{index}]"), &source));
            if let Some(window) = self.window {
                faults.extend(environment.check_window(&source, window));
            }
        }
        let model = environment.model.as_ref();
        if let Some(model) = model.filter(|model| !model.has_tokenizer)
            && !self.tasks.is_empty()
        {
            faults.push(OptionFault::new(
                "tasks",
                "tasks are text, and the model's folder has no tokenizer.json",
                model.missing_tokenizer_help.clone(),
            ));
        }
        let adds_tokens = self.add_bos_token
            && (!has_questions || self.protocol == Protocol::Harness || uses_prefix_token);
        if adds_tokens && !self.tasks.is_empty() {
            faults.extend(environment.check_special_tokens("tasks"));
        }
        if uses_prefix_token {
            faults.extend(environment.check_prefix_token("tasks"));
        }
        if let Some(window) = self.window {
            faults.extend(environment.check_length("window", "window", window));
        }
        faults
    }

    fn run(&self, context: &Context, inputs: &StageValues) -> Result<StageOutput, StageError> {
        Ok(run(self, context, inputs.require(MODEL)?)?.into())
    }
}

/// Faults of names: the tables identify a task or corpus by its name, so names must be unique, and
/// `average` is reserved for the mean over tasks.
fn duplicate_name_faults(tasks: &[String], corpora: &[String]) -> Vec<OptionFault> {
    let names: Vec<&String> = tasks.iter().chain(corpora).collect();
    let mut faults = Vec::new();
    for (index, &name) in names.iter().enumerate() {
        let message = if name == choices::AVERAGE_TASK_NAME {
            format!("`{name}` is the name of the tasks' mean")
        } else if names[..index].contains(&name) {
            format!("`{name}` is measured twice: a row of the table is known by its name")
        } else {
            continue;
        };
        let key = match index.checked_sub(tasks.len()) {
            None => format!("tasks[{index}]"),
            Some(corpus) => format!("corpora[{corpus}]"),
        };
        faults.push(OptionFault::new(
            key,
            message,
            "give each a name of its own",
        ));
    }
    faults
}

/// The results so far, and the state that an interrupted evaluation leaves on disk.
#[derive(Debug, Default, Serialize, Deserialize)]
struct PartialEvaluation {
    /// How many entries of the list of tasks, followed by corpora, are done.
    completed_count: usize,
    rows: Vec<EvaluateRow>,
    documents: Vec<DocumentRow>,
    /// Of the tasks that are done, and of the current one.
    samples: Vec<SampleRow>,
    /// −Σ log p of each window of the current text that is done in its current pass.
    window_nlls: Vec<f64>,
    /// The current pass over the current text: `WINDOW_PASS` or `DOCUMENT_PASS`.
    text_pass: u32,
}

/// Measures tasks, then corpora.
pub fn run(options: &Options, context: &Context, model: &Model) -> Result<Vec<Table>, StageError> {
    let mut measured: PartialEvaluation = context.checkpoint.read().unwrap_or_default();
    let total = options.tasks.len() + options.corpora.len();
    for index in measured.completed_count..total {
        context.checkpoint_or_stop(|| &measured)?;
        if let Some(name) = options.tasks.get(index) {
            let task = Task::find(name, context.data_folder.as_deref())?;
            measure_task(&task, options, context, model, &mut measured)?;
        } else {
            let path = Path::new(&options.corpora[index - options.tasks.len()]);
            let rows = perplexity::corpus_perplexity(path, options, context, model, &mut measured)?;
            measured.add_rows(rows);
        }
        measured.completed_count += 1;
    }
    let mut rows = measured.rows;
    if options.protocol == Protocol::LlmPruner {
        rows.extend(choices::average_row(&rows));
    }
    let values: Vec<String> = rows
        .iter()
        .map(|row| {
            // Only accuracies have a chance level.
            let value = match row.chance {
                Some(_) => format_percent(row.value),
                None => format_significant(row.value),
            };
            format!("{} {} {value}", row.task, row.metric)
        })
        .collect();
    tracing::info!("{}", values.join(", "));
    let mut tables = vec![
        Table::from_rows("evaluate", &rows)?,
        Table::from_rows("evaluate_documents", &measured.documents)?,
    ];
    if !measured.samples.is_empty() {
        tables.push(Table::from_rows("evaluate_samples", &measured.samples)?);
    }
    Ok(tables)
}

/// Measures one task: questions, or a text in windows, in whole documents, or both.
fn measure_task(
    task: &Task,
    options: &Options,
    context: &Context,
    model: &Model,
    measured: &mut PartialEvaluation,
) -> Result<(), StageError> {
    if !task.is_text() {
        let rows = choices::measure_choices(task, options, context, model, measured)?;
        measured.add_rows(rows);
        return Ok(());
    }
    let (mut rows, mut documents) = MetricRows::default();
    if task.metrics.contains(&Metric::Perplexity) {
        (rows, documents) =
            perplexity::task_window_perplexity(task, options, context, model, measured)?;
    }
    if task
        .metrics
        .iter()
        .any(|&metric| metric != Metric::Perplexity)
    {
        let (more_rows, more_documents) =
            perplexity::document_perplexities(task, options, context, model, measured)?;
        rows.extend(more_rows);
        documents.extend(more_documents);
    }
    measured.add_rows((rows, documents));
    Ok(())
}

/// Rows of `evaluate.parquet`, and rows of `evaluate_documents.parquet` with the share of each
/// document in them.
type MetricRows = (Vec<EvaluateRow>, Vec<DocumentRow>);

impl PartialEvaluation {
    /// Adds all rows of a task or corpus, which is then done, and resets the state of its windows.
    fn add_rows(&mut self, (rows, documents): MetricRows) {
        self.rows.extend(rows);
        self.documents.extend(documents);
        self.window_nlls = Vec::new();
        self.text_pass = 0;
    }
}
