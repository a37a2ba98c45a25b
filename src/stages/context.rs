//! What every stage is handed besides its inputs: the seed, where data lies, how to report progress, when to stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::State;
use crate::memory;
use crate::progress::Progress;
use crate::random::Seed;

/// The surroundings of one stage of one variant.
#[derive(Clone)]
pub struct Context {
    /// This stage's own seed, derived from the run's by stage type and occurrence: the same alone or in a sweep.
    pub seed: Seed,
    /// `run.data`: the folder of published data sets, laid out as `<task>/<split>.jsonl`.
    pub data: Option<PathBuf>,
    /// A folder of this stage alone; what is left in it appears beside the variant's tables.
    pub folder: PathBuf,
    pub budget: Budget,
    /// How many stages of this type stand before it in the variant.
    pub occurrence: u32,
    /// How far an interrupted run of this very stage came.
    pub state: State,
    /// Where the stage says how far it is.
    pub progress: Progress,
    /// Raised by Ctrl-C and SIGTERM.
    pub stop: Arc<AtomicBool>,
}

/// How much memory a stage has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes that the process may take.
    pub bytes: u64,
    /// Whether the blocks of a model stay on disk; None: where it does not fit.
    pub stream: Option<bool>,
}

impl Budget {
    /// Whether the blocks of a model that takes so many bytes stay on disk.
    pub fn streams(self, weights: u64) -> bool {
        let room = self.bytes.saturating_sub(memory::resident());
        self.stream.unwrap_or(weights > room / 10 * 9)
    }
}

/// The run was asked to stop; the stage gave up between two steps.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

impl Context {
    /// Where to leave a product: `hf`, and `hf-2` in the second stage of this type, so that none overwrites another.
    pub fn place(&self, name: &str, ending: &str) -> PathBuf {
        let number = if self.occurrence == 0 { String::new() } else { format!("-{}", self.occurrence + 1) };
        self.folder.join(format!("{name}{number}{ending}"))
    }

    /// Called between steps of a long stage.
    ///
    /// # Errors
    /// [`Interrupted`] once the run was asked to stop.
    pub fn go_on(&self) -> Result<(), Interrupted> {
        if self.stop.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }

    /// As [`Context::go_on`], for a stage that can go on where it stopped: now and then, and before it gives up, the
    /// state is left on disk, where `state.read()` finds it in the next run.
    ///
    /// # Errors
    /// [`Interrupted`] once the run was asked to stop.
    pub fn go_on_or_keep<S: Serialize>(&self, state: impl FnOnce() -> S) -> Result<(), Interrupted> {
        let go_on = self.go_on();
        if go_on.is_err() || self.state.is_due() {
            self.state.write(&state());
        }
        go_on
    }
}
