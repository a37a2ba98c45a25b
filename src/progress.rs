//! Progress of a stage: a bar on a terminal, a log line every few seconds otherwise.

use std::fmt::{Display, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// The time between two log lines of a stage.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

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
    /// Bars on a terminal.
    pub fn with_terminal_bars() -> Self {
        Self {
            output: ProgressOutput::Terminal(MultiProgress::new()),
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
                note = state.note,
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

/// Clamps to 0..=1e9 s: `Duration::from_secs_f64` panics on larger or negative values.
fn duration_from_seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, 1e9))
}
