//! Perplexity, in two protocols.
//!
//! *Windows* (LLM-Pruner, after GPTQ): a text is encoded once and cut into windows that do not
//! overlap; a remainder that is shorter than a window is left out. Each window predicts all its
//! tokens but the first. The perplexity is exp of the mean nll over all predictions.
//!
//! *Whole documents* (lm-evaluation-harness, `loglikelihood_rolling`): every token of a document is
//! predicted once, from as many earlier tokens as fit, and the sum of the nll is divided by the
//! number of words or bytes.

use std::path::Path;

use super::{
    DocumentRow, Error, EvaluateRow, MetricRows, Options, PartialEvaluation, Protocol, statistics,
};
use crate::stages::{Context, StageError};
use secateur_data::corpus::{self, CorpusError};
use secateur_data::data_file::file_stem;
use secateur_data::python::is_blank;
use secateur_data::task::{Metric, Task, TextDocument};
use secateur_model::Model;
use secateur_model::tokenizer::{Tokenizer, TokenizerError};
use secateur_model::walk::{self, Sequence};
use secateur_tensor::ops::TokenTarget;

/// Tokens of the windows that are scored together. The stage checks for an interrupt between two
/// such chunks.
const TOKENS_PER_CHUNK: usize = 4096;

/// Windows that are scored together, if the longest has `longest` tokens; at least 1.
pub(crate) fn windows_per_chunk(longest: usize) -> usize {
    (TOKENS_PER_CHUNK / longest.max(1)).max(1)
}

/// A text that is measured in windows.
struct WindowedText<'a> {
    /// Its name in the table.
    task: &'a str,
    /// Its split in the table.
    split: &'a str,
    /// Token ids, and for each whether it counts as a target.
    sequences: Vec<(Vec<u32>, Vec<bool>)>,
}

/// The perplexity of one file in windows. Rows of a JSONL file are separate sequences.
pub(crate) fn corpus_perplexity(
    path: &Path,
    options: &Options,
    context: &Context,
    model: &Model,
    measured: &mut PartialEvaluation,
) -> Result<MetricRows, StageError> {
    let source = options.corpus_source(path);
    let rows = corpus::read_rows(&source, model.tokenizer.as_deref(), model.config.vocab)?;
    let text = WindowedText {
        task: &file_stem(path),
        split: "",
        sequences: rows
            .into_iter()
            .map(|row| (row.ids, row.loss_mask))
            .collect(),
    };
    let metric_rows = window_perplexity(text, options, context, model, measured)?;
    metric_rows.ok_or_else(|| CorpusError::NothingToPredict(path.to_owned()).into())
}

/// The documents of a task, of which at least one is not blank.
fn text_documents(task: &Task, options: &Options) -> Result<Vec<TextDocument>, StageError> {
    let documents = task.text_documents(options.limit)?;
    if documents.iter().all(|document| is_blank(&document.text)) {
        return Err(Error::BlankTexts {
            task: task.name.clone(),
            rows: task.rows_name(),
        }
        .into());
    }
    Ok(documents)
}

/// The perplexity of a task's documents in windows; each document is cut separately.
pub(crate) fn task_window_perplexity(
    task: &Task,
    options: &Options,
    context: &Context,
    model: &Model,
    measured: &mut PartialEvaluation,
) -> Result<MetricRows, StageError> {
    let tokenizer = model.tokenizer.as_deref().ok_or(Error::NoTokenizer)?;
    let mut sequences = Vec::new();
    for document in text_documents(task, options)? {
        let ids = encode_document(&document, task, options.add_bos_token, tokenizer)?;
        let is_target = vec![true; ids.len()];
        sequences.push((ids, is_target));
    }
    let text = WindowedText {
        task: &task.name,
        split: &task.split,
        sequences,
    };
    let metric_rows = window_perplexity(text, options, context, model, measured)?;
    metric_rows.ok_or_else(|| Error::NothingToPredict(task.name.clone()).into())
}

/// exp(Σ nll / predictions) over all windows. None if there is nothing to predict.
fn window_perplexity(
    text: WindowedText<'_>,
    options: &Options,
    context: &Context,
    model: &Model,
    measured: &mut PartialEvaluation,
) -> Result<Option<MetricRows>, StageError> {
    warn_of_short_texts(&text, options);
    let mut windows = Vec::new();
    for (ids, is_target) in text.sequences {
        // A sequence that is shorter than the window is one window.
        let length = options
            .window_or_default()
            .min(model.config.max_positions)
            .min(ids.len())
            .max(1);
        let window_ids = ids.chunks_exact(length);
        let window_targets = is_target.chunks_exact(length);
        for (ids, is_target) in window_ids.zip(window_targets) {
            let window = Sequence::new(ids.to_vec(), is_target);
            if !window.targets.is_empty() {
                windows.push(window);
            }
        }
    }
    if windows.is_empty() {
        return Ok(None);
    }
    let nll = window_nlls((text.task, WINDOW_PASS), &windows, context, model, measured)?;
    let predictions: Vec<f64> = windows
        .iter()
        .map(|window| window.targets.len() as f64)
        .collect();
    let builder = MetricRowBuilder {
        task: text.task,
        split: text.split,
        protocol: options.protocol_label(Protocol::LlmPruner, false),
        predicted_tokens: predictions.iter().sum::<f64>() as u64,
    };
    let (log_perplexity, shares) = statistics::ratio_and_shares(&nll, &predictions);
    let rows = builder.exponential_rows(Metric::Perplexity, log_perplexity, &shares)?;
    Ok(Some(rows))
}

/// Warns if a window is asked for that is longer than every text.
fn warn_of_short_texts(text: &WindowedText<'_>, options: &Options) {
    let lengths = text.sequences.iter().map(|(ids, _)| ids.len());
    let longest = lengths.max().unwrap_or(0);
    if let Some(window) = options.window
        && window > longest
    {
        tracing::warn!(
            text = text.task,
            window,
            longest,
            "every text is shorter than the window, so each is one window"
        );
    }
}

/// Those of these metrics that the task has, over its documents: word perplexity exp(Σ nll /
/// words), byte perplexity exp(Σ nll / bytes), bits per byte Σ nll / bytes / ln 2.
pub(crate) fn document_perplexities(
    task: &Task,
    options: &Options,
    context: &Context,
    model: &Model,
    measured: &mut PartialEvaluation,
) -> Result<MetricRows, StageError> {
    let tokenizer = model.tokenizer.as_deref().ok_or(Error::NoTokenizer)?;
    let limit = options.max_length.unwrap_or(model.config.max_positions);
    let documents = text_documents(task, options)?;
    // The windows of all documents, and for each document the end of its windows.
    let (mut windows, mut window_ends) = (Vec::new(), Vec::new());
    for document in &documents {
        let add_bos = options.add_bos_token;
        windows.extend(rolling_windows(document, task, add_bos, tokenizer, limit)?);
        window_ends.push(windows.len());
    }
    if windows.is_empty() {
        return Err(Error::NothingToPredict(task.name.clone()).into());
    }
    let window_nll = window_nlls(
        (&task.name, DOCUMENT_PASS),
        &windows,
        context,
        model,
        measured,
    )?;
    let mut document_nll = Vec::with_capacity(documents.len());
    let mut start = 0;
    for end in window_ends {
        document_nll.push(window_nll[start..end].iter().sum::<f64>());
        start = end;
    }
    let targets = windows.iter().map(|window| window.targets.len() as u64);
    let builder = MetricRowBuilder {
        task: &task.name,
        split: &task.split,
        protocol: options.protocol_label(Protocol::Harness, false),
        predicted_tokens: targets.sum(),
    };
    let word_counts = documents.iter().map(|document| document.word_count as f64);
    let byte_counts = documents.iter().map(|document| document.byte_count as f64);
    let (words, bytes): (Vec<f64>, Vec<f64>) = (word_counts.collect(), byte_counts.collect());
    let mut all_rows = MetricRows::default();
    for &metric in &task.metrics {
        let (rows, document_rows) = match metric {
            Metric::WordPerplexity => {
                let (nats_per_word, shares) = statistics::ratio_and_shares(&document_nll, &words);
                builder.exponential_rows(metric, nats_per_word, &shares)?
            }
            Metric::BytePerplexity => {
                let (nats_per_byte, shares) = statistics::ratio_and_shares(&document_nll, &bytes);
                builder.exponential_rows(metric, nats_per_byte, &shares)?
            }
            Metric::BitsPerByte => {
                let (nats_per_byte, shares) = statistics::ratio_and_shares(&document_nll, &bytes);
                let to_bits = |nats: f64| nats / std::f64::consts::LN_2;
                let shares = shares.into_iter().map(to_bits);
                builder.metric_rows(metric, to_bits(nats_per_byte), shares)?
            }
            Metric::Perplexity | Metric::Acc | Metric::AccNorm => continue,
        };
        all_rows.0.extend(rows);
        all_rows.1.extend(document_rows);
    }
    Ok(all_rows)
}

/// Cuts a document into windows of at most `limit` input tokens, so that each token is predicted
/// once. The first window begins with BOS (or EOS), every later one with the token before its first
/// target; the last one is extended to `limit` by earlier tokens, which are not predicted again.
fn rolling_windows(
    document: &TextDocument,
    task: &Task,
    add_special_tokens: bool,
    tokenizer: &Tokenizer,
    limit: usize,
) -> Result<Vec<Sequence>, StageError> {
    let document_tokens = encode_document(document, task, add_special_tokens, tokenizer)?;
    if document_tokens.is_empty() {
        return Ok(Vec::new());
    }
    let prefix = tokenizer
        .prefix_token()
        .map_err(|error| tokenizer_error(error, document, task))?;
    let prefix = prefix.ok_or_else(|| Error::NoToken {
        task: task.name.clone(),
        doc: document.index,
        what: "document's beginning",
    })?;
    let mut tokens = vec![prefix];
    tokens.extend(document_tokens);
    let mut windows = Vec::new();
    for first in (1..tokens.len()).step_by(limit) {
        // This window predicts tokens[first..end], each from the one before it, and reads
        // tokens[begin..end - 1].
        let end = (first + limit).min(tokens.len());
        let begin = if first == 1 { 0 } else { end - 1 - limit };
        let targets = (first..end)
            .map(|target| TokenTarget {
                position: target - 1 - begin,
                token_id: tokens[target],
            })
            .collect();
        windows.push(Sequence {
            ids: tokens[begin..end - 1].to_vec(),
            targets,
        });
    }
    Ok(windows)
}

fn encode_document(
    document: &TextDocument,
    task: &Task,
    add_special_tokens: bool,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>, Error> {
    tokenizer
        .encode(&document.text, add_special_tokens)
        .map_err(|error| tokenizer_error(error, document, task))
}

fn tokenizer_error(error: TokenizerError, document: &TextDocument, task: &Task) -> Error {
    Error::Tokenizer {
        task: task.name.clone(),
        doc: document.index,
        error,
    }
}

/// `PartialEvaluation::text_pass` while a text is measured in windows.
const WINDOW_PASS: u32 = 0;

/// `PartialEvaluation::text_pass` while a text is measured in whole documents.
const DOCUMENT_PASS: u32 = 1;

/// −Σ log p of each window's targets. Windows that were measured before an interruption are not
/// measured again.
fn window_nlls(
    (task, pass): (&str, u32),
    windows: &[Sequence],
    context: &Context,
    model: &Model,
    measured: &mut PartialEvaluation,
) -> Result<Vec<f64>, StageError> {
    if measured.text_pass != pass {
        measured.window_nlls = Vec::new();
        measured.text_pass = pass;
    }
    let bar = context.progress.bar(task, windows.len() as u64);
    let done = measured.window_nlls.len();
    bar.skip(done as u64);
    if done > 0 {
        tracing::info!(
            task,
            windows = done,
            "reading goes on where it was interrupted"
        );
    }
    let lengths = windows.iter().map(|window| window.ids.len());
    let windows_per_chunk = windows_per_chunk(lengths.max().unwrap_or(1));
    for chunk in windows[done..].chunks(windows_per_chunk) {
        context.checkpoint_or_stop(|| &*measured)?;
        for token_scores in walk::token_scores(model, chunk)? {
            let log_probabilities = token_scores.iter().map(|score| score.log_probability);
            let log_likelihood: f64 = log_probabilities.sum();
            measured.window_nlls.push(-log_likelihood);
            bar.step();
        }
    }
    Ok(std::mem::take(&mut measured.window_nlls))
}

/// Builds the rows of one measurement.
struct MetricRowBuilder<'a> {
    task: &'a str,
    split: &'a str,
    protocol: String,
    predicted_tokens: u64,
}

impl MetricRowBuilder<'_> {
    /// The rows of a metric that is exp(m) of a mean m. If s_i are the linearised shares of m,
    /// those of exp(m) are exp(m) · (1 + s_i − m).
    fn exponential_rows(
        &self,
        metric: Metric,
        mean: f64,
        shares: &[f64],
    ) -> Result<MetricRows, Error> {
        let value = mean.exp();
        // The log likelihoods are finite, so the model is not to blame.
        if mean.is_finite() && !value.is_finite() {
            return Err(Error::PerplexityTooLarge {
                task: self.task.to_owned(),
                metric: metric.name(),
                nats: mean,
            });
        }
        let exponential_shares = shares.iter().map(|share| value * (1.0 + share - mean));
        self.metric_rows(metric, value, exponential_shares)
    }

    fn metric_rows(
        &self,
        metric: Metric,
        value: f64,
        shares: impl Iterator<Item = f64>,
    ) -> Result<MetricRows, Error> {
        if !value.is_finite() {
            let what = format!("{}, {}", self.task, metric.name());
            return Err(Error::NotFinite { what, value });
        }
        let document_row = |(document, value)| DocumentRow {
            task: self.task.to_owned(),
            metric: metric.name().to_owned(),
            doc: document as u64,
            value,
        };
        let document_rows = shares.enumerate().map(document_row).collect();
        let row = EvaluateRow {
            task: self.task.to_owned(),
            split: self.split.to_owned(),
            metric: metric.name().to_owned(),
            value,
            stderr: None,
            n: self.predicted_tokens,
            protocol: self.protocol.clone(),
            chance: None,
            majority: None,
            truncated: 0,
            oversized: 0,
        };
        Ok((vec![row], document_rows))
    }
}
