//! The progress of a run: a headline above the progress bars, and `status.json` for other programs.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::progress::{Headline, Progress};
use crate::results::ResultsFolder;
use crate::run::status_file::{self, HEARTBEAT, RunState, RunStatus, VariantCounts, unix_seconds};
use secateur_base::files::FileError;
use secateur_base::locks::Claim;

/// Writes `status.json` and the headline. Dropping it ends the updates.
#[derive(Debug)]
pub(crate) struct StatusWriter {
    pub(crate) status: RunStatus,
    results: Arc<ResultsFolder>,
    started: Instant,
    headline: Headline,
    heartbeat: Heartbeat,
    /// Tells other processes that this run is alive.
    _claim: Option<Claim>,
}

/// The thread that renews the status while a stage runs.
#[derive(Debug)]
struct Heartbeat {
    /// The status that was written last, and when it was. Locked while the file is written.
    latest: Arc<Mutex<(RunStatus, Instant)>>,
    /// Dropping it ends the thread.
    end: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl StatusWriter {
    /// The status at the start of a run of `variant_count` variants; nothing is written yet.
    ///
    /// # Errors
    /// If the run cannot be claimed in the results folder.
    pub(crate) fn new(
        results: Arc<ResultsFolder>,
        pipeline: &str,
        variant_count: usize,
        progress: &Progress,
    ) -> Result<Self, FileError> {
        let status = RunStatus::new(pipeline, variant_count);
        let claim = results.claim(&status.claim_name())?;
        Ok(Self {
            heartbeat: Heartbeat::start(results.clone(), status.clone()),
            status,
            results,
            started: Instant::now(),
            headline: progress.headline(),
            _claim: claim,
        })
    }

    /// Changes the status and writes it.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut RunStatus)) {
        change(&mut self.status);
        self.status.updated = unix_seconds();
        self.status.seconds_elapsed = self.started.elapsed().as_secs_f64();
        self.headline
            .update(self.headline_text(), self.status.seconds_left);
        self.heartbeat.write(&self.results, &self.status);
    }

    /// `variant 3 of 24 · importance`
    fn headline_text(&self) -> String {
        let stage = self
            .status
            .now
            .as_ref()
            .map_or_else(String::new, |now| format!(" · {}", now.stage));
        format!("variant {}{stage}", self.variant_progress())
    }

    /// `3 of 24`: the number of the variant that is running.
    pub(crate) fn variant_progress(&self) -> String {
        let VariantCounts {
            total,
            succeeded,
            failed,
        } = self.status.variants;
        format!("{} of {total}", (succeeded + failed + 1).min(total))
    }
}

impl Heartbeat {
    fn start(results: Arc<ResultsFolder>, status: RunStatus) -> Self {
        let latest = Arc::new(Mutex::new((status, Instant::now())));
        let (end, ended) = mpsc::channel();
        let shared = latest.clone();
        let renew_until_ended = move || {
            while let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(HEARTBEAT) {
                let latest = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let (status, written) = &*latest;
                if status.state == RunState::Running {
                    status_file::write(&results, &renewed(status, *written));
                }
            }
        };
        Self {
            latest,
            end: Some(end),
            // Without the thread the status is only written when a stage begins.
            thread: std::thread::Builder::new().spawn(renew_until_ended).ok(),
        }
    }

    fn write(&self, results: &ResultsFolder, status: &RunStatus) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = (status.clone(), Instant::now());
        status_file::write(results, status);
    }
}

/// A status that was written at the time `written`, as it is now.
fn renewed(status: &RunStatus, written: Instant) -> RunStatus {
    let seconds = written.elapsed().as_secs_f64();
    RunStatus {
        updated: unix_seconds(),
        seconds_elapsed: status.seconds_elapsed + seconds,
        seconds_left: status.seconds_left.map(|left| (left - seconds).max(0.0)),
        ..status.clone()
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
