//! What is wrong with a pipeline, each problem at its place, and what went wrong in a run.

use std::ops::Range;
use std::sync::Arc;

use miette::{Diagnostic, NamedSource, SourceSpan};
use serde::Serialize;

use crate::data::task::Place;
use crate::spelling::closest;

/// The texts a pipeline is made of, laid one after another in one space of offsets: the file, then every `--set`. A
/// span says by itself which text it lies in.
#[derive(Clone, Debug)]
pub struct Sources {
    parts: Vec<Source>,
}

#[derive(Clone, Debug)]
struct Source {
    start: usize,
    name: String,
    text: Arc<str>,
}

/// A mistake, with its place, and what to write instead.
#[derive(Clone, Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
pub struct Problem {
    pub message: String,
    #[source_code]
    source_text: NamedSource<Arc<str>>,
    #[label]
    at: SourceSpan,
    #[help]
    pub help: Option<String>,
    /// In the space of all sources, for sorting.
    order: Range<usize>,
}

/// Every mistake of a pipeline. No work was started.
#[derive(Clone, Debug, thiserror::Error, Diagnostic)]
#[error("`{name}` cannot run: {}; no work was started", count(problems.len()))]
pub struct InvalidPipeline {
    pub name: String,
    #[related]
    pub problems: Vec<Problem>,
}

/// A stage failed, for one variant or several.
#[derive(Clone, Debug, thiserror::Error, Diagnostic)]
#[error("{variant}, step {step}: `{stage}` failed: {reason}")]
pub struct StageFailed {
    pub variant: String,
    pub step: u32,
    pub stage: &'static str,
    pub reason: String,
    #[source_code]
    source_text: NamedSource<Arc<str>>,
    #[label("this stage")]
    at: SourceSpan,
}

/// A problem as `--format json` prints it.
#[derive(Clone, Debug, Serialize)]
pub struct ProblemRecord {
    pub message: String,
    pub help: Option<String>,
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
}

/// The order of problems in other files: after those of the pipeline.
const AFTER_ALL: Range<usize> = usize::MAX..usize::MAX;

fn count(problems: usize) -> String {
    if problems == 1 { "1 problem".to_owned() } else { format!("{problems} problems") }
}

impl Sources {
    pub fn new(name: &str, text: &str) -> Self {
        Self { parts: vec![Source { start: 0, name: name.to_owned(), text: text.into() }] }
    }

    /// Adds a text and returns where it begins.
    pub fn add(&mut self, name: &str, text: &str) -> usize {
        let start = self.parts.last().map_or(0, |last| last.start + last.text.len() + 1);
        self.parts.push(Source { start, name: name.to_owned(), text: text.into() });
        start
    }

    /// Adds a text that is its own name, and returns its place.
    pub fn add_whole(&mut self, text: &str) -> Range<usize> {
        let start = self.add(text, text);
        start..start + text.len()
    }

    fn locate(&self, span: &Range<usize>) -> (NamedSource<Arc<str>>, SourceSpan) {
        let part = self.parts.iter().rev().find(|part| part.start <= span.start).unwrap_or(&self.parts[0]);
        let start = (span.start - part.start).min(part.text.len());
        let end = span.end.saturating_sub(part.start).clamp(start, part.text.len());
        (NamedSource::new(&part.name, part.text.clone()), (start, end - start).into())
    }

    pub fn problem(&self, span: Range<usize>, message: impl Into<String>, help: impl Into<String>) -> Problem {
        let (source_text, at) = self.locate(&span);
        Problem { message: message.into(), source_text, at, help: Some(help.into()).filter(|h| !h.is_empty()), order: span }
    }

    /// A problem in a file that the pipeline names, at a place of that file.
    pub fn elsewhere(place: Place, message: impl Into<String>, help: impl Into<String>) -> Problem {
        let end = place.text.len();
        let start = place.span.start.min(end);
        Problem {
            message: message.into(),
            source_text: NamedSource::new(&place.file, place.text.into()),
            at: (start, place.span.end.clamp(start, end) - start).into(),
            help: Some(help.into()).filter(|h| !h.is_empty()),
            order: AFTER_ALL,
        }
    }

    pub fn stage_failed(
        &self,
        span: &Range<usize>,
        variant: String,
        step: u32,
        stage: &'static str,
        reason: String,
    ) -> StageFailed {
        let (source_text, at) = self.locate(span);
        StageFailed { variant, step, stage, reason, source_text, at }
    }
}

impl Problem {
    /// In the order of their places, each once.
    pub fn sorted(mut problems: Vec<Problem>) -> Vec<Problem> {
        fn key(problem: &Problem) -> (usize, usize, &str, usize, usize, &str) {
            let Problem { order, source_text, at, message, .. } = problem;
            (order.start, order.end, source_text.name(), at.offset(), at.len(), message)
        }
        problems.sort_by(|a, b| key(a).cmp(&key(b)));
        problems.dedup_by(|a, b| key(a) == key(b));
        problems
    }

    pub fn record(&self) -> ProblemRecord {
        let before = &self.source_text.inner()[..self.at.offset()];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        ProblemRecord {
            message: self.message.clone(),
            help: self.help.clone(),
            file: self.source_text.name().to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// What to write instead of `wrong`: the closest choice, then all of them.
pub fn suggest(wrong: &str, choices: &[&str]) -> String {
    let all = choices.join(", ");
    match closest(wrong, choices.iter().copied()) {
        Some(close) => format!("did you mean `{close}`? there are: {all}"),
        None => format!("there are: {all}"),
    }
}
