//! The progress of a run: a headline above the progress bars, and `status.json` for other programs.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::progress::{Headline, Progress};
use secateur_base::files;

/// `results/<pipeline>/status.json`, written whenever a stage begins and when the run ends. If
/// several processes run one pipeline it is that of the last one that wrote it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RunStatus {
    pub(crate) pipeline: String,
    pub(crate) state: RunState,
    /// The process id.
    pub(crate) process: u32,
    /// Seconds since 1970.
    pub(crate) started: u64,
    /// Seconds since 1970.
    pub(crate) updated: u64,
    pub(crate) variants: VariantCounts,
    /// The nodes of the tree: a stage that several variants share counts once.
    pub(crate) stages: StageCounts,
    /// The stage that is running.
    pub(crate) now: Option<CurrentStage>,
    pub(crate) seconds_elapsed: f64,
    /// An estimate for the remaining stages, from the mean time of stages of the same type, in this
    /// run or stored with their products; null while a type has no time.
    pub(crate) seconds_left: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RunState {
    Running,
    /// Every variant succeeded.
    Succeeded,
    /// Some variant failed.
    Failed,
    Interrupted,
}

/// Counts of the variants that this run has selected.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct VariantCounts {
    pub(crate) total: usize,
    pub(crate) succeeded: usize,
    pub(crate) failed: usize,
}

/// Counts of stages.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct StageCounts {
    /// Stages that ran.
    pub(crate) run: usize,
    /// Stages whose product came from the cache.
    pub(crate) kept: usize,
    /// Stages that are still to run.
    pub(crate) left: usize,
}

/// The stage that is running.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CurrentStage {
    pub(crate) step: u32,
    pub(crate) stage: &'static str,
    /// The variants that share it.
    pub(crate) variants: Vec<String>,
    /// Seconds since 1970.
    pub(crate) since: u64,
}

/// Writes `status.json` and the headline.
#[derive(Debug)]
pub(crate) struct StatusWriter {
    pub(crate) status: RunStatus,
    path: PathBuf,
    started: Instant,
    headline: Headline,
}

impl StatusWriter {
    /// The status at the start of a run of `variant_count` variants; nothing is written yet.
    pub(crate) fn new(
        folder: &Path,
        pipeline: &str,
        variant_count: usize,
        progress: &Progress,
    ) -> Self {
        let status = RunStatus {
            pipeline: pipeline.to_owned(),
            state: RunState::Running,
            process: std::process::id(),
            started: unix_seconds(),
            updated: unix_seconds(),
            variants: VariantCounts {
                total: variant_count,
                ..VariantCounts::default()
            },
            stages: StageCounts::default(),
            now: None,
            seconds_elapsed: 0.0,
            seconds_left: None,
        };
        Self {
            status,
            path: folder.join("status.json"),
            started: Instant::now(),
            headline: progress.headline(),
        }
    }

    /// Changes the status and writes it. A file that cannot be written does not stop the run.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut RunStatus)) {
        change(&mut self.status);
        self.status.updated = unix_seconds();
        self.status.seconds_elapsed = self.started.elapsed().as_secs_f64();
        self.headline
            .update(self.headline_text(), self.status.seconds_left);
        if let Ok(text) = serde_json::to_vec_pretty(&self.status) {
            drop(files::write_atomic_unsynced(&self.path, &text));
        }
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

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |duration| duration.as_secs())
}
