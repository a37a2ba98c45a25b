//! Multiple choice by log likelihood, as lm-evaluation-harness scores it.

use rayon::prelude::*;

use super::requests::EncodedRequest;
use super::{
    DocumentRow, Error, EvaluateRow, MetricRows, Options, PartialEvaluation, Protocol, SampleRow,
    statistics,
};
use crate::stages::{Context, StageError};
use secateur_data::task::{ChoiceQuestion, LikelihoodRequest, Metric, Task};
use secateur_model::Model;
use secateur_model::walk::{self, Sequence};
use secateur_tensor::ops::TokenTarget;

/// Documents between two looks at the clock and at a request to stop.
const DOCUMENTS_PER_CHUNK: usize = 32;

/// Scores every choice of every document that was not scored yet.
pub fn score_choices(
    task: &Task,
    options: &Options,
    context: &Context,
    model: &Model,
    measured: &mut PartialEvaluation,
) -> Result<(), StageError> {
    let tokenizer = model.tokenizer.as_deref().ok_or(Error::NoTokenizer)?;
    let mut documents = task.questions(options.limit, options.few_shot())?;
    let max_length = options.max_length.unwrap_or(model.config.max_positions);
    let bar = context.progress.bar(&task.name, documents.len() as u64);
    if let Some(last) = measured
        .samples
        .iter()
        .rev()
        .find(|sample| sample.task == task.name)
        .map(|sample| sample.doc)
    {
        let done = documents
            .iter()
            .position(|document| document.index == last)
            .map_or(0, |at| at + 1);
        bar.skip(documents.drain(..done).count() as u64);
        tracing::info!(
            task = task.name,
            documents = done,
            "scoring goes on where it was interrupted"
        );
    }
    for chunk in documents.chunks(DOCUMENTS_PER_CHUNK) {
        context.checkpoint_or_stop(|| &*measured)?;
        let requests: Vec<(&ChoiceQuestion, usize, &LikelihoodRequest)> = chunk
            .iter()
            .flat_map(|d| d.requests.iter().enumerate().map(move |(i, r)| (d, i, r)))
            .collect();
        let tokens = requests
            .par_iter()
            .map(|(document, _, request)| {
                EncodedRequest::encode(
                    request,
                    (task, document.index),
                    options,
                    tokenizer,
                    max_length,
                )
            })
            .collect::<Result<Vec<_>, _>>()?;
        for ((document, choice, request), (tokens, (loglikelihood, greedy))) in requests
            .into_iter()
            .zip(tokens.iter().zip(log_likelihoods(model, &tokens)))
        {
            if !loglikelihood.is_finite() {
                return Err(Error::NotFinite {
                    what: format!("{}, document {}", task.name, document.index),
                    value: loglikelihood,
                });
            }
            measured.samples.push(SampleRow {
                task: task.name.clone(),
                doc: document.index,
                choice: choice as u32,
                loglikelihood,
                tokens: tokens.continuation.len() as u32,
                chars: request.choice_chars,
                greedy,
                gold: choice == document.gold,
                cut: tokens.truncated_tokens as u32,
                cut_choice: tokens.truncated_choice_tokens as u32,
            });
        }
        chunk.iter().for_each(|_| bar.step());
    }
    Ok(())
}

/// The log likelihood of each continuation, and whether it is the model's first choice throughout. What inputs begin with is
/// read once (`walk::token_scores`).
fn log_likelihoods(model: &Model, requests: &[EncodedRequest]) -> Vec<(f64, bool)> {
    let sequence = |request: &EncodedRequest| {
        let first = request.input.len() - request.continuation.len();
        let asked = request.continuation.iter().enumerate();
        Sequence {
            ids: request.input.clone(),
            targets: asked
                .map(|(at, &id)| TokenTarget {
                    position: first + at,
                    token_id: id,
                })
                .collect(),
        }
    };
    let sequences: Vec<Sequence> = requests.iter().map(sequence).collect();
    let scores = walk::token_scores(model, &sequences);
    scores
        .iter()
        .map(|own| {
            (
                own.iter().map(|s| s.log_probability).sum(),
                own.iter().all(|s| s.is_greedy),
            )
        })
        .collect()
}

/// The task's metrics with their standard errors, and what each document contributes.
pub fn accuracy_rows(task: &Task, options: &Options, samples: &[&SampleRow]) -> MetricRows {
    let documents: Vec<&[&SampleRow]> = samples.chunk_by(|a, b| a.doc == b.doc).collect();
    let n = documents.len();
    let chance = documents
        .iter()
        .map(|choices| 1.0 / choices.len() as f64)
        .sum::<f64>()
        / n as f64;
    let count = |is: fn(&&SampleRow) -> bool| {
        documents
            .iter()
            .filter(|choices| choices.iter().any(is))
            .count() as u64
    };
    let (truncated, oversized) = (
        count(|choice| choice.cut > 0),
        count(|choice| choice.cut_choice > 0),
    );
    if oversized > 0 {
        tracing::warn!(
            task = task.name,
            documents = oversized,
            "choices are longer than a request may be: their last tokens that fit are scored; raise `max_length` to score them whole"
        );
    }
    let paper = task.paper_metric.or(task.metrics.first().copied());
    let is_asked = |metric: Metric| options.protocol == Protocol::Harness || paper == Some(metric);
    let mut found = MetricRows::default();
    for &metric in task.metrics.iter().filter(|&&metric| is_asked(metric)) {
        let right: Vec<f64> = documents
            .iter()
            .map(|choices| f64::from(u8::from(is_correct(metric, choices))))
            .collect();
        let (value, stderr) = statistics::mean_and_stderr(&right);
        if value <= chance + 2.0 * stderr.unwrap_or(0.0) {
            let message = "the model is not above chance by two standard errors: differences say nothing here";
            tracing::warn!(
                task = task.name,
                metric = metric.name(),
                value,
                chance,
                "{message}"
            );
        }
        let row = |(choices, &value): (&&[&SampleRow], &f64)| DocumentRow {
            task: task.name.clone(),
            metric: metric.name().to_owned(),
            doc: choices[0].doc,
            value,
        };
        found.1.extend(documents.iter().zip(&right).map(row));
        found.0.push(EvaluateRow {
            task: task.name.clone(),
            split: task.split.clone(),
            metric: metric.name().to_owned(),
            value,
            stderr,
            n: n as u64,
            protocol: options.protocol_label(options.protocol, true),
            chance: Some(chance),
            truncated,
            oversized,
        });
    }
    found
}

/// Whether the best choice is the right one; the first of equals is the best.
fn is_correct(metric: Metric, choices: &[&SampleRow]) -> bool {
    let score = |sample: &SampleRow| match metric {
        Metric::AccNorm => sample.loglikelihood / f64::from(sample.chars),
        _ => sample.loglikelihood,
    };
    choices
        .iter()
        .fold(
            choices[0],
            |best, &s| {
                if score(s) > score(best) { s } else { best }
            },
        )
        .gold
}

/// What the mean of the tasks is called.
pub const AVERAGE_TASK_NAME: &str = "average";

/// The last column of LLM-Pruner's tables: the plain mean of the tasks' accuracies.
pub fn average_row(rows: &[EvaluateRow]) -> Option<EvaluateRow> {
    let protocol = rows
        .iter()
        .find(|row| row.chance.is_some())?
        .protocol
        .clone();
    let tasks: Vec<&EvaluateRow> = rows.iter().filter(|row| row.chance.is_some()).collect();
    let k = tasks.len() as f64;
    let mean = |of: &dyn Fn(&EvaluateRow) -> Option<f64>| {
        tasks
            .iter()
            .map(|row| of(row))
            .sum::<Option<f64>>()
            .map(|sum| sum / k)
    };
    // of independent sets
    let variance = mean(&|row| row.stderr.map(|stderr| stderr * stderr / k));
    let row = || EvaluateRow {
        task: AVERAGE_TASK_NAME.to_owned(),
        split: String::new(),
        metric: Metric::Acc.name().to_owned(),
        value: mean(&|row| Some(row.value)).unwrap_or_default(),
        stderr: variance.map(f64::sqrt),
        n: tasks.iter().map(|row| row.n).sum(),
        protocol: protocol.clone(),
        chance: mean(&|row| row.chance),
        truncated: tasks.iter().map(|row| row.truncated).sum(),
        oversized: tasks.iter().map(|row| row.oversized).sum(),
    };
    (tasks.len() > 1).then(row)
}
