//! Events: a line each on standard error (above the bars on a terminal), and `log.jsonl` of the variants at work.

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

/// The `log.jsonl` files that events are written to at the moment. None stays open between two events: hundreds of
/// variants may share a stage. Clones are the same set.
#[derive(Clone, Debug, Default)]
pub struct LogFiles {
    paths: Arc<Mutex<Vec<PathBuf>>>,
}

impl LogFiles {
    /// From now on events go to these files, at their ends. One that cannot be written is left out: a log is not worth a
    /// run.
    pub fn set_paths(&self, paths: impl IntoIterator<Item = PathBuf>) {
        if let Ok(mut held) = self.paths.lock() {
            *held = paths.into_iter().collect();
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

/// Standard error, above the bars.
#[derive(Clone)]
struct ConsoleWriter(Progress);

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.print_above_bars(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Sets up the events of this process: on the console one line for each stage and what needs attention, in `log.jsonl`
/// the beginning and the end of each besides. The environment variable `SECATEUR_LOG` filters those of the console, in
/// tracing's notation.
pub fn init(format: LogFormat, terminal: bool, progress: &Progress, files: &LogFiles) {
    let filter = EnvFilter::try_from_env("SECATEUR_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,secateur=info"));
    let console = ConsoleWriter(progress.clone());
    let lines = fmt::layer()
        .with_writer(move || console.clone())
        .with_target(false);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
        LogFormat::Text if terminal => lines
            .compact()
            .without_time()
            .with_ansi(true)
            .with_filter(filter)
            .boxed(),
        LogFormat::Text => lines.compact().with_ansi(false).with_filter(filter).boxed(),
    };
    let log = fmt::layer()
        .json()
        .flatten_event(true)
        .with_writer(files.clone());
    let log = log.with_filter(EnvFilter::new("warn,secateur=debug"));
    // A second start in one process, as in tests, keeps the first.
    drop(
        tracing_subscriber::registry()
            .with(lines)
            .with(log)
            .try_init(),
    );
}
