//! What a run reports to, and what can stop it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::progress::Progress;
use crate::run::log::LogFiles;

/// What a run reports to and what can stop it. None of it changes results.
#[derive(Clone, Default)]
pub struct RunContext {
    pub progress: Progress,
    pub log: LogFiles,
    /// Set by Ctrl-C, SIGTERM and SIGHUP.
    pub stop: Arc<AtomicBool>,
    /// Whether the first failure ends the run.
    pub fail_fast: bool,
}
