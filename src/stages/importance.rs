//! `importance`: model and groups → a score for every channel of every member (LLM-Pruner, section
//! 3.2).

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::environment::{Environment, OptionFault, UnusedOption};
use super::error::{RestoreError, StageError};
use super::facts::{EarlierStages, ImportanceFacts};
use super::products::{ChannelScores, Compat};
use super::stage::{Stage, StageOutput, StageType, describe_options, option_text};
use super::stored;
use super::values::{GRAPH, MODEL, SCORES, StageValues, ValueKind};
use super::{Context, InputFile, size_faults};
use secateur_data::corpus::{self, CorpusError, CorpusSource, Sample};
use secateur_model::Model;
use secateur_model::groups::{DependencyGraph, Group, GroupKind};
use secateur_model::walk::Sequence;
use secateur_store::cache::{ProductDraft, StoredProduct};
use secateur_store::tables::Table;

mod activation;
mod criterion;
mod magnitude;
mod root_scores;
pub mod taylor;

use criterion::{Criterion, CriterionInput};

pub static TYPE: StageType = StageType {
    needs: &[ValueKind::Model, ValueKind::Graph],
    makes: &[ValueKind::Scores],
    spends: &[ValueKind::GroupScores],
    uses_seed: true,
    summary,
    ..StageType::new::<Options>("importance")
};

/// The method, and the form of the Taylor criterion where that is the method.
fn summary(options: &Map<String, Value>) -> String {
    if options
        .get("method")
        .is_some_and(|method| method == "taylor")
    {
        describe_options(options, &["method", "taylor"])
    } else {
        describe_options(options, &["method"])
    }
}

/// Scores every channel of every group member.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The criterion.
    pub method: Method,
    /// The form of the Taylor criterion; no effect on other methods. Default `element-first`.
    #[serde(default)]
    pub taylor: Taylor,
    /// How the second-order forms compute the Fisher diagonal from the gradients g_j of the N
    /// samples. Default `mean`.
    #[serde(default)]
    pub fisher: Fisher,
    /// Calibration data: a text file, or rows (JSON Lines, JSON, CSV, Parquet) with a text or with
    /// token ids. Any of them may be compressed with gzip or Zstandard.
    /// `taylor`, `wifv` and `wanda` need it, the other methods do not read it.
    pub corpus: Option<String>,
    /// The text between two documents of a text file. Default: the file is one document.
    pub separator: Option<String>,
    /// The field of a row that holds its text. Default `text`.
    pub field: Option<String>,
    /// Which part of the corpus is read. Default `random`.
    #[serde(default)]
    pub sample: Sample,
    /// Number of calibration samples, 1 to 1048576; with `sample = "file"` the largest number of
    /// rows. Default 10.
    #[serde(default = "ten")]
    pub samples: usize,
    /// Tokens of a random sample, 2 to the model's positions. Default 64.
    #[serde(default = "sixty_four")]
    pub length: usize,
    /// Whether the result follows the reference implementation where that differs from the paper.
    /// Default `corrected`.
    #[serde(default)]
    pub compat: Compat,
}

fn ten() -> usize {
    10
}

fn sixty_four() -> usize {
    64
}

/// The criteria.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Uniform random numbers, one per channel of the group's root.
    Random,
    /// Σ|w| of a row or column.
    L1,
    /// Σw² of a row or column, no root, as the reference.
    L2,
    /// A Taylor expansion of the loss around the weights (equations 3 to 5).
    Taylor,
    /// Variance of the input channel times the squared norm of the weight column (FLAP, AAAI 2024).
    Wifv,
    /// |w| times the norm of the input channel (Wanda, ICLR 2024), summed over a row or column.
    Wanda,
    /// The order of units, the first the most important: with grouping = "layer" this keeps the
    /// first layers.
    First,
}

/// The forms of the Taylor criterion. g is the gradient of the calibration loss, F the Fisher
/// diagonal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Taylor {
    /// |Σ g·w| over a row or column: equation 3 without its second-order term, the reference's `vectorize`.
    Vector,
    /// |Σ g·w − ½ Σ F·w²|: equation 3.
    VectorMixed,
    /// Σ |g·w|: the first-order term of equation 5, the reference's `param_first`.
    #[default]
    ElementFirst,
    /// Σ |F·w²|: the second-order term, the reference's `param_second`.
    ElementSecond,
    /// Σ |g·w − ½ F·w²|: equation 5, the reference's `param_mix`.
    ElementMixed,
}

/// How squared gradients of single samples are combined into the Fisher diagonal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fisher {
    /// (1/N) Σ g_j²
    #[default]
    Mean,
    /// Σ g_j², as equation 5 is printed.
    Sum,
}

impl Options {
    /// The criterion of the method. A new one is its file in `importance/`, a variant of
    /// [`Method`], and a line here.
    fn criterion(&self) -> Box<dyn Criterion> {
        match self.method {
            Method::Random => Box::new(root_scores::Random),
            Method::First => Box::new(root_scores::UnitOrder),
            Method::L1 => Box::new(magnitude::Magnitude::L1),
            Method::L2 => Box::new(magnitude::Magnitude::L2),
            Method::Wanda => Box::new(activation::Wanda),
            Method::Wifv => Box::new(activation::Wifv),
            Method::Taylor => Box::new(taylor::TaylorCriterion {
                form: self.taylor,
                fisher: self.fisher,
            }),
        }
    }

    /// Where the calibration data is read from.
    fn corpus_source(&self) -> Option<CorpusSource> {
        let path = self.corpus.as_ref()?;
        Some(CorpusSource {
            separator: self.separator.clone(),
            field: self.field.clone(),
            ..CorpusSource::from_path(path.as_ref())
        })
    }

    fn needs_corpus(&self) -> bool {
        self.criterion().needs_corpus()
    }
}

impl Stage for Options {
    fn stage_type(&self) -> &'static StageType {
        &TYPE
    }

    fn input_files(&self, _: Option<&Path>) -> Vec<InputFile> {
        match &self.corpus {
            Some(path) if self.needs_corpus() => vec![InputFile::OnDisk(path.into())],
            _ => Vec::new(),
        }
    }

    fn option_faults(&self) -> Vec<OptionFault> {
        let mut faults = size_faults([("samples", self.samples), ("length", self.length)]);
        if self.needs_corpus() && self.corpus.is_none() {
            faults.push(OptionFault::new(
                "method",
                "this method needs calibration data",
                "add `corpus = \"…\"`, a text file or rows",
            ));
        }
        if self.length == 1 {
            faults.push(OptionFault::new(
                "length",
                format!("a sample of {} tokens predicts nothing", self.length),
                "write at least 2; the usual number is 64",
            ));
        }
        faults
    }

    fn faults_after(&self, earlier: &EarlierStages) -> Vec<OptionFault> {
        if earlier.has_block_groups || !self.criterion().needs_block_groups() {
            return Vec::new();
        }
        vec![OptionFault::new(
            "method",
            "this method reads the inputs of matrices and scores blocks only",
            "write grouping = \"block\", or another method",
        )]
    }

    fn unused_options(&self, _: &EarlierStages) -> Vec<UnusedOption> {
        let mut unused = Vec::new();
        let method = self.criterion().name();
        if self.method != Method::Taylor {
            let reason = format!("`method` is `{method}`, not `taylor`");
            unused.extend(UnusedOption::all(&["taylor", "fisher"], &reason));
        } else if matches!(self.taylor, Taylor::Vector | Taylor::ElementFirst) {
            let reason = "this form of `taylor` has no second-order term";
            unused.push(UnusedOption::new("fisher", reason));
        }
        if !self.needs_corpus() {
            let keys = [
                "corpus",
                "separator",
                "field",
                "sample",
                "samples",
                "length",
            ];
            let reason = format!("the method `{method}` reads no text");
            unused.extend(UnusedOption::all(&keys, &reason));
        } else if self.sample == Sample::File {
            let reason = "`sample = \"file\"` takes every row whole";
            unused.push(UnusedOption::new("length", reason));
        }
        unused
    }

    fn state_facts(&self, facts: &mut EarlierStages) {
        let criterion = self.criterion();
        facts.importance = Some(ImportanceFacts {
            method: criterion.name(),
            compat: self.compat,
            scores_output_member_only: criterion.scores_output_member_only(),
            has_input_means: criterion.has_input_means(),
        });
    }

    fn environment_faults(&self, environment: &mut Environment) -> Vec<OptionFault> {
        environment.add_weights(1);
        self.criterion()
            .add_estimate(environment, self.samples, self.length);
        let mut faults = Vec::new();
        if let Some(source) = self.corpus_source() {
            faults.extend(environment.check_corpus("corpus", &source));
            if self.needs_corpus() {
                let (samples, length) = ((self.samples, ten()), self.length);
                faults.extend(environment.check_samples(&source, self.sample, samples, length));
            }
        }
        if self.needs_corpus() && self.sample == Sample::Random {
            faults.extend(environment.check_length("length", "sample", self.length));
        }
        faults
    }

    fn run(&self, context: &Context, inputs: &StageValues) -> Result<StageOutput, StageError> {
        let (scores, tables) = run(
            self,
            context,
            inputs.require(MODEL)?,
            inputs.require(GRAPH)?,
        )?;
        Ok(StageOutput {
            values: StageValues::default().with(SCORES, scores),
            tables,
        })
    }

    fn store(&self, values: &StageValues, draft: &ProductDraft) -> Result<(), StageError> {
        stored::write_value(draft, values.require(SCORES)?)
    }

    fn restore(&self, product: &StoredProduct) -> Result<StageValues, RestoreError> {
        Ok(StageValues::default().with(SCORES, stored::read_value(product)?))
    }
}

/// One row of `importance.parquet`. Layers and channels are those of the stage's input model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImportanceRow {
    pub layer: u32,
    /// `attention`, `mlp`, `hidden` or `layer`.
    pub group: String,
    /// Tensor name.
    pub member: String,
    pub channel: u32,
    pub score: f64,
}

/// Importance could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the calibration loss is {0}: the model or the data is broken")]
    NonFiniteLoss(f64),
    #[error(
        "`{method}` reads the inputs of matrices and scores blocks only; write \
         grouping = \"block\", or another method"
    )]
    NeedsBlockGrouping { method: &'static str },
}

/// Scores every channel of every member of every group.
pub fn run(
    options: &Options,
    context: &Context,
    model: &Model,
    graph: &DependencyGraph,
) -> Result<(ChannelScores, Vec<Table>), StageError> {
    let criterion = options.criterion();
    let is_block_group =
        |group: &Group| matches!(group.kind, GroupKind::Attention | GroupKind::Mlp);
    if criterion.needs_block_groups() && !graph.groups.iter().all(is_block_group) {
        let method = criterion.name();
        return Err(Error::NeedsBlockGrouping { method }.into());
    }
    let sequences = if criterion.needs_corpus() {
        calibration_sequences(options, context, model)?
    } else {
        Vec::new()
    };
    let scored = criterion.score(&CriterionInput {
        context,
        model,
        graph,
        sequences: &sequences,
        compat: options.compat,
    })?;
    let scores = ChannelScores {
        groups: scored.groups,
        is_signed: criterion.is_signed(),
        is_magnitude: criterion.is_magnitude(),
        compat: options.compat,
        input_means: scored.input_means,
    };
    let is_residual_group = |group: &Group| group.kind == GroupKind::Hidden;
    let has_residual_group = graph.groups.iter().any(is_residual_group);
    if options.compat == Compat::Reference
        && has_residual_group
        && let Some(difference) = criterion.reference_difference(model)
    {
        tracing::warn!("{difference}");
    }
    let table = Table::from_rows("importance", &table_rows(graph, &scores))?;
    tracing::info!(
        method = option_text(&options.method),
        channels = table.rows.num_rows(),
        "scored"
    );
    Ok((scores, vec![table]))
}

/// The calibration sequences that have at least one target.
fn calibration_sequences(
    options: &Options,
    context: &Context,
    model: &Model,
) -> Result<Vec<Sequence>, CorpusError> {
    let Some(source) = options.corpus_source() else {
        return Ok(Vec::new());
    };
    let (tokenizer, vocab) = (model.tokenizer.as_deref(), model.config.vocab);
    let rows = match options.sample {
        Sample::Random => {
            let mut stream = context.seed.derive("windows").rng();
            let (samples, length) = (options.samples, options.length);
            corpus::sample_windows(&source, tokenizer, vocab, samples, length, &mut stream)?
        }
        Sample::File => {
            let mut rows = corpus::read_rows(&source, tokenizer, vocab)?;
            rows.truncate(options.samples);
            corpus::check_row_lengths(&source, &rows, model.config.max_positions)?;
            rows
        }
    };
    let sequences: Vec<Sequence> = rows
        .into_iter()
        .map(|row| Sequence::new(row.ids, &row.loss_mask))
        .filter(|sequence| !sequence.targets.is_empty())
        .collect();
    if sequences.is_empty() {
        return Err(CorpusError::NothingToPredict(source.path));
    }
    Ok(sequences)
}

fn table_rows(graph: &DependencyGraph, scores: &ChannelScores) -> Vec<ImportanceRow> {
    let mut rows = Vec::new();
    for (group, members) in graph.groups.iter().zip(&scores.groups) {
        for member in members {
            for (channel, &score) in member.channels.iter().enumerate() {
                rows.push(ImportanceRow {
                    layer: group.layer as u32,
                    group: group.kind.name().to_owned(),
                    member: group.members[member.member_index].name.clone(),
                    channel: channel as u32,
                    score: if scores.is_signed { score.abs() } else { score },
                });
            }
        }
    }
    rows
}
