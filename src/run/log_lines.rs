//! Events as lines of text. On a terminal an event of a stage is one line that fits its width:
//!
//! ```text
//! prune        l2-max-ratio0.5-2dcd81d1  pruned params=424224 removed=43.9 %
//! ```
//!
//! Warnings and errors are wrapped, never shortened. Elsewhere a line begins with the time and the
//! level, and has everything that the event says.

use std::fmt::Debug;
use std::io::Write;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::progress::{format_significant, wrap_lines};
use crate::run::console::{Console, ConsoleWriter};

/// The width of the column of stages: that of the longest type.
const STAGE_WIDTH: usize = 12;

/// How much of a word is left out rather than cut, in bytes.
const LONGEST_WORD_LEFT_OUT: usize = 12;

/// Writes every event as a line of text.
pub(crate) struct LogLines {
    pub(crate) writer: ConsoleWriter,
    pub(crate) console: Console,
}

/// The fields of an event or a span as text, in the order of their names in the source.
#[derive(Default)]
struct TextFields(Vec<(&'static str, String)>);

impl TextFields {
    /// Takes a field out.
    fn take(&mut self, name: &str) -> Option<String> {
        let position = self.0.iter().position(|(field, _)| *field == name)?;
        Some(self.0.remove(position).1)
    }

    fn get(&self, name: &str) -> Option<&str> {
        let mut fields = self.0.iter();
        let (_, value) = fields.find(|(field, _)| *field == name)?;
        Some(value)
    }
}

impl Visit for TextFields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.push((field.name(), format_significant(value)));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LogLines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = TextFields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = TextFields::default();
        event.record(&mut fields);
        let level = *event.metadata().level();
        let span = context.event_span(event);
        let extensions = span.as_ref().map(|span| span.extensions());
        let stage = extensions.as_ref().and_then(|all| all.get::<TextFields>());
        let line = EventLine::new(level, stage, fields);
        let text = match self.console.terminal_width {
            Some(width) => line.for_terminal(width(), self.console.has_color),
            None => line.with_time(self.console.has_color),
        };
        // A closed standard error does not stop a run.
        drop(self.writer.clone().write_all(text.as_bytes()));
    }
}

/// The parts of the line of an event.
struct EventLine {
    level: Level,
    /// The type of the running stage; empty outside of stages.
    stage: String,
    /// The variants that it concerns: an id, or `3 variants`; empty if it is not known.
    label: String,
    /// The step, the number of the variant and the time left.
    position: String,
    /// The message with its fields.
    text: String,
}

impl EventLine {
    fn new(level: Level, stage: Option<&TextFields>, mut fields: TextFields) -> Self {
        let of_stage = |name: &str| stage.and_then(|stage| stage.get(name)).unwrap_or_default();
        let label = fields
            .take("for")
            .or_else(|| fields.take("variant"))
            .unwrap_or_else(|| of_stage("for").to_owned());
        let mut text = fields.take("message").unwrap_or_default();
        for (name, value) in &fields.0 {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(&format!("{name}={value}"));
        }
        let mut position = Vec::new();
        if stage.is_some() {
            position.push(format!("step {}", of_stage("step")));
            position.push(format!("variant {}", of_stage("variant")));
        }
        if let Some(remaining) = stage.and_then(|stage| stage.get("remaining")) {
            position.push(format!("{remaining} left"));
        }
        Self {
            level,
            stage: of_stage("stage").to_owned(),
            label,
            position: position.join(", "),
            text: text.replace(['\n', '\r'], " "),
        }
    }

    /// One line of at most `width` characters; several for warnings and errors.
    fn for_terminal(&self, width: usize, has_color: bool) -> String {
        let paint = |code: &'static str, text: &str| paint(has_color, code, text);
        let severity = match self.level {
            Level::ERROR => Some(("error", "1;31")),
            Level::WARN => Some(("warning", "1;33")),
            _ => None,
        };
        if let Some((word, code)) = severity {
            let place = [self.stage.as_str(), self.label.as_str()];
            let place: Vec<&str> = place.into_iter().filter(|part| !part.is_empty()).collect();
            let separator = if place.is_empty() { "" } else { ": " };
            let text = format!("{word}: {}{separator}{}", place.join(" "), self.text);
            let wrapped = wrap_lines(&text, width, "  ");
            let rest = wrapped.strip_prefix(word).unwrap_or(&wrapped);
            return format!("{}{rest}\n", paint(code, word));
        }
        if self.stage.is_empty() {
            let separator = if self.label.is_empty() { "" } else { "  " };
            let line = format!("{}{separator}{}", self.label, self.text);
            return shorten(&line, width) + "\n";
        }
        let stage = format!("{:<STAGE_WIDTH$}", self.stage);
        let room = width.saturating_sub(STAGE_WIDTH + 1);
        let line = shorten(&format!("{}  {}", self.label, self.text), room);
        let (code, line) = match self.level {
            Level::INFO => ("1", line),
            _ => ("2", paint("2", &line)),
        };
        format!("{} {line}\n", paint(code, &stage))
    }

    fn with_time(&self, has_color: bool) -> String {
        let mut time = String::new();
        if SystemTime.format_time(&mut Writer::new(&mut time)).is_err() {
            time.clear();
        }
        let code = match self.level {
            Level::ERROR => "1;31",
            Level::WARN => "1;33",
            Level::INFO => "32",
            _ => "2",
        };
        let level = paint(has_color, code, &format!("{:>5}", self.level.as_str()));
        let mut line = format!("{time} {level}");
        for part in [&self.stage, &self.label] {
            if !part.is_empty() {
                line.push_str(&format!(" {part}"));
            }
        }
        if !self.position.is_empty() {
            line.push_str(&format!(" ({})", self.position));
        }
        let separator = if self.stage.is_empty() && self.label.is_empty() {
            " "
        } else {
            ": "
        };
        format!("{line}{separator}{}\n", self.text)
    }
}

fn paint(has_color: bool, code: &str, text: &str) -> String {
    if has_color {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// The text, cut to `width` characters with `…` at its end: between words, unless the word that does
/// not fit is a long one.
fn shorten(text: &str, width: usize) -> String {
    if textwrap::core::display_width(text) <= width {
        return text.to_owned();
    }
    let mut line = String::new();
    for character in text.chars() {
        line.push(character);
        if textwrap::core::display_width(&line) >= width {
            line.pop();
            break;
        }
    }
    match line.rfind(' ') {
        Some(end) if line.len() - end <= LONGEST_WORD_LEFT_OUT => line[..=end].to_owned() + "…",
        _ => line + "…",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: Level, text: &str) -> EventLine {
        EventLine {
            level,
            stage: "evaluate".to_owned(),
            label: "taylor-sum-ratio0.25-aa53e08a".to_owned(),
            position: "step 7, variant 1 of 10".to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_stage_is_one_line_that_fits_the_width() {
        let text = "tiny_boolq acc 77.9 %, tiny_piqa acc 94.6 %, tiny_piqa acc_norm";
        let info = line(Level::INFO, text);
        assert_eq!(
            info.for_terminal(80, false),
            "evaluate     taylor-sum-ratio0.25-aa53e08a  tiny_boolq acc 77.9 %, tiny_piqa …\n"
        );
        assert!(info.for_terminal(200, false).ends_with("acc_norm\n"));
        assert!(info.for_terminal(80, true).contains("\x1b[1mevaluate"));
    }

    #[test]
    fn a_warning_is_wrapped_between_words_and_ids_stay_whole() {
        let warning = line(
            Level::WARN,
            "the model is not above chance by two standard errors: differences between models \
             mean nothing here task=tiny_boolq",
        );
        let text = warning.for_terminal(60, false);
        assert!(text.lines().count() > 2 && text.lines().all(|line| line.chars().count() <= 60));
        assert!(
            text.starts_with("warning: evaluate taylor-sum-ratio0.25-aa53e08a: "),
            "{text}"
        );
        assert!(text.ends_with("task=tiny_boolq\n"), "{text}");
    }

    #[test]
    fn lines_outside_of_terminals_have_everything() {
        let text = line(Level::INFO, "pruned removed=21.9 %").with_time(false);
        let (_, after_time) = text.split_once(' ').expect("a time");
        assert_eq!(
            after_time,
            " INFO evaluate taylor-sum-ratio0.25-aa53e08a (step 7, variant 1 of 10): \
             pruned removed=21.9 %\n"
        );
    }
}
