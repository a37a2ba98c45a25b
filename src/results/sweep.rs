//! What is recorded of the variants of a sweep: which options tell each from the others, and which
//! steps measured which model. A variant's manifest has its own description, so that its row
//! survives whatever the next run of the pipeline is; `results/<pipeline>/sweep.json` lists the
//! variants of the last run's sweep, so that a merge of shards knows which are missing.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use secateur_base::files::{FileError, write_atomic_unsynced};

/// What a variant is, independent of how its run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VariantDescription {
    pub id: String,
    /// The options that the sweep or the command line sets, and their values.
    pub swept: Vec<(String, Value)>,
    /// The steps of its `evaluate` stages.
    #[serde(flatten)]
    pub evaluate: StepsByModel,
    /// The steps of its `generate` stages.
    #[serde(default)]
    pub generate: StepsByModel,
}

/// The steps of one stage type, by the model that they measure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepsByModel {
    /// Steps before the first pruning: of the dense model. The first that has a metric or prompt
    /// is reported.
    pub dense: Vec<u32>,
    /// Steps after the last pruning and before the next stage that changes the model: of the pruned
    /// model before recovery.
    pub pruned: Vec<u32>,
    /// Steps after the last stage that changes the model: of the final model. The last that has a
    /// metric or prompt is reported.
    pub last: Vec<u32>,
}

/// `sweep.json`: the sweep of the last run in a results folder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SweepManifest {
    /// The path of the pipeline file, relative to the working directory if it lies inside; None for
    /// the `pipeline.toml` of a variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<String>,
    /// The shard of the last run, as on its command line; None if it had all variants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
    /// In the order of the sweep.
    pub variants: Vec<VariantDescription>,
}

impl VariantDescription {
    /// The hash in the id: variants with equal hashes have the same options and seed, whatever the
    /// readable part of their ids is.
    pub fn id_hash(&self) -> &str {
        let id = self.id.as_str();
        id.rsplit_once('-').map_or(id, |(_, hash)| hash)
    }
}

impl SweepManifest {
    /// Reads the manifest of a results folder; `None` if there is none or it does not parse.
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join(FILE_NAME)).ok()?).ok()
    }

    pub fn write(&self, folder: &Path) -> Result<(), FileError> {
        let path = folder.join(FILE_NAME);
        let text =
            serde_json::to_vec_pretty(self).map_err(|error| FileError::write(&path, error))?;
        write_atomic_unsynced(&path, &text)
    }
}

const FILE_NAME: &str = "sweep.json";
