//! What is wrong with a pipeline, each problem at its place, and what went wrong in a run.

use std::ops::Range;
use std::sync::Arc;

use miette::{Diagnostic, NamedSource, SourceSpan};
use serde::Serialize;

use secateur_base::spelling::closest;
use secateur_data::task::FileLocation;

/// The texts a pipeline is made of, laid one after another in one space of offsets: the file, then every `--set`. A
/// span says by itself which text it lies in.
#[derive(Clone, Debug)]
pub struct SourceTexts {
    texts: Vec<SourceText>,
}

#[derive(Clone, Debug)]
struct SourceText {
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
    label_span: SourceSpan,
    #[help]
    pub help: Option<String>,
    /// In the space of all sources, for sorting.
    sort_span: Range<usize>,
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
pub struct StageFailure {
    pub variant: String,
    pub step: u32,
    pub stage: &'static str,
    pub reason: String,
    #[source_code]
    source_text: NamedSource<Arc<str>>,
    #[label("this stage")]
    label_span: SourceSpan,
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
const OTHER_FILES_SPAN: Range<usize> = usize::MAX..usize::MAX;

fn count(problems: usize) -> String {
    if problems == 1 {
        "1 problem".to_owned()
    } else {
        format!("{problems} problems")
    }
}

impl SourceTexts {
    pub fn new(name: &str, text: &str) -> Self {
        Self {
            texts: vec![SourceText {
                start: 0,
                name: name.to_owned(),
                text: text.into(),
            }],
        }
    }

    /// Adds a text and returns where it begins.
    pub fn add_text(&mut self, name: &str, text: &str) -> usize {
        let start = self
            .texts
            .last()
            .map_or(0, |last| last.start + last.text.len() + 1);
        self.texts.push(SourceText {
            start,
            name: name.to_owned(),
            text: text.into(),
        });
        start
    }

    /// Adds a text that is its own name, and returns its place.
    pub fn add_argument(&mut self, text: &str) -> Range<usize> {
        let start = self.add_text(text, text);
        start..start + text.len()
    }

    fn locate(&self, span: &Range<usize>) -> (NamedSource<Arc<str>>, SourceSpan) {
        let part = self
            .texts
            .iter()
            .rev()
            .find(|part| part.start <= span.start)
            .unwrap_or(&self.texts[0]);
        let start = (span.start - part.start).min(part.text.len());
        let end = span
            .end
            .saturating_sub(part.start)
            .clamp(start, part.text.len());
        (
            NamedSource::new(&part.name, part.text.clone()),
            (start, end - start).into(),
        )
    }

    pub fn problem(
        &self,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Problem {
        let (source_text, at) = self.locate(&span);
        Problem {
            message: message.into(),
            source_text,
            label_span: at,
            help: Some(help.into()).filter(|h| !h.is_empty()),
            sort_span: span,
        }
    }

    /// A problem in a file that the pipeline names, at a place of that file.
    pub fn problem_in_file(
        place: FileLocation,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Problem {
        let end = place.file_text.len();
        let start = place.span.start.min(end);
        Problem {
            message: message.into(),
            source_text: NamedSource::new(&place.file, place.file_text.into()),
            label_span: (start, place.span.end.clamp(start, end) - start).into(),
            help: Some(help.into()).filter(|h| !h.is_empty()),
            sort_span: OTHER_FILES_SPAN,
        }
    }

    pub fn stage_failure(
        &self,
        span: &Range<usize>,
        variant: String,
        step: u32,
        stage: &'static str,
        reason: String,
    ) -> StageFailure {
        let (source_text, at) = self.locate(span);
        StageFailure {
            variant,
            step,
            stage,
            reason,
            source_text,
            label_span: at,
        }
    }
}

impl Problem {
    /// In the order of their places, each once.
    pub fn sort_and_dedup(mut problems: Vec<Problem>) -> Vec<Problem> {
        fn key(problem: &Problem) -> (usize, usize, &str, usize, usize, &str) {
            let Problem {
                sort_span: order,
                source_text,
                label_span: at,
                message,
                ..
            } = problem;
            (
                order.start,
                order.end,
                source_text.name(),
                at.offset(),
                at.len(),
                message,
            )
        }
        problems.sort_by(|a, b| key(a).cmp(&key(b)));
        problems.dedup_by(|a, b| key(a) == key(b));
        problems
    }

    pub fn to_record(&self) -> ProblemRecord {
        let before = &self.source_text.inner()[..self.label_span.offset()];
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
