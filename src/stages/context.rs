//! What every stage receives besides its options and inputs: the seed, folders, the memory budget,
//! progress, and the request to stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::checkpoint::StageCheckpoint;
use crate::progress::Progress;
use secateur_base::memory;
use secateur_base::random::Seed;
use secateur_model::{Checkpoint, CheckpointError, Model};

/// What one stage of one variant receives from the run.
#[derive(Clone)]
pub struct Context {
    /// The seed of this stage, derived from the run's by stage type and occurrence, so that it is
    /// the same in a single run and in a sweep.
    pub seed: Seed,
    /// `run.data`: the folder of published data sets, laid out as `<task>/<split>.jsonl`.
    pub data_folder: Option<PathBuf>,
    /// A folder that only this stage writes to. Its files are copied into the variant's results.
    pub output_folder: PathBuf,
    pub memory_budget: MemoryBudget,
    /// Number of earlier stages of this type in the variant.
    pub occurrence: u32,
    /// The iteration of the `repeat` that contains the stage, if its outcome depends on it.
    pub repeat_position: Option<RepeatPosition>,
    /// The state that an interrupted run of this stage has left.
    pub checkpoint: StageCheckpoint,
    /// Where the stage reports its progress.
    pub progress: Progress,
    /// Set by Ctrl-C, SIGTERM and SIGHUP.
    pub stop_requested: Arc<AtomicBool>,
}

/// One iteration of a `repeat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RepeatPosition {
    /// From 1 to `iterations`.
    pub iteration: u32,
    pub iterations: u32,
}

/// How much memory a stage has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Bytes that the process may take.
    pub bytes: u64,
    /// Whether the blocks of a model stay on disk; None: only if the model does not fit into the
    /// budget.
    pub stream_override: Option<bool>,
}

impl MemoryBudget {
    /// Whether the blocks of a model with this many bytes of weights stay on disk: if the weights
    /// take more than nine tenths of what the process has left.
    pub fn should_stream(self, weight_bytes: u64) -> bool {
        let available = self.bytes.saturating_sub(memory::resident_bytes());
        self.stream_override
            .unwrap_or(weight_bytes > available / 10 * 9)
    }

    /// Opens the checkpoint of a folder: in memory, or with its blocks on disk where the budget
    /// requires it.
    pub fn open_model(self, folder: &Path) -> Result<Model, CheckpointError> {
        // Weights are f32 in memory, whatever the type in which they are stored.
        let weight_bytes = Checkpoint::open(folder)?.parameter_count() * size_of::<f32>() as u64;
        if self.should_stream(weight_bytes) {
            Model::open_streaming(folder)
        } else {
            Model::load(folder)
        }
    }
}

/// The run received a request to stop, so the stage returned before it was done.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

impl Context {
    /// The path of a product in the output folder: `hf`, and `hf-2` in the second stage of this
    /// type, so that none overwrites another.
    pub fn output_path(&self, name: &str, ending: &str) -> PathBuf {
        let number = if self.occurrence == 0 {
            String::new()
        } else {
            format!("-{}", self.occurrence + 1)
        };
        self.output_folder.join(format!("{name}{number}{ending}"))
    }

    /// Called between the steps of a long stage.
    ///
    /// # Errors
    /// [`Interrupted`] after a request to stop.
    pub fn check_interrupt(&self) -> Result<(), Interrupted> {
        if self.stop_requested.load(Ordering::Relaxed) {
            Err(Interrupted)
        } else {
            Ok(())
        }
    }

    /// As [`Context::check_interrupt`], for a stage that can resume: writes the state to disk if
    /// the last write is long enough ago, and always before it returns [`Interrupted`].
    /// `checkpoint.read()` returns it in the next run.
    ///
    /// # Errors
    /// [`Interrupted`] after a request to stop.
    pub fn checkpoint_or_stop<S: Serialize>(
        &self,
        state: impl FnOnce() -> S,
    ) -> Result<(), Interrupted> {
        let interrupt = self.check_interrupt();
        if interrupt.is_err() || self.checkpoint.is_due() {
            self.checkpoint.write(&state());
        }
        interrupt
    }
}
