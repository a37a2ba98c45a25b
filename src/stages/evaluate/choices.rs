//! Multiple choice by log likelihood, scored as in lm-evaluation-harness.

use std::collections::BTreeSet;

use rayon::prelude::*;

use super::requests::EncodedRequest;
use super::{
    DocumentRow, Error, EvaluateRow, MetricRows, Options, PartialEvaluation, Protocol, SampleRow,
    statistics,
};
use crate::progress::format_percent;
use crate::stages::{Context, StageError};
use secateur_data::task::{ChoiceQuestion, LikelihoodRequest, Metric, Task};
use secateur_model::Model;
use secateur_model::walk::{self, Sequence};
use secateur_tensor::WeightReadError;
use secateur_tensor::ops::TokenTarget;

/// Documents that are scored together. The stage checks for an interrupt between two such chunks.
const DOCUMENTS_PER_CHUNK: usize = 32;

/// Scores every choice of every document that has no rows yet, and returns the accuracies.
pub(crate) fn measure_choices(
    task: &Task,
    options: &Options,
    context: &Context,
    model: &Model,
    measured: &mut PartialEvaluation,
) -> Result<MetricRows, StageError> {
    let documents = task.questions(options.limit, options.few_shot())?;
    let majority = majority_share(&documents);
    score_choices(task, documents, options, context, model, measured)?;
    let samples = measured.samples.iter();
    let task_samples: Vec<&SampleRow> = samples.filter(|sample| sample.task == task.name).collect();
    Ok(accuracy_rows(task, options, &task_samples, majority))
}

/// The share of the documents whose right choice has the most frequent index. `None` if an index
/// is not an answer of its own: the choices differ between documents, or are equal within one. A
/// single document does not tell.
fn majority_share(documents: &[ChoiceQuestion]) -> Option<f64> {
    let choices = |document: &ChoiceQuestion| -> Vec<String> {
        let requests = document.requests.iter();
        requests
            .map(|request| request.continuation.clone())
            .collect()
    };
    let (first, others) = documents.split_first()?;
    let answers = choices(first);
    let are_distinct = answers.iter().collect::<BTreeSet<_>>().len() == answers.len();
    let are_fixed = others.iter().all(|document| choices(document) == answers);
    if others.is_empty() || !are_distinct || !are_fixed {
        return None;
    }
    let mut counts = vec![0usize; answers.len()];
    for document in documents {
        counts[document.gold] += 1;
    }
    let largest = counts.into_iter().max()?;
    Some(largest as f64 / documents.len() as f64)
}

/// Scores every choice of every document that has no rows yet.
fn score_choices(
    task: &Task,
    mut documents: Vec<ChoiceQuestion>,
    options: &Options,
    context: &Context,
    model: &Model,
    measured: &mut PartialEvaluation,
) -> Result<(), StageError> {
    let bar = context.progress.bar(&task.name, documents.len() as u64);
    let mut latest_first = measured.samples.iter().rev();
    let last_scored = latest_first.find(|sample| sample.task == task.name);
    if let Some(last_scored) = last_scored {
        let done = documents
            .iter()
            .position(|document| document.index == last_scored.doc)
            .map_or(0, |position| position + 1);
        documents.drain(..done);
        bar.skip(done as u64);
        tracing::info!(
            task = task.name,
            documents = done,
            "scoring goes on where it was interrupted"
        );
    }
    for chunk in documents.chunks(DOCUMENTS_PER_CHUNK) {
        context.checkpoint_or_stop(|| &*measured)?;
        let rows = score_documents(task, chunk, options, model)?;
        measured.samples.extend(rows);
        chunk.iter().for_each(|_| bar.step());
    }
    Ok(())
}

/// One row for each choice of these documents.
fn score_documents(
    task: &Task,
    documents: &[ChoiceQuestion],
    options: &Options,
    model: &Model,
) -> Result<Vec<SampleRow>, StageError> {
    let tokenizer = model.tokenizer.as_deref().ok_or(Error::NoTokenizer)?;
    let max_length = options.max_length.unwrap_or(model.config.max_positions);
    let mut requests: Vec<(&ChoiceQuestion, usize, &LikelihoodRequest)> = Vec::new();
    for document in documents {
        for (choice, request) in document.requests.iter().enumerate() {
            requests.push((document, choice, request));
        }
    }
    let encoded: Vec<Result<EncodedRequest, StageError>> = requests
        .par_iter()
        .map(|(document, _, request)| {
            let source = (task, document.index);
            EncodedRequest::encode(request, source, options, tokenizer, max_length)
        })
        .collect();
    // Taken in order, so that the first mistake is reported whatever thread found one first.
    let encoded: Vec<EncodedRequest> = encoded.into_iter().collect::<Result<_, _>>()?;
    let scores = log_likelihoods(model, &encoded)?;
    let mut rows = Vec::with_capacity(requests.len());
    for (index, (document, choice, request)) in requests.into_iter().enumerate() {
        let (encoded, (loglikelihood, greedy)) = (&encoded[index], scores[index]);
        if !loglikelihood.is_finite() {
            return Err(Error::NotFinite {
                what: format!("{}, document {}", task.name, document.index),
                value: loglikelihood,
            }
            .into());
        }
        rows.push(SampleRow {
            task: task.name.clone(),
            doc: document.index,
            choice: choice as u32,
            loglikelihood,
            tokens: encoded.continuation.len() as u32,
            chars: request.choice_chars,
            greedy,
            gold: choice == document.gold,
            cut: encoded.truncated_tokens as u32,
            cut_choice: encoded.truncated_choice_tokens as u32,
        });
    }
    Ok(rows)
}

/// The log likelihood of each continuation, Σ log p of its tokens, and whether each of its tokens
/// is the most likely one. A common beginning of several inputs is computed once
/// (`walk::token_scores`).
fn log_likelihoods(
    model: &Model,
    requests: &[EncodedRequest],
) -> Result<Vec<(f64, bool)>, WeightReadError> {
    let to_sequence = |request: &EncodedRequest| {
        // The last positions of the input predict the continuation.
        let first_position = request.input.len() - request.continuation.len();
        let targets = request.continuation.iter().enumerate();
        Sequence {
            ids: request.input.clone(),
            targets: targets
                .map(|(offset, &token_id)| TokenTarget {
                    position: first_position + offset,
                    token_id,
                })
                .collect(),
        }
    };
    let sequences: Vec<Sequence> = requests.iter().map(to_sequence).collect();
    let mut likelihoods = Vec::with_capacity(requests.len());
    for token_scores in walk::token_scores(model, &sequences)? {
        let log_likelihood = token_scores.iter().map(|score| score.log_probability).sum();
        let is_greedy = token_scores.iter().all(|score| score.is_greedy);
        likelihoods.push((log_likelihood, is_greedy));
    }
    Ok(likelihoods)
}

/// The task's metrics with their standard errors, and the share of each document.
fn accuracy_rows(
    task: &Task,
    options: &Options,
    samples: &[&SampleRow],
    majority: Option<f64>,
) -> MetricRows {
    // Rows of one document are consecutive.
    let documents: Vec<&[&SampleRow]> = samples.chunk_by(|a, b| a.doc == b.doc).collect();
    let document_count = documents.len();
    let guess_probabilities = documents.iter().map(|choices| 1.0 / choices.len() as f64);
    let chance = guess_probabilities.sum::<f64>() / document_count as f64;
    let count_documents = |has_property: fn(&&SampleRow) -> bool| {
        let matching = documents
            .iter()
            .filter(|choices| choices.iter().any(has_property));
        matching.count() as u64
    };
    let truncated = count_documents(|choice| choice.cut > 0);
    let oversized = count_documents(|choice| choice.cut_choice > 0);
    if oversized > 0 {
        tracing::warn!(
            task = task.name,
            documents = oversized,
            "choices are longer than a request may be: only their last tokens that fit are scored; \
             raise `max_length` to score them whole"
        );
    }
    let paper_metric = task.paper_metric.or(task.metrics.first().copied());
    let (mut rows, mut document_rows) = MetricRows::default();
    for &metric in &task.metrics {
        if options.protocol == Protocol::LlmPruner && paper_metric != Some(metric) {
            continue;
        }
        // 1 for a correct document, 0 for another
        let correct: Vec<f64> = documents
            .iter()
            .map(|choices| f64::from(u8::from(is_correct(metric, choices))))
            .collect();
        let (value, stderr) = statistics::mean_and_stderr(&correct);
        warn_if_not_above_baseline(task, metric, (value, stderr), (chance, majority));
        for (choices, &value) in documents.iter().zip(&correct) {
            document_rows.push(DocumentRow {
                task: task.name.clone(),
                metric: metric.name().to_owned(),
                doc: choices[0].doc,
                value,
            });
        }
        rows.push(EvaluateRow {
            task: task.name.clone(),
            split: task.split.clone(),
            metric: metric.name().to_owned(),
            value,
            stderr,
            n: document_count as u64,
            protocol: options.protocol_label(options.protocol, true),
            chance: Some(chance),
            majority,
            truncated,
            oversized,
        });
    }
    (rows, document_rows)
}

/// Warns of an accuracy that exceeds neither guessing nor the most frequent answer by two standard
/// errors.
fn warn_if_not_above_baseline(
    task: &Task,
    metric: Metric,
    (value, stderr): (f64, Option<f64>),
    (chance, majority): (f64, Option<f64>),
) {
    let baseline = majority.unwrap_or(chance).max(chance);
    if value > baseline + 2.0 * stderr.unwrap_or(0.0) {
        return;
    }
    tracing::warn!(
        task = task.name,
        metric = metric.name(),
        value = format_percent(value),
        chance = format_percent(chance),
        majority = majority.map(format_percent),
        "the model is not above the larger of chance and majority by two standard errors: \
         differences between models mean nothing here"
    );
}

/// Whether the choice with the highest score is the right one; of equal scores the first counts.
/// `acc_norm` divides the log likelihood by the characters of the choice.
fn is_correct(metric: Metric, choices: &[&SampleRow]) -> bool {
    let score = |sample: &SampleRow| match metric {
        Metric::AccNorm => sample.loglikelihood / f64::from(sample.chars),
        _ => sample.loglikelihood,
    };
    let mut best = choices[0];
    for choice in choices {
        if score(choice) > score(best) {
            best = choice;
        }
    }
    best.gold
}

/// The `task` of the row that holds the mean of the tasks.
pub(crate) const AVERAGE_TASK_NAME: &str = "average";

/// The last column of LLM-Pruner's tables: the plain mean of the accuracies of k tasks, with the
/// standard error √(Σ stderr²) / k of independent tasks. None for fewer than two tasks.
pub(crate) fn average_row(rows: &[EvaluateRow]) -> Option<EvaluateRow> {
    // Only accuracies have a chance level.
    let tasks: Vec<&EvaluateRow> = rows.iter().filter(|row| row.chance.is_some()).collect();
    if tasks.len() < 2 {
        return None;
    }
    let task_count = tasks.len() as f64;
    // The mean of a number over the tasks; None if a task does not have it.
    let mean = |number: &dyn Fn(&EvaluateRow) -> Option<f64>| {
        let sum: Option<f64> = tasks.iter().map(|row| number(row)).sum();
        sum.map(|sum| sum / task_count)
    };
    // Σ (stderr² / k) / k
    let variance = mean(&|row| row.stderr.map(|stderr| stderr * stderr / task_count));
    Some(EvaluateRow {
        task: AVERAGE_TASK_NAME.to_owned(),
        split: String::new(),
        metric: Metric::Acc.name().to_owned(),
        value: mean(&|row| Some(row.value)).unwrap_or_default(),
        stderr: variance.map(f64::sqrt),
        n: tasks.iter().map(|row| row.n).sum(),
        protocol: tasks[0].protocol.clone(),
        chance: mean(&|row| row.chance),
        majority: mean(&|row| row.majority),
        truncated: tasks.iter().map(|row| row.truncated).sum(),
        oversized: tasks.iter().map(|row| row.oversized).sum(),
    })
}
