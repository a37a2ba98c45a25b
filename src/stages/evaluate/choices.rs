//! Multiple choice by log likelihood, as lm-evaluation-harness 0.4 puts requests together and scores them.

use std::collections::BTreeMap;

use super::{Error, Measured, Options, Row, SampleRow};
use crate::data::task::{Document, Metric, Request, Task};
use crate::model::Model;
use crate::model::tokenizer::Tokenizer;
use crate::model::walk::{self, Sequence};
use crate::ops::Target;
use crate::stages::Context;

/// Documents between two looks at the clock and at a request to stop.
const CHUNK: usize = 32;

/// A request in tokens.
struct Tokens {
    /// What the model reads: the last tokens that fit, without the very last.
    input: Vec<u32>,
    /// The continuation, predicted by the last positions of the input.
    continuation: Vec<u32>,
}

/// Scores every choice of every document that was not scored yet.
pub fn score(task: &Task, options: &Options, context: &Context, model: &Model, measured: &mut Measured) -> Result<(), Error> {
    let tokenizer = model.tokenizer.as_deref().ok_or(Error::NoTokenizer)?;
    let mut documents = task.documents(options.limit, None)?;
    let max_length = options.max_length.unwrap_or(model.config.max_positions);
    let bar = context.progress.bar(&task.name, documents.len() as u64);
    if let Some(last) = measured.samples.iter().rev().find(|sample| sample.task == task.name).map(|sample| sample.doc) {
        let done = documents.iter().position(|document| document.doc == last).map_or(0, |at| at + 1);
        bar.skip(documents.drain(..done).count() as u64);
        tracing::info!(task = task.name, documents = done, "scoring goes on where it was interrupted");
    }
    for chunk in documents.chunks(CHUNK) {
        context.go_on_or_keep(|| &*measured)?;
        let requests: Vec<(&Document, usize, &Request)> =
            chunk.iter().flat_map(|d| d.requests.iter().enumerate().map(move |(i, r)| (d, i, r))).collect();
        let tokens = requests
            .iter()
            .map(|(document, _, request)| tokenize(task, document, request, tokenizer, max_length))
            .collect::<Result<Vec<_>, _>>()?;
        for ((document, choice, request), (tokens, (loglikelihood, greedy))) in
            requests.into_iter().zip(tokens.iter().zip(likelihoods(model, &tokens)))
        {
            if !loglikelihood.is_finite() {
                return Err(Error::NotFinite { what: format!("{}, document {}", task.name, document.doc), value: loglikelihood });
            }
            measured.samples.push(SampleRow {
                task: task.name.clone(),
                doc: document.doc,
                choice: choice as u32,
                loglikelihood,
                tokens: tokens.continuation.len() as u32,
                chars: request.chars,
                greedy,
                gold: choice == document.gold,
            });
        }
        chunk.iter().for_each(|_| bar.step());
    }
    Ok(())
}

/// Context and continuation are encoded together, the context alone; the continuation's tokens are those of the whole
/// after as many as the context has. White space at the context's end belongs to the continuation.
fn tokenize(task: &Task, document: &Document, request: &Request, tokenizer: &Tokenizer, limit: usize) -> Result<Tokens, Error> {
    let context = request.context.trim_end();
    let mut whole = tokenizer.encode(&format!("{}{}", request.context, request.continuation), true)?;
    let in_context = tokenizer.encode(context, true)?.len().min(whole.len());
    let continuation = whole.split_off(in_context);
    if whole.is_empty() || continuation.is_empty() {
        let what = if whole.is_empty() { "context" } else { "choice" };
        return Err(Error::NoToken { task: task.name.clone(), doc: document.doc, what });
    }
    if continuation.len() > limit {
        return Err(Error::TooLong { task: task.name.clone(), doc: document.doc, tokens: continuation.len(), limit });
    }
    let mut input = whole;
    input.extend(&continuation);
    input.pop();
    input.drain(..input.len().saturating_sub(limit));
    Ok(Tokens { input, continuation })
}

/// The log likelihood of each continuation, and whether it is the model's first choice throughout. Requests with the
/// same input share one forward pass.
fn likelihoods(model: &Model, requests: &[Tokens]) -> Vec<(f64, bool)> {
    let mut inputs: BTreeMap<&[u32], Vec<usize>> = BTreeMap::new();
    for (i, request) in requests.iter().enumerate() {
        inputs.entry(&request.input).or_default().push(i);
    }
    let sharing: Vec<Vec<usize>> = inputs.values().cloned().collect();
    let asked = |(input, sharing): (&[u32], Vec<usize>)| {
        let of = |i: usize| {
            let continuation = &requests[i].continuation;
            let first = input.len() - continuation.len();
            continuation.iter().enumerate().map(move |(at, &id)| Target { position: first + at, id })
        };
        Sequence { ids: input.to_vec(), targets: sharing.into_iter().flat_map(of).collect() }
    };
    let sequences: Vec<Sequence> = inputs.into_iter().map(asked).collect();
    let mut all = vec![(0.0, false); requests.len()];
    for (scores, sharing) in walk::token_scores(model, &sequences).into_iter().zip(sharing) {
        let mut scores = scores.into_iter();
        for i in sharing {
            let own: Vec<_> = scores.by_ref().take(requests[i].continuation.len()).collect();
            all[i] = (own.iter().map(|s| s.log_probability).sum::<f64>(), own.iter().all(|s| s.greedy));
        }
    }
    all
}

/// The task's metrics with their standard errors.
pub fn metrics(task: &Task, samples: &[&SampleRow]) -> Vec<Row> {
    task.metrics
        .iter()
        .map(|metric| {
            let (name, score): (_, fn(&SampleRow) -> f64) = match metric {
                Metric::Acc => ("acc", |s| s.loglikelihood),
                Metric::AccNorm => ("acc_norm", |s| s.loglikelihood / f64::from(s.chars)),
                of_text => unreachable!("{of_text:?} is no metric of choices: the task file would not have been read"),
            };
            let right: Vec<f64> = samples
                .chunk_by(|a, b| a.doc == b.doc)
                .map(|choices| {
                    // the first of equals
                    let best = choices.iter().fold(choices[0], |best, &s| if score(s) > score(best) { s } else { best });
                    f64::from(u8::from(best.gold))
                })
                .collect();
            let n = right.len() as f64;
            let mean = right.iter().sum::<f64>() / n;
            let variance = right.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0);
            let stderr = (right.len() > 1).then(|| (variance / n).sqrt());
            Row {
                task: task.name.clone(),
                split: task.split.clone(),
                metric: name.to_owned(),
                value: mean,
                stderr,
                n: right.len() as u64,
            }
        })
        .collect()
}
