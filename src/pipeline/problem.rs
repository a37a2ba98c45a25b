//! Problems of a pipeline, each at its place in a text, and failures of stages.

use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode, SourceSpan};
use serde::Serialize;

use crate::stages::OptionFault;
use secateur_base::spelling::closest;
use secateur_data::task::FileLocation;

/// The texts of a pipeline in one space of byte offsets: the file, then every argument. A span in
/// this space identifies its text as well as its place there.
#[derive(Clone, Debug)]
pub struct SourceTexts {
    texts: Vec<SourceText>,
}

#[derive(Clone, Debug)]
struct SourceText {
    /// The offset of its first byte in the common space.
    start: usize,
    name: String,
    text: Arc<str>,
}

/// Whether a problem keeps a pipeline from running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The pipeline cannot run.
    Error,
    /// The pipeline runs, but something in it has probably not the intended effect.
    Warning,
}

/// A mistake at its place, and what to write instead.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    pub severity: Severity,
    pub message: String,
    source_text: NamedSource<Arc<str>>,
    label_span: SourceSpan,
    pub help: Option<String>,
    /// The span in the common space of all sources: problems are sorted by it.
    sort_span: Range<usize>,
}

/// Every problem of a pipeline, warnings included. No work was started.
#[derive(Clone, Debug, thiserror::Error, Diagnostic)]
#[error(
    "`{name}` cannot run: {}; no work was started",
    format_problem_count(problems)
)]
pub struct InvalidPipeline {
    pub name: String,
    /// At least one of them is an error.
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
    pub severity: Severity,
    pub message: String,
    pub help: Option<String>,
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
}

/// The name of the sources that are environment variables, each as `NAME=value`.
pub(crate) const ENVIRONMENT: &str = "environment";

/// The sort span of problems in other files: they follow those of the pipeline.
const OTHER_FILES_SPAN: Range<usize> = usize::MAX..usize::MAX;

fn format_problem_count(problems: &[Problem]) -> String {
    let warning_count = problems
        .iter()
        .filter(|problem| problem.is_warning())
        .count();
    let errors = format_count(problems.len() - warning_count, "problem");
    if warning_count == 0 {
        errors
    } else {
        format!("{errors} and {}", format_count(warning_count, "warning"))
    }
}

/// A number with its noun, such as `1 variant` and `2 variants`.
pub fn format_count(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

impl SourceTexts {
    /// The sources of a pipeline whose file has this name and text.
    pub fn new(name: &str, text: &str) -> Self {
        Self {
            texts: vec![SourceText {
                start: 0,
                name: name.to_owned(),
                text: text.into(),
            }],
        }
    }

    /// Adds a text and returns the offset of its first byte.
    pub(crate) fn add_text(&mut self, name: &str, text: &str) -> usize {
        // One unused byte between two texts: an empty span at the end of one text must not be equal
        // to one at the start of the next.
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

    /// Adds an argument of the command line, named by its own text, and returns its span.
    pub(crate) fn add_argument(&mut self, argument: &str) -> Range<usize> {
        let start = self.add_text(argument, argument);
        start..start + argument.len()
    }

    /// Whether a span lies in an argument of `--set`.
    pub(crate) fn is_set_argument(&self, span: &Range<usize>) -> bool {
        self.locate(span).0.inner().starts_with("--set ")
    }

    /// The text at a span.
    pub(crate) fn text_at(&self, span: &Range<usize>) -> String {
        let (source, span) = self.locate(span);
        let text = source
            .inner()
            .get(span.offset()..span.offset() + span.len());
        text.unwrap_or_default().to_owned()
    }

    /// The text that a span lies in, and the span relative to this text.
    fn locate(&self, span: &Range<usize>) -> (NamedSource<Arc<str>>, SourceSpan) {
        let source = self
            .texts
            .iter()
            .rev()
            .find(|source| source.start <= span.start)
            .unwrap_or(&self.texts[0]);
        let length = source.text.len();
        let start = (span.start - source.start).min(length);
        let end = span.end.saturating_sub(source.start).clamp(start, length);
        (
            NamedSource::new(&source.name, source.text.clone()),
            (start, end - start).into(),
        )
    }

    /// A problem at a span of the common space; an empty `help` is left out.
    pub(crate) fn problem(
        &self,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Problem {
        let (source_text, label_span) = self.locate(&span);
        let mut message = message.into();
        if source_text.name() == ENVIRONMENT {
            let variable = source_text.inner().split('=').next().unwrap_or_default();
            message = format!("the environment variable {variable} is wrong: {message}");
        }
        Problem {
            severity: Severity::Error,
            message,
            source_text,
            label_span,
            help: Some(help.into()).filter(|help| !help.is_empty()),
            sort_span: span,
        }
    }

    /// A fault of an option: in the other file that it names, else at `span` of the pipeline.
    pub(crate) fn option_problem(&self, span: Range<usize>, fault: OptionFault) -> Problem {
        let problem = match fault.location {
            Some(location) => Self::problem_in_file(*location, fault.message, fault.help),
            None => self.problem(span, fault.message, fault.help),
        };
        Problem {
            severity: match fault.is_warning {
                true => Severity::Warning,
                false => Severity::Error,
            },
            ..problem
        }
    }

    /// A problem in a file that the pipeline names, at a place in that file.
    fn problem_in_file(
        location: FileLocation,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Problem {
        let length = location.file_text.len();
        let start = location.span.start.min(length);
        let end = location.span.end.clamp(start, length);
        Problem {
            severity: Severity::Error,
            message: message.into(),
            source_text: NamedSource::new(&location.file, location.file_text.into()),
            label_span: (start, end - start).into(),
            help: Some(help.into()).filter(|help| !help.is_empty()),
            sort_span: OTHER_FILES_SPAN,
        }
    }

    pub(crate) fn stage_failure(
        &self,
        span: &Range<usize>,
        variant: String,
        step: u32,
        stage: &'static str,
        reason: String,
    ) -> StageFailure {
        let (source_text, label_span) = self.locate(span);
        StageFailure {
            variant,
            step,
            stage,
            reason,
            source_text,
            label_span,
        }
    }
}

// Written out because the derived implementation has one severity for all values of the type.
impl Diagnostic for Problem {
    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn Display + 'a>> {
        let help = self.help.as_ref()?;
        Some(Box::new(help))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.source_text)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let label = LabeledSpan::new_with_span(None, self.label_span);
        Some(Box::new(std::iter::once(label)))
    }
}

impl Problem {
    pub fn is_warning(&self) -> bool {
        self.severity == Severity::Warning
    }

    /// The problem in one line, with its file and line, or its argument: for logs.
    pub fn one_line(&self) -> String {
        let ProblemRecord {
            message,
            help,
            file,
            line,
            ..
        } = self.to_record();
        let place = match file.starts_with("--") || file == "command line" {
            true => file,
            false => format!("{file}:{line}"),
        };
        match help {
            Some(help) => format!("{place}: {message}; {help}"),
            None => format!("{place}: {message}"),
        }
    }

    /// The problems in the order of their places, without repetitions: variants of a sweep share
    /// most of theirs.
    pub(crate) fn sort_and_dedup(mut problems: Vec<Problem>) -> Vec<Problem> {
        problems.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
        problems.dedup_by(|a, b| a.sort_key() == b.sort_key());
        problems
    }

    /// The problems without repetitions of a message: a file that is missing at several places is
    /// one problem, whose help names the other places.
    pub(crate) fn merge_equal_messages(problems: Vec<Problem>) -> Vec<Problem> {
        let mut merged: Vec<(Problem, Vec<String>)> = Vec::new();
        for problem in Self::sort_and_dedup(problems) {
            let is_same = |(other, _): &&mut (Problem, Vec<String>)| {
                other.message == problem.message && other.severity == problem.severity
            };
            match merged.iter_mut().find(is_same) {
                Some((first, other_places)) => {
                    let ProblemRecord { file, line, .. } = problem.to_record();
                    let is_in_first_file = file == first.source_text.name();
                    let place = match is_in_first_file {
                        true => format!("line {line}"),
                        false => format!("{file}:{line}"),
                    };
                    let is_first_line = is_in_first_file && line == first.to_record().line;
                    if !is_first_line && !other_places.contains(&place) {
                        other_places.push(place);
                    }
                }
                None => merged.push((problem, Vec::new())),
            }
        }
        let add_places = |(mut problem, other_places): (Problem, Vec<String>)| {
            if !other_places.is_empty() {
                let places = format!("the same holds for {}", other_places.join(", "));
                problem.help = Some(match problem.help {
                    Some(help) => format!("{help}; {places}"),
                    None => places,
                });
            }
            problem
        };
        merged.into_iter().map(add_places).collect()
    }

    fn sort_key(&self) -> impl Ord + '_ {
        (
            self.sort_span.start,
            self.sort_span.end,
            self.source_text.name(),
            self.label_span.offset(),
            self.label_span.len(),
            &self.message,
        )
    }

    pub fn to_record(&self) -> ProblemRecord {
        let text_before = &self.source_text.inner()[..self.label_span.offset()];
        let line_start = text_before.rfind('\n').map_or(0, |offset| offset + 1);
        ProblemRecord {
            severity: self.severity,
            message: self.message.clone(),
            help: self.help.clone(),
            file: self.source_text.name().to_owned(),
            line: text_before.matches('\n').count() + 1,
            column: text_before[line_start..].chars().count() + 1,
        }
    }
}

/// Help for a wrong word: the closest of the choices, then all of them.
pub(crate) fn suggest(wrong: &str, choices: &[&str]) -> String {
    let all = choices.join(", ");
    match closest(wrong, choices.iter().copied()) {
        Some(close) => format!("did you mean `{close}`? there are: {all}"),
        None => format!("there are: {all}"),
    }
}
