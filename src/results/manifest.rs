//! The manifest of a variant, `manifest.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::machine;
use crate::results::sweep::VariantDescription;
use secateur_base::files::{self, FileError, Fingerprint};
use secateur_store::cache::ProductCost;
use secateur_tensor::Device;

/// The name of the file in a variant's folder.
pub(super) const MANIFEST_FILE: &str = "manifest.json";

/// `manifest.json`: what a variant's results were computed from, and how its run ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VariantManifest {
    /// Name and version of the program.
    pub program: String,
    /// blake3 of the pipeline file as it was read.
    pub source: String,
    /// blake3 of the variant's own `pipeline.toml`.
    pub pipeline: String,
    pub variant: String,
    /// What its row in the sweep's table is made from; None in manifests of earlier versions.
    #[serde(default)]
    pub description: Option<VariantDescription>,
    pub seed: u64,
    /// `cpu`, or `cuda` with the names of the GPUs.
    pub device: String,
    /// The CPU.
    pub processor: String,
    pub threads: usize,
    pub dtype: String,
    /// What can differ when the same pipeline runs on another machine.
    pub may_differ: String,
    /// blake3 of every file that a stage read, by path.
    pub inputs: BTreeMap<String, String>,
    pub status: VariantStatus,
    pub error: Option<String>,
    /// In the order of the steps. A variant that is not complete can lack some in between: another
    /// run was making them.
    pub stages: Vec<StageRecord>,
    /// Every file of the result except this manifest and the log. Empty until the variant is
    /// complete.
    pub outputs: BTreeMap<String, Fingerprint>,
}

/// How the run of a variant ended. `running` in a manifest holds only while a process has the claim
/// on the variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VariantStatus {
    Running,
    Succeeded,
    Failed,
    Interrupted,
}

/// The record of one stage of a variant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StageRecord {
    pub step: u32,
    pub stage: String,
    /// Its options, including defaults.
    #[serde(default)]
    pub options: Map<String, Value>,
    /// The hash of everything that its outcome depends on.
    pub key: String,
    /// The hash of the stage's source code.
    pub code: String,
    /// Whether its product came from the cache; `cost` is then that of the run that computed it.
    pub kept: bool,
    #[serde(flatten)]
    pub cost: ProductCost,
    /// The number of variants that shared this run of the stage.
    pub shared_by: usize,
}

impl VariantStatus {
    pub fn name(self) -> &'static str {
        match self {
            VariantStatus::Running => "running",
            VariantStatus::Succeeded => "succeeded",
            VariantStatus::Failed => "failed",
            VariantStatus::Interrupted => "interrupted",
        }
    }
}

/// The text of [`VariantManifest::may_differ`].
const MAY_DIFFER_NOTICE: &str = "On another CPU model, and on GPUs, the last bits of sums may \
     differ, and with them the last digits of every measured number and weight. The number of \
     threads, the folders, the other variants and kept products change no bit.";

impl VariantManifest {
    /// The manifest of a variant before its first stage: `source_text` is the pipeline file,
    /// `pipeline_toml` the variant's own `pipeline.toml`.
    pub fn new(
        variant_id: &str,
        source_text: &str,
        pipeline_toml: &str,
        seed: u64,
        device: Device,
    ) -> Self {
        Self {
            program: machine::PROGRAM_VERSION.to_owned(),
            source: blake3::hash(source_text.as_bytes()).to_hex().to_string(),
            pipeline: blake3::hash(pipeline_toml.as_bytes()).to_hex().to_string(),
            variant: variant_id.to_owned(),
            description: None,
            seed,
            device: machine::device_description(device),
            processor: machine::cpu_description().to_owned(),
            threads: rayon::current_num_threads(),
            dtype: "float32".to_owned(),
            may_differ: MAY_DIFFER_NOTICE.to_owned(),
            inputs: BTreeMap::new(),
            status: VariantStatus::Running,
            error: None,
            stages: Vec::new(),
            outputs: BTreeMap::new(),
        }
    }

    /// Reads the manifest of a folder; `None` if there is none or it does not parse.
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(MANIFEST_FILE)).ok()?).ok()
    }

    /// The description of the variant if the result is complete.
    pub fn complete_description(&self) -> Option<&VariantDescription> {
        let description = self.description.as_ref()?;
        (self.status == VariantStatus::Succeeded).then_some(description)
    }

    /// Whether its stages have these keys, in this order.
    pub fn has_stage_keys(&self, keys: &[&str]) -> bool {
        self.stages
            .iter()
            .map(|record| record.key.as_str())
            .eq(keys.iter().copied())
    }

    /// The record of the stage of a step, if it was added.
    pub fn stage(&self, step: u32) -> Option<&StageRecord> {
        self.stages.iter().find(|record| record.step == step)
    }

    /// Adds the record of a stage in the order of the steps.
    pub(super) fn add_stage(&mut self, record: StageRecord) {
        let position = self
            .stages
            .partition_point(|other| other.step < record.step);
        self.stages.insert(position, record);
    }

    /// Marks a variant as interrupted whose run has ended without saying how.
    pub(super) fn set_interrupted(&mut self) {
        self.status = VariantStatus::Interrupted;
        self.error = Some("the run was killed".to_owned());
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), FileError> {
        let path = folder.join(MANIFEST_FILE);
        let text =
            serde_json::to_string_pretty(self).map_err(|error| FileError::write(&path, error))?;
        files::write_atomic(&path, (text + "\n").as_bytes())
    }
}
