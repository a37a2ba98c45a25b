//! `results/<pipeline>/status.json`: the progress of the runs in the folder, for other programs.
//!
//! Every run writes the file whenever a stage begins, every few seconds while one runs, and when it
//! ends. A run that is killed cannot write that it has ended. Three things tell:
//!
//! - its claim (a lock of the system) is gone: this program looks at it, and the next run, `runner
//!   report` and `runner plan` write `killed`;
//! - `host`, `process` and `process_began` name a process that does not exist any more;
//! - `updated` is more than [`STALE_AFTER`] ago.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::results::ResultsFolder;
use secateur_base::files;
use secateur_base::locks::{self, Claim, LockSupport};
use secateur_base::process::ProcessIdentity;

const FILE_NAME: &str = "status.json";

/// A running run updates the file at least this often.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(5);

/// A run whose last update is longer ago has probably ended.
const STALE_AFTER: Duration = Duration::from_secs(60);

/// The number of runs that have ended which the file still lists.
const MAX_ENDED_RUNS: usize = 16;

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
struct StatusFile {
    /// Of the runs that are running, the one that began last; if none is, the one that ended last.
    #[serde(flatten)]
    latest: RunStatus,
    /// The runs of the folder in the order in which they began: those that are running, and the
    /// last ones that have ended.
    runs: Vec<RunStatus>,
}

/// The progress of one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunStatus {
    pub(crate) pipeline: String,
    pub(crate) state: RunState,
    /// The name of the machine.
    pub(crate) host: String,
    /// The process id.
    pub(crate) process: u32,
    /// When the process began, in seconds since 1970: a process id can be used again.
    pub(crate) process_began: u64,
    /// Seconds since 1970.
    pub(crate) started: u64,
    /// Seconds since 1970, renewed every five seconds while the run is running.
    pub(crate) updated: u64,
    pub(crate) variants: VariantCounts,
    /// The nodes of the tree: a stage that several variants share counts once.
    pub(crate) stages: StageCounts,
    /// The stage that is running; null while the run waits for another one.
    pub(crate) now: Option<CurrentStage>,
    pub(crate) seconds_elapsed: f64,
    /// An estimate for the remaining stages, from the mean time of stages of the same type, in this
    /// run or stored with their products; null while a type has no time. Stages of variants that
    /// another run has claimed are not included.
    pub(crate) seconds_left: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RunState {
    Running,
    /// Every variant succeeded.
    Succeeded,
    /// Some variant failed.
    Failed,
    /// Stopped by Ctrl-C, SIGTERM or SIGHUP, with its state saved.
    Interrupted,
    /// The process ended without writing how.
    Killed,
}

/// Counts of the variants that this run has selected, whether it or another run completed them.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct VariantCounts {
    pub(crate) total: usize,
    pub(crate) succeeded: usize,
    pub(crate) failed: usize,
}

/// Counts of stages.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct StageCounts {
    /// Stages that ran.
    pub(crate) run: usize,
    /// Stages whose product came from the cache.
    pub(crate) kept: usize,
    /// Stages that are still to run.
    pub(crate) left: usize,
}

/// The stage that is running.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CurrentStage {
    pub(crate) step: u32,
    pub(crate) stage: String,
    /// The variants that share it.
    pub(crate) variants: Vec<String>,
    /// Seconds since 1970.
    pub(crate) since: u64,
}

impl RunStatus {
    /// The status of a run that begins in this process.
    pub(crate) fn new(pipeline: &str, variant_count: usize) -> Self {
        let identity = ProcessIdentity::current();
        Self {
            pipeline: pipeline.to_owned(),
            state: RunState::Running,
            host: identity.host,
            process: identity.id,
            process_began: identity.began,
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
        }
    }

    /// The name of the claim that a run holds in the results folder while it is running.
    pub(crate) fn claim_name(&self) -> String {
        let host = self.host.replace('/', "-");
        format!("run-{host}-{}-{}", self.process, self.process_began)
    }

    fn is_same_run(&self, other: &Self) -> bool {
        self.claim_name() == other.claim_name() && self.started == other.started
    }

    fn is_running(&self) -> bool {
        self.state == RunState::Running
    }

    /// Whether the run says that it is running, although its process has ended.
    fn is_dead(&self, folder: &Path, lock_support: LockSupport) -> bool {
        if !self.is_running() || locks::is_claimed(folder, &self.claim_name()) {
            return false;
        }
        // Locks of other machines may not be visible here; then its last update decides.
        let is_lock_visible =
            lock_support == LockSupport::Available && self.host == ProcessIdentity::current().host;
        let age = unix_seconds().saturating_sub(self.updated);
        is_lock_visible || age > STALE_AFTER.as_secs()
    }
}

/// Writes the status of a run into the file, beside those of other runs. A file that cannot be
/// written does not stop the run.
pub(crate) fn write(results: &ResultsFolder, status: &RunStatus) {
    // Of an update while the run is running nothing depends, so it is left out if another run is
    // writing just now. The last one must not be lost.
    let patience = match status.state {
        RunState::Running => Duration::from_millis(100),
        _ => Duration::from_secs(5),
    };
    let Some(_claim) = claim_within(results, patience) else {
        return;
    };
    let mut runs = read_runs(results.folder());
    match runs.iter_mut().find(|run| run.is_same_run(status)) {
        Some(own) => own.clone_from(status),
        None => runs.push(status.clone()),
    }
    mark_dead(&mut runs, results);
    write_runs(results, runs);
}

/// Marks runs of a results folder whose process was killed, and their variants: in `folder` itself,
/// if it is `results/<pipeline>`, and in the folders directly inside it.
///
/// A folder that cannot be written stays as it is.
pub fn mark_killed_runs(folder: &Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let inner_folders = entries.map(|entry| entry.path());
    for folder in std::iter::once(folder.to_owned()).chain(inner_folders) {
        let runs = read_runs(&folder);
        let is_suspicious = |run: &RunStatus| run.is_dead(&folder, LockSupport::Available);
        if !runs.iter().any(is_suspicious) {
            continue;
        }
        // This marks the variants.
        let Ok(results) = ResultsFolder::open(&folder) else {
            continue;
        };
        let Some(_claim) = claim_within(&results, Duration::from_secs(1)) else {
            continue;
        };
        let mut runs = read_runs(&folder);
        if mark_dead(&mut runs, &results) {
            write_runs(&results, runs);
        }
    }
}

/// Marks the runs whose process has ended. Returns whether there were any.
fn mark_dead(runs: &mut [RunStatus], results: &ResultsFolder) -> bool {
    let mut has_marked = false;
    for run in runs {
        if run.is_dead(results.folder(), results.lock_support()) {
            run.state = RunState::Killed;
            run.now = None;
            run.seconds_left = None;
            has_marked = true;
        }
    }
    has_marked
}

/// Claims the file, for the time of a read and a write.
fn claim_within(results: &ResultsFolder, patience: Duration) -> Option<Claim> {
    let begin = Instant::now();
    loop {
        match results.claim(FILE_NAME) {
            Ok(Some(claim)) => return Some(claim),
            Ok(None) if begin.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(None) | Err(_) => return None,
        }
    }
}

/// The runs that the file lists; none if it is missing or damaged.
fn read_runs(folder: &Path) -> Vec<RunStatus> {
    let content = std::fs::read(folder.join(FILE_NAME)).unwrap_or_default();
    serde_json::from_slice(&content).map_or_else(|_| Vec::new(), |file: StatusFile| file.runs)
}

/// Replaces the file. The caller has the claim on it.
fn write_runs(results: &ResultsFolder, mut runs: Vec<RunStatus>) {
    let ended_count = runs.iter().filter(|run| !run.is_running()).count();
    let mut surplus = ended_count.saturating_sub(MAX_ENDED_RUNS);
    runs.retain(|run| {
        let is_removed = surplus > 0 && !run.is_running();
        surplus -= usize::from(is_removed);
        !is_removed
    });
    let running = runs.iter().rev().find(|run| run.is_running());
    let Some(latest) = running.or_else(|| runs.iter().max_by_key(|run| run.updated)) else {
        return;
    };
    let file = StatusFile {
        latest: latest.clone(),
        runs,
    };
    if let Ok(text) = serde_json::to_vec_pretty(&file) {
        drop(files::write_atomic_unsynced(
            &results.folder().join(FILE_NAME),
            &text,
        ));
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |duration| duration.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of a process that does not exist.
    fn run_of(process_began: u64, host: &str, updated: u64) -> RunStatus {
        RunStatus {
            host: host.to_owned(),
            process_began,
            updated,
            ..RunStatus::new("ablation", 3)
        }
    }

    #[test]
    fn a_run_is_killed_if_its_claim_is_gone_or_its_last_update_is_old() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let results = ResultsFolder::open(folder.path()).expect("opened");
        let own = RunStatus::new("ablation", 3);
        let _claim = results.claim(&own.claim_name()).expect("locked");
        let now = unix_seconds();
        let runs = vec![
            run_of(1, &own.host, now),
            run_of(2, "elsewhere", now),
            run_of(3, "elsewhere", now - 3600),
        ];
        write_runs(&results, runs);
        write(&results, &own);
        let states: Vec<RunState> = read_runs(folder.path())
            .iter()
            .map(|run| run.state)
            .collect();
        assert_eq!(
            states,
            [
                RunState::Killed,
                RunState::Running,
                RunState::Killed,
                RunState::Running
            ]
        );
    }

    #[test]
    fn runs_that_ended_long_ago_are_dropped_and_running_ones_are_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let results = ResultsFolder::open(folder.path()).expect("opened");
        let now = unix_seconds();
        let mut runs = vec![run_of(0, "elsewhere", now)];
        for index in 1..=20 {
            let state = RunState::Succeeded;
            runs.push(RunStatus {
                state,
                ..run_of(index, "elsewhere", now)
            });
        }
        write_runs(&results, runs);
        let kept = read_runs(folder.path());
        assert_eq!(kept.len(), 1 + MAX_ENDED_RUNS);
        assert!(kept[0].is_running());
        assert_eq!(kept[1].process_began, 5);
    }
}
