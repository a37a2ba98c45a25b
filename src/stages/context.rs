//! What every stage is handed besides its inputs: the seed, where data lies, how to report progress, when to stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::StageCheckpoint;
use crate::progress::Progress;
use secateur_base::memory;
use secateur_base::random::Seed;

/// The surroundings of one stage of one variant.
#[derive(Clone)]
pub struct Context {
    /// This stage's own seed, derived from the run's by stage type and occurrence: the same alone or in a sweep.
    pub seed: Seed,
    /// `run.data`: the folder of published data sets, laid out as `<task>/<split>.jsonl`.
    pub data_folder: Option<PathBuf>,
    /// A folder of this stage alone; what is left in it appears beside the variant's tables.
    pub output_folder: PathBuf,
    pub memory_budget: MemoryBudget,
    /// How many stages of this type stand before it in the variant.
    pub occurrence: u32,
    /// How far an interrupted run of this very stage came.
    pub checkpoint: StageCheckpoint,
    /// Where the stage says how far it is.
    pub progress: Progress,
    /// Raised by Ctrl-C and SIGTERM.
    pub stop_requested: Arc<AtomicBool>,
}

/// How much memory a stage has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Bytes that the process may take.
    pub bytes: u64,
    /// Whether the blocks of a model stay on disk; None: where it does not fit.
    pub stream_override: Option<bool>,
}

impl MemoryBudget {
    /// Whether the blocks of a model that takes so many bytes stay on disk.
    pub fn should_stream(self, weights: u64) -> bool {
        let room = self.bytes.saturating_sub(memory::resident_bytes());
        self.stream_override.unwrap_or(weights > room / 10 * 9)
    }
}

/// The run was asked to stop; the stage gave up between two steps.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

impl Context {
    /// Where to leave a product: `hf`, and `hf-2` in the second stage of this type, so that none overwrites another.
    pub fn output_path(&self, name: &str, ending: &str) -> PathBuf {
        let number = if self.occurrence == 0 {
            String::new()
        } else {
            format!("-{}", self.occurrence + 1)
        };
        self.output_folder.join(format!("{name}{number}{ending}"))
    }

    /// Called between steps of a long stage.
    ///
    /// # Errors
    /// [`Interrupted`] once the run was asked to stop.
    pub fn check_interrupt(&self) -> Result<(), Interrupted> {
        if self.stop_requested.load(Ordering::Relaxed) {
            Err(Interrupted)
        } else {
            Ok(())
        }
    }

    /// As [`Context::go_on`], for a stage that can go on where it stopped: now and then, and before it gives up, the
    /// state is left on disk, where `state.read()` finds it in the next run.
    ///
    /// # Errors
    /// [`Interrupted`] once the run was asked to stop.
    pub fn checkpoint_or_stop<S: Serialize>(
        &self,
        state: impl FnOnce() -> S,
    ) -> Result<(), Interrupted> {
        let go_on = self.check_interrupt();
        if go_on.is_err() || self.checkpoint.is_due() {
            self.checkpoint.write(&state());
        }
        go_on
    }
}
