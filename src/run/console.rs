//! Standard error as the console of a run: which events it shows, and how they are written.

use std::io::{self, Write};

use crate::progress::Progress;

/// Writes to standard error, above the progress bars.
#[derive(Clone)]
pub(crate) struct ConsoleWriter(Progress);

impl ConsoleWriter {
    pub(crate) fn new(progress: &Progress) -> Self {
        Self(progress.clone())
    }
}

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.print_above_bars(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Which events the console shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    Errors,
    Warnings,
    /// Also one line for each stage.
    Normal,
    /// Also the beginnings of stages, and what is done behind them.
    Debug,
}

impl Verbosity {
    /// The filter in the notation of `tracing`. `secateur` stands for all crates of the workspace.
    pub(crate) fn filter(self) -> &'static str {
        match self {
            Self::Errors => "error",
            Self::Warnings => "warn",
            Self::Normal => "warn,secateur=info",
            Self::Debug => "warn,secateur=debug",
        }
    }
}

/// How events are shown on standard error.
#[derive(Clone, Copy, Debug)]
pub struct Console {
    /// `None`: what the environment variable `SECATEUR_LOG` says in the notation of `tracing`, else
    /// [`Verbosity::Normal`].
    pub verbosity: Option<Verbosity>,
    pub has_color: bool,
    /// The width of the terminal, asked for each event: it can be resized. `None` if standard error
    /// is no terminal: lines then begin with the time and are not shortened.
    pub terminal_width: Option<fn() -> usize>,
}
