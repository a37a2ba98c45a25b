//! Log events: on standard error (above the progress bars on a terminal) and in the `log.jsonl` of
//! the variants that are running.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::pipeline::settings::LogFormat;
use crate::progress::Progress;
use crate::run::console::ConsoleWriter;
pub use crate::run::console::{Console, Verbosity};
use crate::run::log_lines::LogLines;

/// The `log.jsonl` files that events are currently written to. Clones share the set.
///
/// A file is opened for each event and closed again: hundreds of variants can share a stage, and
/// their files could exceed the limit of open files.
#[derive(Clone, Debug, Default)]
pub struct LogFiles {
    paths: Arc<Mutex<Vec<PathBuf>>>,
}

impl LogFiles {
    /// Sets the files that further events are appended to. A file that cannot be written is
    /// skipped: a missing log does not stop a run.
    pub fn set_paths(&self, paths: impl IntoIterator<Item = PathBuf>) {
        if let Ok(mut current_paths) = self.paths.lock() {
            *current_paths = paths.into_iter().collect();
        }
    }
}

impl Write for &LogFiles {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Ok(paths) = self.paths.lock() {
            for path in paths.iter() {
                let file = OpenOptions::new().create(true).append(true).open(path);
                drop(file.and_then(|mut file| file.write_all(bytes)));
            }
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFiles {
    type Writer = &'a LogFiles;
    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Sets up the log of this process. `log.jsonl` has the events of level info and above, and the
/// beginning and the end of each stage (level debug), whatever the console shows.
pub fn init(format: LogFormat, console: Console, progress: &Progress, files: &LogFiles) {
    let filter = match console.verbosity {
        Some(verbosity) => EnvFilter::new(verbosity.filter()),
        None => EnvFilter::try_from_env("SECATEUR_LOG")
            .unwrap_or_else(|_| EnvFilter::new(Verbosity::Normal.filter())),
    };
    let writer = ConsoleWriter::new(progress);
    let console = match format {
        LogFormat::Json => fmt::layer()
            .with_writer(move || writer.clone())
            .with_target(false)
            .json()
            .flatten_event(true)
            .with_filter(filter)
            .boxed(),
        LogFormat::Text => LogLines { writer, console }.with_filter(filter).boxed(),
    };
    let log_files = fmt::layer()
        .json()
        .flatten_event(true)
        .with_writer(files.clone())
        .with_filter(EnvFilter::new("warn,secateur=debug"));
    // `try_init` fails if this process already has a subscriber, as in tests: that one stays.
    drop(
        tracing_subscriber::registry()
            .with(console)
            .with(log_files)
            .try_init(),
    );
}
