//! How far a run is: a line above the bars for people, `status.json` for machines.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::progress::{Headline, Progress};
use secateur_base::files;

/// `results/<pipeline>/status.json`, written at every event. Of several runs in one folder it tells of the last that
/// did something.
#[derive(Clone, Debug, Serialize)]
pub struct RunStatus {
    pub pipeline: String,
    pub state: RunState,
    pub process: u32,
    /// Seconds since 1970.
    pub started: u64,
    /// Seconds since 1970.
    pub updated: u64,
    pub variants: VariantCounts,
    /// Stages of the tree; each counts once, however many variants share it.
    pub stages: StageCounts,
    /// What is being done.
    pub now: Option<CurrentStage>,
    pub seconds_elapsed: f64,
    /// For all that is left, from what such stages took so far; null until each kind was seen once.
    pub seconds_left: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    Running,
    /// Every variant succeeded.
    Succeeded,
    /// Some variant failed.
    Failed,
    Interrupted,
}

/// Of the variants that this run was asked for.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct VariantCounts {
    pub total: usize,
    pub succeeded: usize,
    pub failed: usize,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct StageCounts {
    /// That ran.
    pub run: usize,
    /// That were kept from an earlier run.
    pub kept: usize,
    /// That will run.
    pub left: usize,
}

/// The stage at work.
#[derive(Clone, Debug, Serialize)]
pub struct CurrentStage {
    pub step: u32,
    pub stage: &'static str,
    /// The variants that share it.
    pub variants: Vec<String>,
    /// Seconds since 1970.
    pub since: u64,
}

/// Tells people and machines.
#[derive(Debug)]
pub struct StatusWriter {
    pub status: RunStatus,
    path: PathBuf,
    started: Instant,
    headline: Headline,
}

impl StatusWriter {
    pub fn new(folder: &Path, pipeline: &str, variants: usize, progress: &Progress) -> Self {
        let status = RunStatus {
            pipeline: pipeline.to_owned(),
            state: RunState::Running,
            process: std::process::id(),
            started: unix_seconds(),
            updated: unix_seconds(),
            variants: VariantCounts {
                total: variants,
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

    /// Says where the run is. That it cannot be written is no reason to stop work.
    pub fn update(&mut self, change: impl FnOnce(&mut RunStatus)) {
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

    /// `3 of 24`: the variant at work.
    pub fn variant_progress(&self) -> String {
        let VariantCounts {
            total,
            succeeded,
            failed,
        } = self.status.variants;
        format!("{} of {total}", (succeeded + failed + 1).min(total))
    }
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
