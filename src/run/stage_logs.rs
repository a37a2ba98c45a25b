//! The log of stages that several variants share. A variant begins after them, when the run reaches
//! its own stages; its log then gets a copy of theirs.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::plan::ids::NodeId;
use secateur_base::files::{FileError, PartialFolder};

/// A temporary folder with one log file for each shared stage. Dropping it removes it.
pub(crate) struct StageLogs {
    folder: PartialFolder,
}

impl StageLogs {
    pub(crate) fn new(results_folder: &Path) -> Result<Self, FileError> {
        Ok(Self {
            folder: PartialFolder::new(results_folder)?,
        })
    }

    /// The log file of a stage.
    pub(crate) fn path(&self, node: NodeId) -> PathBuf {
        self.folder.path().join(format!("{}.jsonl", node.0))
    }

    /// Appends the logs of these stages to `log`. As in [`crate::run::log`], a log that cannot be
    /// written does not stop a run.
    pub(crate) fn copy_to(&self, log: &Path, nodes: impl Iterator<Item = NodeId>) {
        for node in nodes {
            let Ok(events) = fs::read(self.path(node)) else {
                continue;
            };
            let log = OpenOptions::new().create(true).append(true).open(log);
            drop(log.and_then(|mut log| log.write_all(&events)));
        }
    }
}
