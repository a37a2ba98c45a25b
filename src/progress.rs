//! How a stage says how far it is: a bar on a terminal, a line now and then without one.

use std::fmt::Display;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

/// Without a terminal, so long between two lines.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Where bars are drawn; clones draw in the same place. The default is silent.
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

/// A running count of steps; dropping it ends it.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    label: String,
    /// When the last line was written, and what is said beside it; None on a terminal.
    last_log_line: Option<Arc<Mutex<(Instant, String)>>>,
}

/// A line above the bars; nothing without a terminal. Dropping it ends it.
#[derive(Debug)]
pub struct Headline {
    line: Option<ProgressBar>,
    /// When all will be done, as far as is known.
    expected_end: Arc<Mutex<Option<Instant>>>,
}

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

    /// Begins a count of `steps` steps, called `label`.
    pub fn bar(&self, label: &str, steps: u64) -> Bar {
        let style = ProgressStyle::with_template(
            "  {prefix:12} {bar:30} {pos}/{len} {msg} {elapsed} (left: {eta})",
        );
        let bar = match &self.output {
            ProgressOutput::Terminal(all) => all.add(ProgressBar::new(steps)),
            ProgressOutput::LogLines | ProgressOutput::Hidden => {
                ProgressBar::with_draw_target(Some(steps), indicatif::ProgressDrawTarget::hidden())
            }
        };
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(label.to_owned());
        let lines = matches!(self.output, ProgressOutput::LogLines)
            .then(|| Arc::new(Mutex::new((Instant::now(), String::new()))));
        Bar {
            bar,
            label: label.to_owned(),
            last_log_line: lines,
        }
    }

    /// The line above all bars, for what is larger than one stage.
    pub fn headline(&self) -> Headline {
        let end: Arc<Mutex<Option<Instant>>> = Arc::default();
        let line = match &self.output {
            ProgressOutput::Terminal(all) => {
                let until = end.clone();
                let left = move |_: &ProgressState, text: &mut dyn std::fmt::Write| {
                    if let Some(end) = until.lock().ok().and_then(|end| *end) {
                        let left = end.saturating_duration_since(Instant::now());
                        text.write_str(&format!(" · {} left", format_clock(left.as_secs_f64())))
                            .unwrap_or_default();
                    }
                };
                let style = ProgressStyle::with_template("  {msg}{left}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner());
                let line = all.insert(
                    0,
                    ProgressBar::new_spinner().with_style(style.with_key("left", left)),
                );
                line.enable_steady_tick(Duration::from_secs(1));
                Some(line)
            }
            ProgressOutput::LogLines | ProgressOutput::Hidden => None,
        };
        Headline {
            line,
            expected_end: end,
        }
    }

    /// Writes above the bars.
    pub fn print_above_bars<R>(&self, write: impl FnOnce() -> R) -> R {
        match &self.output {
            ProgressOutput::Terminal(all) => all.suspend(write),
            ProgressOutput::LogLines | ProgressOutput::Hidden => write(),
        }
    }
}

impl Headline {
    /// Says what is being done, and that it will take so many seconds from now.
    pub fn update(&self, text: String, seconds_left: Option<f64>) {
        if let Ok(mut end) = self.expected_end.lock() {
            *end = seconds_left.map(|left| Instant::now() + duration_from_seconds(left));
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
    /// One more step is done.
    pub fn step(&self) {
        self.bar.inc(1);
        let Some(lines) = &self.last_log_line else {
            return;
        };
        if let Ok(mut last) = lines.lock()
            && last.0.elapsed() >= LOG_INTERVAL
        {
            last.0 = Instant::now();
            let (done, of, left) = (
                self.bar.position(),
                self.bar.length().unwrap_or(0),
                self.bar.eta().as_secs(),
            );
            tracing::info!(
                done,
                of,
                seconds_left = left,
                note = last.1,
                "{}",
                self.label
            );
        }
    }

    /// So many steps were done before.
    pub fn skip(&self, steps: u64) {
        self.bar.inc(steps);
        self.bar.reset_eta();
    }

    /// What is said beside the bar: a loss, a score.
    pub fn set_note(&self, text: impl Display) {
        match &self.last_log_line {
            None => self.bar.set_message(text.to_string()),
            Some(lines) => {
                if let Ok(mut last) = lines.lock() {
                    last.1 = text.to_string();
                }
            }
        }
    }
}

/// `1:02:03`, or `02:03`.
pub fn format_clock(seconds: f64) -> String {
    let seconds = duration_from_seconds(seconds).as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes:02}:{seconds:02}")
    }
}

/// Seconds, none of them wild.
fn duration_from_seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, 1e9))
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
