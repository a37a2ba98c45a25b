//! Progress of a stage: a bar on a terminal, a log line every few seconds otherwise.

mod bar_terminal;

use std::fmt::{Display, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bar_terminal::BarTerminal;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// The time between two log lines of a stage.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How often bars are drawn again, at most.
const REDRAWS_PER_SECOND: u8 = 20;

/// The output that bars are drawn on; clones share it. The default draws nothing.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    output: ProgressOutput,
}

#[derive(Clone, Debug, Default)]
enum ProgressOutput {
    #[default]
    Hidden,
    Terminal(MultiProgress),
    LogLines,
}

/// The progress of one task, counted in steps. Dropping it removes the bar.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    label: String,
    /// The state of the log lines; `None` unless the output is [`ProgressOutput::LogLines`].
    log_lines: Option<Arc<Mutex<LogLineState>>>,
}

#[derive(Debug)]
struct LogLineState {
    last_written: Instant,
    /// The text of [`Bar::set_note`].
    note: String,
}

/// A line above the bars, drawn only on a terminal. Dropping it removes the line.
#[derive(Debug)]
pub struct Headline {
    line: Option<ProgressBar>,
    /// The estimated end of the run.
    expected_end: SharedInstant,
}

/// Shared between a headline and the callback that draws it.
type SharedInstant = Arc<Mutex<Option<Instant>>>;

impl Progress {
    /// Bars on standard error, a terminal whose lines have `width` characters.
    pub fn with_terminal_bars(width: fn() -> usize) -> Self {
        let terminal = Box::new(BarTerminal::new(width));
        let target = ProgressDrawTarget::term_like_with_hz(terminal, REDRAWS_PER_SECOND);
        Self {
            output: ProgressOutput::Terminal(MultiProgress::with_draw_target(target)),
        }
    }

    /// A log line every ten seconds.
    pub fn with_log_lines() -> Self {
        Self {
            output: ProgressOutput::LogLines,
        }
    }

    /// Starts a bar of `steps` steps with a label before it.
    pub fn bar(&self, label: &str, steps: u64) -> Bar {
        let bar = match &self.output {
            ProgressOutput::Terminal(bars) => bars.add(ProgressBar::new(steps)),
            ProgressOutput::LogLines | ProgressOutput::Hidden => {
                ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::hidden())
            }
        };
        let style = ProgressStyle::with_template(
            "  {prefix:12} {bar:30} {pos}/{len} {msg} {elapsed} (left: {eta})",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(label.to_owned());
        let log_lines = matches!(self.output, ProgressOutput::LogLines).then(|| {
            Arc::new(Mutex::new(LogLineState {
                last_written: Instant::now(),
                note: String::new(),
            }))
        });
        Bar {
            bar,
            label: label.to_owned(),
            log_lines,
        }
    }

    /// The line above all bars, for the progress of the whole run.
    pub fn headline(&self) -> Headline {
        let expected_end = SharedInstant::default();
        let line = match &self.output {
            ProgressOutput::Terminal(bars) => Some(draw_headline(bars, expected_end.clone())),
            ProgressOutput::LogLines | ProgressOutput::Hidden => None,
        };
        Headline { line, expected_end }
    }

    /// Removes the bars for good: nothing of them is left on the terminal if the program is ended
    /// afterwards.
    pub fn remove_bars(&self) {
        if let ProgressOutput::Terminal(bars) = &self.output {
            // An error means that the terminal is gone.
            drop(bars.clear());
            bars.set_draw_target(ProgressDrawTarget::hidden());
        }
    }

    /// Calls `write` while the bars are hidden, so that its output appears above them.
    pub fn print_above_bars<R>(&self, write: impl FnOnce() -> R) -> R {
        match &self.output {
            ProgressOutput::Terminal(bars) => bars.suspend(write),
            ProgressOutput::LogLines | ProgressOutput::Hidden => write(),
        }
    }
}

/// Adds a line above the bars: a message, and the time until `expected_end`, redrawn every second.
fn draw_headline(bars: &MultiProgress, expected_end: SharedInstant) -> ProgressBar {
    let write_time_left = move |_: &ProgressState, text: &mut dyn Write| {
        if let Ok(Some(end)) = expected_end.lock().map(|end| *end) {
            let time_left = end.saturating_duration_since(Instant::now());
            let clock = format_clock(time_left.as_secs_f64());
            text.write_str(&format!(" · {clock} left"))
                .unwrap_or_default();
        }
    };
    let style = ProgressStyle::with_template("  {msg}{time_left}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .with_key("time_left", write_time_left);
    let line = bars.insert(0, ProgressBar::new_spinner().with_style(style));
    line.enable_steady_tick(Duration::from_secs(1));
    line
}

impl Headline {
    /// Sets the text, and the estimate of the seconds from now to the end of the run.
    pub fn update(&self, text: String, seconds_left: Option<f64>) {
        if let Ok(mut expected_end) = self.expected_end.lock() {
            *expected_end =
                seconds_left.map(|seconds| Instant::now() + duration_from_seconds(seconds));
        }
        if let Some(line) = &self.line {
            line.set_message(text);
        }
    }
}

impl Drop for Headline {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }
}

impl Bar {
    /// Counts one finished step.
    pub fn step(&self) {
        self.bar.inc(1);
        let Some(log_lines) = &self.log_lines else {
            return;
        };
        if let Ok(mut state) = log_lines.lock()
            && state.last_written.elapsed() >= LOG_INTERVAL
        {
            state.last_written = Instant::now();
            tracing::info!(
                done = self.bar.position(),
                total = self.bar.length().unwrap_or(0),
                seconds_left = self.bar.eta().as_secs(),
                note = (!state.note.is_empty()).then_some(state.note.as_str()),
                "{}",
                self.label
            );
        }
    }

    /// Counts steps that an earlier, interrupted run has finished. They do not enter the estimate
    /// of the remaining time.
    pub fn skip(&self, steps: u64) {
        self.bar.inc(steps);
        self.bar.reset_eta();
    }

    /// Sets the text beside the bar, such as a loss or a score.
    pub fn set_note(&self, text: impl Display) {
        match &self.log_lines {
            None => self.bar.set_message(text.to_string()),
            Some(log_lines) => {
                if let Ok(mut state) = log_lines.lock() {
                    state.note = text.to_string();
                }
            }
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A time as `1:02:03`, or as `02:03` below one hour.
pub fn format_clock(seconds: f64) -> String {
    let total_seconds = duration_from_seconds(seconds).as_secs();
    let hours = total_seconds / 3600;
    let minutes = total_seconds / 60 % 60;
    let seconds = total_seconds % 60;
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes:02}:{seconds:02}")
    }
}

/// A number with three significant digits, as in `0.959`, `12.3`, `1230`, `1.20e-5`.
pub fn format_significant(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    // The exponent after rounding: 9.996 is 10.0.
    let scientific = format!("{value:.2e}");
    let exponent: i32 = scientific
        .split_once('e')
        .and_then(|(_, exponent)| exponent.parse().ok())
        .unwrap_or(0);
    match exponent {
        -4..=1 => format!("{value:.*}", (2 - exponent) as usize),
        2..=14 => format!("{value:.0}"),
        _ => scientific,
    }
}

/// A share as a percentage with one decimal, as in `91.7 %`.
pub fn format_percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// The text in lines of at most `width` characters; all but the first begin with `indent`. Lines
/// are broken at spaces alone, so that ids and paths stay whole, even those that are too long.
pub fn wrap_lines(text: &str, width: usize, indent: &str) -> String {
    let options = textwrap::Options::new(width)
        .subsequent_indent(indent)
        .break_words(false)
        .word_separator(textwrap::WordSeparator::AsciiSpace)
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
        .wrap_algorithm(textwrap::WrapAlgorithm::FirstFit);
    textwrap::fill(text, options)
}

/// Clamps to 0..=1e9 s: `Duration::from_secs_f64` panics on larger or negative values.
fn duration_from_seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, 1e9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_significant_digits() {
        for (value, text) in [
            (1.6023411730069963, "1.60"),
            (0.9589333574646378, "0.959"),
            (0.0012345, "0.00123"),
            (12.34, "12.3"),
            (9.996, "10.0"),
            (99.96, "100"),
            (1234.5, "1234"),
            (-4.268, "-4.27"),
            (1.2e-5, "1.20e-5"),
            (1e38, "1.00e38"),
            (0.0, "0"),
        ] {
            assert_eq!(format_significant(value), text);
        }
        assert_eq!(format_percent(0.91666), "91.7 %");
    }

    #[test]
    fn ids_and_paths_stay_whole() {
        let text = "see results/ablation/taylor-sum-ratio0.25-aa53e08a/manifest.json of the run";
        assert_eq!(
            wrap_lines(text, 30, "  "),
            "see\n  results/ablation/taylor-sum-ratio0.25-aa53e08a/manifest.json\n  of the run"
        );
    }
}
