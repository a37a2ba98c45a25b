//! Perplexity, in two protocols.
//!
//! *Windows* (LLM-Pruner's, which is GPTQ's): a text is encoded once, cut into windows without overlap, the rest dropped; each
//! window predicts all its tokens but the first; exp of the mean over all predictions.
//!
//! *Whole documents* (lm-evaluation-harness, `loglikelihood_rolling`): every token of a document is predicted once, from as much
//! before it as fits, and the sum is divided by words or bytes.

use std::path::Path;

use super::{
    DocumentRow, Error, EvaluateRow, MetricRows, Options, PartialEvaluation, Protocol, statistics,
};
use crate::stages::{Context, StageError};
use secateur_data::corpus::{self, CorpusError, CorpusSource};
use secateur_data::task::{Metric, Task, TextDocument};
use secateur_model::Model;
use secateur_model::tokenizer::Tokenizer;
use secateur_model::walk::{self, Sequence};
use secateur_tensor::ops::TokenTarget;

/// Tokens between two looks at the clock and at a request to stop.
pub const TOKENS_PER_CHUNK: usize = 4096;

/// What a corpus is called in the table: its file's stem.
pub fn corpus_name(path: &Path) -> String {
    path.file_stem()
        .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

/// The perplexity of one file in windows. Rows of a JSONL file are sequences of their own.
pub fn corpus_perplexity(
    path: &Path,
    options: &Options,
    context: &Context,
    model: &Model,
    measured: &mut PartialEvaluation,
) -> Result<MetricRows, StageError> {
    let tokenizer = model.tokenizer.as_deref();
    let source = CorpusSource {
        adds_special_tokens: options.add_bos_token,
        ..CorpusSource::from_path(path)
    };
    let rows = corpus::read_rows(&source, tokenizer, model.config.vocab)?;
    let rows = rows
        .into_iter()
        .map(|row| (row.ids, row.loss_mask))
        .collect();
    let found = window_perplexity(
        (&corpus_name(path), ""),
        rows,
        options,
        context,
        model,
        measured,
    )?;
    found.ok_or_else(|| CorpusError::NothingToPredict(path.to_owned()).into())
}

/// The perplexity of a task's documents in windows; each document is cut for itself.
pub fn task_window_perplexity(
    task: &Task,
    options: &Options,
    context: &Context,
    model: &Model,
    measured: &mut PartialEvaluation,
) -> Result<MetricRows, StageError> {
    let tokenizer = model.tokenizer.as_deref().ok_or(Error::NoTokenizer)?;
    let encode = |text: TextDocument| {
        let ids = tokenizer.encode(&text.text, options.add_bos_token)?;
        Ok((ids.clone(), vec![true; ids.len()]))
    };
    let rows = task
        .text_documents(options.limit)?
        .into_iter()
        .map(encode)
        .collect::<Result<Vec<_>, StageError>>()?;
    let found = window_perplexity(
        (&task.name, &task.split),
        rows,
        options,
        context,
        model,
        measured,
    )?;
    found.ok_or_else(|| Error::NothingToPredict(task.name.clone()))
}

/// A sequence that is shorter than the window is taken whole. None: there is nothing to predict.
fn window_perplexity(
    (task, split): (&str, &str),
    rows: Vec<(Vec<u32>, Vec<bool>)>,
    options: &Options,
    context: &Context,
    model: &Model,
    measured: &mut PartialEvaluation,
) -> Result<Option<MetricRows>, StageError> {
    let mut windows = Vec::new();
    for (ids, counts) in rows {
        let length = options
            .window_or_default()
            .min(model.config.max_positions)
            .min(ids.len())
            .max(1);
        let cut = ids.chunks_exact(length).zip(counts.chunks_exact(length));
        windows.extend(
            cut.map(|(ids, counts)| Sequence::new(ids.to_vec(), counts))
                .filter(|s| !s.targets.is_empty()),
        );
    }
    if windows.is_empty() {
        return Ok(None);
    }
    let nll = window_nlls((task, 0), &windows, context, model, measured)?;
    let predicted: Vec<f64> = windows
        .iter()
        .map(|window| window.targets.len() as f64)
        .collect();
    let of = MetricRowBuilder {
        task,
        split,
        protocol: options.protocol_label(Protocol::LlmPruner, false),
        predicted_tokens: predicted.iter().sum::<f64>() as u64,
    };
    let (log, shares) = statistics::ratio_and_shares(&nll, &predicted);
    of.exponential_rows(Metric::Perplexity, log, &shares)
        .map(Some)
}

/// Word and byte perplexity and bits per byte of a task's documents, each whole.
pub fn document_perplexities(
    task: &Task,
    options: &Options,
    context: &Context,
    model: &Model,
    measured: &mut PartialEvaluation,
) -> Result<MetricRows, StageError> {
    let tokenizer = model.tokenizer.as_deref().ok_or(Error::NoTokenizer)?;
    let limit = options.max_length.unwrap_or(model.config.max_positions);
    let texts = task.text_documents(options.limit)?;
    let (mut windows, mut ends) = (Vec::new(), Vec::new());
    for text in &texts {
        windows.extend(rolling_windows(
            text,
            task,
            options.add_bos_token,
            tokenizer,
            limit,
        )?);
        ends.push(windows.len());
    }
    if windows.is_empty() {
        return Err(Error::NothingToPredict(task.name.clone()));
    }
    let each = window_nlls((&task.name, 1), &windows, context, model, measured)?;
    let starts = std::iter::once(&0).chain(&ends);
    let nll: Vec<f64> = starts
        .zip(&ends)
        .map(|(&start, &end)| each[start..end].iter().sum())
        .collect();
    let n = windows
        .iter()
        .map(|window| window.targets.len() as u64)
        .sum();
    let of = MetricRowBuilder {
        task: &task.name,
        split: &task.split,
        protocol: options.protocol_label(Protocol::Harness, false),
        predicted_tokens: n,
    };
    let words: Vec<f64> = texts.iter().map(|text| text.word_count as f64).collect();
    let bytes: Vec<f64> = texts.iter().map(|text| text.byte_count as f64).collect();
    let mut all = MetricRows::default();
    for &metric in &task.metrics {
        let found = match metric {
            Metric::WordPerplexity | Metric::BytePerplexity => {
                let (log, shares) = statistics::ratio_and_shares(
                    &nll,
                    if metric == Metric::WordPerplexity {
                        &words
                    } else {
                        &bytes
                    },
                );
                of.exponential_rows(metric, log, &shares)?
            }
            Metric::BitsPerByte => {
                let (nats, shares) = statistics::ratio_and_shares(&nll, &bytes);
                of.metric_rows(
                    metric,
                    nats / std::f64::consts::LN_2,
                    shares
                        .into_iter()
                        .map(|share| share / std::f64::consts::LN_2),
                )?
            }
            Metric::Perplexity | Metric::Acc | Metric::AccNorm => continue,
        };
        all.0.extend(found.0);
        all.1.extend(found.1);
    }
    Ok(all)
}

/// A document in windows of so many tokens, each predicted once: the first behind BOS (or EOS), every later one behind the token
/// before it, the last filled up with what stands before.
fn rolling_windows(
    text: &TextDocument,
    task: &Task,
    special: bool,
    tokenizer: &Tokenizer,
    limit: usize,
) -> Result<Vec<Sequence>, StageError> {
    let tokens = tokenizer.encode(&text.text, special)?;
    if tokens.is_empty() {
        return Ok(Vec::new());
    }
    let no_prefix = || Error::NoToken {
        task: task.name.clone(),
        doc: text.index,
        what: "document's beginning",
    };
    let all: Vec<u32> = std::iter::once(tokenizer.prefix_token().ok_or_else(no_prefix)?)
        .chain(tokens)
        .collect();
    let window = |first: usize| {
        // tokens first..end of `all` are predicted, each from the one before it
        let end = (first + limit).min(all.len());
        let begin = if first == 1 { 0 } else { end - 1 - limit };
        let targets = (first..end)
            .map(|at| TokenTarget {
                position: at - 1 - begin,
                token_id: all[at],
            })
            .collect();
        Sequence {
            ids: all[begin..end - 1].to_vec(),
            targets,
        }
    };
    Ok((1..all.len()).step_by(limit).map(window).collect())
}

/// −Σ log p of each window. What was measured of this part before an interruption is not measured again.
fn window_nlls(
    (task, part): (&str, u32),
    windows: &[Sequence],
    context: &Context,
    model: &Model,
    measured: &mut PartialEvaluation,
) -> Result<Vec<f64>, StageError> {
    if measured.text_pass != part {
        (measured.window_nlls, measured.text_pass) = (Vec::new(), part);
    }
    let bar = context.progress.bar(task, windows.len() as u64);
    bar.skip(measured.window_nlls.len() as u64);
    if !measured.window_nlls.is_empty() {
        tracing::info!(
            task,
            windows = measured.window_nlls.len(),
            "reading goes on where it was interrupted"
        );
    }
    let longest = windows
        .iter()
        .map(|window| window.ids.len())
        .max()
        .unwrap_or(1);
    for chunk in windows[measured.window_nlls.len()..].chunks((TOKENS_PER_CHUNK / longest).max(1)) {
        context.checkpoint_or_stop(|| &*measured)?;
        let scores = walk::token_scores(model, chunk);
        measured.window_nlls.extend(
            scores
                .iter()
                .map(|of| -of.iter().map(|s| s.log_probability).sum::<f64>()),
        );
        chunk.iter().for_each(|_| bar.step());
    }
    Ok(std::mem::take(&mut measured.window_nlls))
}

/// What the rows of one measurement share.
struct MetricRowBuilder<'a> {
    task: &'a str,
    split: &'a str,
    protocol: String,
    predicted_tokens: u64,
}

impl MetricRowBuilder<'_> {
    /// exp of a mean.
    fn exponential_rows(
        &self,
        metric: Metric,
        log: f64,
        shares: &[f64],
    ) -> Result<MetricRows, StageError> {
        let value = log.exp();
        self.metric_rows(
            metric,
            value,
            shares.iter().map(|share| value * (1.0 + share - log)),
        )
    }

    fn metric_rows(
        &self,
        metric: Metric,
        value: f64,
        shares: impl Iterator<Item = f64>,
    ) -> Result<MetricRows, StageError> {
        if !value.is_finite() {
            return Err(Error::NotFinite {
                what: self.task.to_owned(),
                value,
            });
        }
        let (task, metric) = (self.task.to_owned(), metric.name().to_owned());
        let document = |(doc, value)| DocumentRow {
            task: task.clone(),
            metric: metric.clone(),
            doc: doc as u64,
            value,
        };
        let documents = shares.enumerate().map(document).collect();
        let row = EvaluateRow {
            task: task.clone(),
            split: self.split.to_owned(),
            metric: metric.clone(),
            value,
            stderr: None,
            n: self.predicted_tokens,
            protocol: self.protocol.clone(),
            chance: None,
            truncated: 0,
            oversized: 0,
        };
        Ok((vec![row], documents))
    }
}
