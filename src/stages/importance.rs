//! `importance`: Model and groups → a score for every channel of every member (LLM-Pruner, section 3.2).

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::products::{ChannelScores, Compat, InputMeans};
use super::{Context, Environment, InputFile, Interrupted, OptionFault, size_faults};
use secateur_data::corpus::{self, CorpusError, CorpusSource, Sample};
use secateur_model::Model;
use secateur_model::groups::{DependencyGraph, GroupKind, UnitLayout};
use secateur_model::walk::Sequence;
use secateur_model::wiring::Axis;
use secateur_store::tables::{Table, TableError};

mod activation;
mod magnitude;
pub mod taylor;

/// Scores every channel of every group member.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The criterion.
    pub method: Method,
    /// The form of the Taylor criterion; the other methods have none. Default `element-first`.
    #[serde(default)]
    pub taylor: Taylor,
    /// How the Fisher diagonal of the second-order forms is made from per-sample gradients. Default `mean`.
    #[serde(default)]
    pub fisher: Fisher,
    /// Calibration data: a text file, JSONL with a text field, or JSONL rows of token ids. `taylor`, `wifv` and `wanda`
    /// need it, the other methods look at no data.
    pub corpus: Option<String>,
    /// What separates the documents of a text file. Default: the file is one document.
    pub separator: Option<String>,
    /// The field of a JSONL row that holds its text. Default `text`.
    pub field: Option<String>,
    /// Which part of the corpus is read. Default `random`.
    #[serde(default)]
    pub sample: Sample,
    /// Number of calibration samples, 1 to 1048576. With `sample = "file"` the most that are read. Default 10.
    #[serde(default = "ten")]
    pub samples: usize,
    /// Tokens of a random sample, 2 to the model's positions. Default 64.
    #[serde(default = "sixty_four")]
    pub length: usize,
    /// Whether the reference implementation's peculiarities are reproduced. Default `corrected`.
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
    /// Fluctuation of the input channel times the squared norm of the weight column (FLAP, AAAI 2024).
    Wifv,
    /// |w| times the norm of the input channel (Wanda, ICLR 2024), summed over a row or column.
    Wanda,
    /// Units in their order, the first the most important: layer-wise this keeps the first layers.
    First,
}

/// The forms of the Taylor criterion. g is the gradient of the calibration loss, F the Fisher diagonal.
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

/// How squared per-sample gradients become the Fisher diagonal.
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
    /// Where the calibration data is read from.
    pub fn corpus_source(&self) -> Option<CorpusSource> {
        let path = self.corpus.as_ref()?;
        Some(CorpusSource {
            separator: self.separator.clone(),
            field: self.field.clone(),
            ..CorpusSource::from_path(path.as_ref())
        })
    }

    /// Whether the method looks at calibration data.
    pub fn needs_corpus(&self) -> bool {
        matches!(self.method, Method::Taylor | Method::Wifv | Method::Wanda)
    }

    /// What the stage reads.
    pub fn inputs(&self, _: Option<&Path>) -> Vec<InputFile> {
        let corpus = self.corpus.iter().filter(|_| self.needs_corpus());
        corpus.map(|path| InputFile::OnDisk(path.into())).collect()
    }

    pub fn faults(&self) -> Vec<OptionFault> {
        let mut faults = size_faults([("samples", self.samples), ("length", self.length)]);
        if self.needs_corpus() && self.corpus.is_none() {
            faults.push(OptionFault::new(
                "method",
                "this method needs calibration data",
                "add `corpus = \"…\"`, a text file or JSONL",
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

    pub fn environment_faults(&self, world: &mut Environment) -> Vec<OptionFault> {
        world.add_weights(1);
        world.has_input_means = self.method == Method::Wifv;
        match self.method {
            Method::Taylor => world.add_backward_walk(self.samples, self.length),
            Method::Wifv | Method::Wanda => {
                world.add_forward_pass(self.samples.min(activation::CALIBRATION_BATCH), self.length)
            }
            Method::Random | Method::L1 | Method::L2 | Method::First => {}
        }
        let mut faults = self
            .corpus_source()
            .map(|source| world.check_corpus("corpus", &source))
            .unwrap_or_default();
        if self.needs_corpus() && self.sample == Sample::Random {
            faults.extend(world.check_length("length", "sample", self.length));
        }
        faults
    }
}

/// One row of `importance.parquet`: layers and channels of the model as it is at this place of the pipeline.
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
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    #[error(transparent)]
    Metrics(#[from] TableError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("the calibration loss is {0}: the model or the data is broken")]
    NonFiniteLoss(f64),
    #[error(
        "`{method}` looks at the inputs of matrices and scores blocks only; write grouping = \"block\", or another method"
    )]
    NeedsBlockGrouping { method: &'static str },
}

/// Scores every channel of every member of every group.
pub fn run(
    options: &Options,
    context: &Context,
    model: &Model,
    graph: &DependencyGraph,
) -> Result<(ChannelScores, Vec<Table>), Error> {
    let mut means = InputMeans::new();
    let groups = match options.method {
        Method::Random => magnitude::random_scores(model, graph, context.seed.derive("random")),
        Method::First => magnitude::unit_order_scores(model, graph),
        Method::L1 => magnitude::magnitude_scores(model, graph, options.compat, |w| w.abs()),
        Method::L2 => magnitude::magnitude_scores(model, graph, options.compat, |w| w * w),
        Method::Taylor => {
            let form = taylor::TaylorCriterion {
                form: options.taylor,
                fisher: options.fisher,
            };
            taylor::taylor_scores(
                form,
                context,
                model,
                graph,
                &calibration_sequences(options, context, model)?,
            )?
        }
        Method::Wanda | Method::Wifv => {
            let (groups, seen) = activation::activation_scores(
                options.method,
                context,
                model,
                graph,
                &calibration_sequences(options, context, model)?,
            )?;
            means = seen;
            groups
        }
    };
    let scores = ChannelScores {
        groups,
        is_signed: matches!(
            (options.method, options.taylor),
            (Method::Taylor, Taylor::Vector | Taylor::VectorMixed)
        ),
        is_magnitude: matches!(options.method, Method::L1 | Method::L2),
        compat: options.compat,
        input_means: means,
    };
    if options.compat == Compat::Reference
        && graph
            .groups
            .iter()
            .any(|group| group.kind == GroupKind::Hidden)
    {
        match (options.method, options.taylor) {
            (
                Method::Taylor,
                Taylor::ElementSecond | Taylor::ElementMixed | Taylor::VectorMixed,
            ) => {
                tracing::warn!(
                    "the reference keeps no squared gradients for channels and raises; they are scored as blocks are"
                );
            }
            (Method::L1 | Method::L2, _) if model.lm_head.is_none() => {
                tracing::warn!(
                    "the reference cannot take the magnitudes of a tied head and raises; it is left out"
                );
            }
            _ => {}
        }
    }
    let table = Table::from_rows("importance", &table_rows(graph, &scores))?;
    tracing::info!(method = ?options.method, channels = table.rows.num_rows(), "scored");
    Ok((scores, vec![table]))
}

/// The calibration sequences.
fn calibration_sequences(
    options: &Options,
    context: &Context,
    model: &Model,
) -> Result<Vec<Sequence>, Error> {
    let Some(source) = options.corpus_source() else {
        return Ok(Vec::new());
    };
    let (tokenizer, vocab) = (model.tokenizer.as_deref(), model.config.vocab);
    let rows = match options.sample {
        Sample::Random => corpus::sample_windows(
            &source,
            tokenizer,
            vocab,
            options.samples,
            options.length,
            &mut context.seed.derive("windows").rng(),
        )?,
        Sample::File => {
            let rows: Vec<_> = corpus::read_rows(&source, tokenizer, vocab)?
                .into_iter()
                .take(options.samples)
                .collect();
            corpus::check_row_lengths(&source, &rows, model.config.max_positions)?;
            rows
        }
    };
    let sequences = rows
        .into_iter()
        .map(|row| Sequence::new(row.ids, &row.loss_mask));
    let sequences: Vec<Sequence> = sequences
        .filter(|sequence| !sequence.targets.is_empty())
        .collect();
    if sequences.is_empty() {
        Err(CorpusError::NothingToPredict(source.path).into())
    } else {
        Ok(sequences)
    }
}

fn table_rows(graph: &DependencyGraph, scores: &ChannelScores) -> Vec<ImportanceRow> {
    let mut rows = Vec::new();
    for (group, members) in graph.groups.iter().zip(&scores.groups) {
        for scored in members {
            rows.extend(scored.channels.iter().enumerate().map(|(channel, &score)| {
                ImportanceRow {
                    layer: group.layer as u32,
                    group: group.kind.name().to_owned(),
                    member: group.members[scored.member_index].name.clone(),
                    channel: channel as u32,
                    score: if scores.is_signed { score.abs() } else { score },
                }
            }));
        }
    }
    rows
}

/// Reduces f(element index) over each channel of a member: rows, columns, or the whole weight.
fn reduce_channels(
    lie: UnitLayout,
    rows: usize,
    cols: usize,
    mut element: impl FnMut(usize) -> f64,
) -> Vec<f64> {
    match lie {
        UnitLayout::AlongAxis(Axis::Rows) => (0..rows)
            .map(|r| (r * cols..(r + 1) * cols).map(&mut element).sum())
            .collect(),
        UnitLayout::AlongAxis(Axis::Cols) => {
            let mut sums = vec![0.0; cols];
            for r in 0..rows {
                sums.iter_mut()
                    .enumerate()
                    .for_each(|(c, sum)| *sum += element(r * cols + c));
            }
            sums
        }
        UnitLayout::WholeTensor => vec![(0..rows * cols).map(element).sum()],
    }
}
