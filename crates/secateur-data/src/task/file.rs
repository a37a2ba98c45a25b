//! A task file: its keys, and the checks of its keys.

use serde::Deserialize;
use toml::Spanned;

use super::metric::Metric;
use super::plain_words::plain_message;
use super::question::QuestionTemplates;
use super::sections::{ExamplesSection, QuestionSection, RowsSection, TextSection};
use super::spanned_message::{SpannedMessage, error_at};
use super::template_engine::template_engine;
use super::template_error::TemplateError;
use super::text::TextTemplates;

/// A parsed task file. Values are `Spanned` where a later check may have to point to them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TaskFile {
    pub(crate) name: String,
    /// Raised whenever the templates or the rows change what is measured.
    #[expect(
        dead_code,
        reason = "for readers; the program compares hashes of the file and its rows"
    )]
    version: u32,
    pub(crate) split: String,
    metrics: Spanned<Vec<Spanned<Metric>>>,
    /// The metric that LLM-Pruner's tables show.
    paper_metric: Option<Spanned<Metric>>,
    pub(crate) rows: Spanned<RowsSection>,
    question: Option<Spanned<QuestionSection>>,
    pub(crate) examples: Option<Spanned<ExamplesSection>>,
    text: Option<Spanned<TextSection>>,
}

/// What a row becomes.
#[derive(Clone, Debug)]
pub(crate) enum TaskKind {
    Question(QuestionTemplates),
    Text(TextTemplates),
}

impl TaskFile {
    pub(crate) fn parse(text: &str) -> Result<Self, SpannedMessage> {
        toml::from_str(text).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            SpannedMessage {
                message: match text.trim_start().starts_with('{') {
                    true => {
                        "a task file is TOML, and this is JSON; if these are rows, write a task \
                             file whose [rows] name this file"
                            .to_owned()
                    }
                    false => plain_message(error.message(), text.get(span.clone())),
                },
                span,
            }
        })
    }

    /// Returns the templates of the file. Every template is compiled once, so that a mistake is
    /// found before any row is read.
    pub(crate) fn kind(&self) -> Result<TaskKind, SpannedMessage> {
        let to_message = |error: TemplateError| SpannedMessage {
            message: error.message,
            span: error.span,
        };
        match (&self.question, &self.text) {
            (Some(question), None) => {
                let templates = question.get_ref().to_templates()?;
                templates.compile(&template_engine()).map_err(to_message)?;
                Ok(TaskKind::Question(templates))
            }
            (None, Some(text)) => {
                if let Some(examples) = &self.examples {
                    return error_at(
                        examples,
                        "[examples] are examples of questions, and this task has a [text]",
                    );
                }
                let templates = text.get_ref().to_templates(&text.span())?;
                templates.compile(&template_engine()).map_err(to_message)?;
                Ok(TaskKind::Text(templates))
            }
            (Some(question), Some(_)) => error_at(
                question,
                "a task has a [question] or a [text], and this one has both",
            ),
            (None, None) => error_at(
                &self.rows,
                "a task has a [question] or a [text], and this one has neither",
            ),
        }
    }

    /// Returns the metrics, and which of them LLM-Pruner's tables show.
    pub(crate) fn metrics(
        &self,
        kind: &TaskKind,
    ) -> Result<(Vec<Metric>, Option<Metric>), SpannedMessage> {
        let (section, needs_text_metrics) = match kind {
            TaskKind::Question(_) => ("[question]", false),
            TaskKind::Text(_) => ("[text]", true),
        };
        let mut metrics = Vec::new();
        for spanned_metric in self.metrics.get_ref() {
            let metric = *spanned_metric.get_ref();
            let name = metric.name();
            if metric.is_text_metric() != needs_text_metrics {
                let message = format!("`{name}` is not a metric of a {section}");
                return error_at(spanned_metric, message);
            }
            if metrics.contains(&metric) {
                return error_at(spanned_metric, format!("`{name}` is measured twice"));
            }
            metrics.push(metric);
        }
        if metrics.is_empty() {
            return error_at(&self.metrics, "`metrics` is empty: name at least one");
        }
        let paper_metric = match &self.paper_metric {
            Some(metric) if !metrics.contains(metric.get_ref()) => {
                return error_at(metric, "`paper_metric` is not among `metrics`");
            }
            Some(metric) => Some(*metric.get_ref()),
            None => None,
        };
        Ok((metrics, paper_metric))
    }
}
