//! The folder of a variant's results: the resolved pipeline, the manifest, the log, tables as they are measured, and
//! what stages write. Files appear whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::machine;
use secateur_base::files::{self, FileError, Fingerprint, PartialFolder};
use secateur_base::locks::{Claim, SharedFolder};
use secateur_store::cache::{ProductCost, StoredProduct};
use secateur_store::tables::{self, Table, TableError, TablePart};
use secateur_tensor::Device;

/// `results/<pipeline>/`, while a run is at work in it.
#[derive(Debug)]
pub struct ResultsFolder {
    folder: SharedFolder,
}

/// `results/<pipeline>/<variant>/`, while it is built. No other run works on it.
#[derive(Debug)]
pub struct VariantFolder {
    id: String,
    folder: PathBuf,
    /// Where it is built if an earlier, complete result stands in its place: that one stays until this one is complete.
    replacement: Option<PartialFolder>,
    /// What was measured so far.
    parts: Vec<TablePart>,
    manifest: VariantManifest,
    _claim: Claim,
}

/// What a run was made of: `manifest.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VariantManifest {
    /// The program and its version.
    pub program: String,
    /// blake3 of the pipeline file as it was read.
    pub source: String,
    /// blake3 of the variant's own `pipeline.toml`.
    pub pipeline: String,
    pub variant: String,
    pub seed: u64,
    /// `cpu`, or `cuda` with its GPUs.
    pub device: String,
    pub processor: String,
    pub threads: usize,
    pub dtype: String,
    /// What may differ where the same is run elsewhere.
    pub may_differ: String,
    /// blake3 of every file that a stage read.
    pub inputs: BTreeMap<String, String>,
    pub status: VariantStatus,
    pub error: Option<String>,
    pub stages: Vec<StageRecord>,
    /// Every file of the result but this one and the log. Empty until it is complete.
    pub outputs: BTreeMap<String, Fingerprint>,
}

/// How far a variant came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VariantStatus {
    Running,
    Succeeded,
    Failed,
    Interrupted,
}

/// One stage of a variant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StageRecord {
    pub step: u32,
    pub stage: String,
    /// What it was asked, every default filled in.
    #[serde(default)]
    pub options: Map<String, Value>,
    /// The hash of all that its outcome depends on.
    pub key: String,
    /// The version of its code.
    pub code: String,
    /// Whether it was kept from an earlier run; then the cost is what it was at that time.
    pub kept: bool,
    #[serde(flatten)]
    pub cost: ProductCost,
    /// Variants that shared this one run of the stage.
    pub shared_by: usize,
}

/// What stands in a variant's place.
#[derive(Debug)]
pub enum ResultState {
    /// Nothing that could be used.
    Missing,
    /// A complete result of other inputs, code or options.
    Outdated,
    /// The result itself.
    Complete,
    /// The result, but for this file.
    Damaged(String),
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

/// What the manifest says of other machines.
const MAY_DIFFER_NOTICE: &str = "On processors of another name, and on GPUs, the last bits of sums may differ, and with them the last \
     digits of every measured number and weight. Threads, folders, other variants and kept products change no bit.";

impl VariantManifest {
    /// The manifest of a variant that begins: `source_text` is the pipeline file, `resolved` the
    /// variant's own `pipeline.toml`.
    pub fn new(
        variant_id: &str,
        source_text: &str,
        resolved: &str,
        seed: u64,
        device: Device,
    ) -> Self {
        Self {
            program: machine::PROGRAM_VERSION.to_owned(),
            source: blake3::hash(source_text.as_bytes()).to_hex().to_string(),
            pipeline: blake3::hash(resolved.as_bytes()).to_hex().to_string(),
            variant: variant_id.to_owned(),
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

    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join("manifest.json")).ok()?).ok()
    }

    /// Whether it stands for these stages.
    pub fn has_stage_keys(&self, keys: &[&str]) -> bool {
        self.stages
            .iter()
            .map(|record| record.key.as_str())
            .eq(keys.iter().copied())
    }

    fn write(&self, folder: &Path) -> Result<(), FileError> {
        let path = folder.join("manifest.json");
        let text = serde_json::to_string_pretty(self).map_err(|e| FileError {
            path: path.clone(),
            source: e.into(),
        })?;
        files::write_atomic(&path, (text + "\n").as_bytes())
    }
}

/// What became of a variant as its folder tells, and where its tables lie: the last attempt, if it did not succeed.
pub fn read_last_manifest(folder: &Path) -> Option<(PathBuf, VariantManifest)> {
    let places = [folder.join(ATTEMPT_FOLDER), folder.to_owned()];
    places
        .into_iter()
        .find_map(|folder| VariantManifest::read(&folder).map(|manifest| (folder, manifest)))
}

/// Where an attempt that did not succeed lies, in the folder of the complete result that it would have replaced.
const ATTEMPT_FOLDER: &str = "attempt";

/// What stands in a variant's folder. `whole`: read every file, in place of a look at its length.
pub fn result_state(folder: &Path, keys: &[&str], whole: bool) -> ResultState {
    let Some(manifest) = VariantManifest::read(folder)
        .filter(|manifest| manifest.status == VariantStatus::Succeeded)
    else {
        return ResultState::Missing;
    };
    if !manifest.has_stage_keys(keys) {
        return ResultState::Outdated;
    }
    let has_length = |(name, file): (&String, &Fingerprint)| file.has_length(&folder.join(name));
    let damaged = match whole {
        true => find_damaged_file(folder, &manifest),
        false => manifest
            .outputs
            .iter()
            .find(|output| !has_length(*output))
            .map(|(name, _)| name.clone()),
    };
    damaged.map_or(ResultState::Complete, ResultState::Damaged)
}

/// A file of a complete result that is not what was written.
pub fn find_damaged_file(folder: &Path, manifest: &VariantManifest) -> Option<String> {
    manifest
        .outputs
        .iter()
        .find(|(name, file)| !file.matches_file(&folder.join(name)))
        .map(|(name, _)| name.clone())
}

impl ResultsFolder {
    /// Opens the folder of a pipeline.
    pub fn open(folder: &Path) -> Result<Self, FileError> {
        Ok(Self {
            folder: SharedFolder::open(folder)?,
        })
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Claims a variant; None while another run works on it.
    pub fn claim(&self, id: &str) -> Result<Option<Claim>, FileError> {
        self.folder.try_claim(id)
    }

    /// Whether a variant's result is there. An attempt at another one goes; a damaged result is told.
    pub fn is_complete(&self, id: &str, keys: &[&str]) -> bool {
        let folder = self.folder().join(id);
        match result_state(&folder, keys, true) {
            ResultState::Complete => {
                drop(fs::remove_dir_all(folder.join(ATTEMPT_FOLDER)));
                true
            }
            ResultState::Damaged(file) => {
                tracing::warn!(
                    variant = id,
                    file,
                    "a result is damaged: it is put together again"
                );
                false
            }
            ResultState::Missing | ResultState::Outdated => false,
        }
    }

    /// Begins a variant: its pipeline and manifest are written before any work. A complete result of an earlier run stays
    /// until this one is complete; an incomplete one goes.
    pub fn begin_variant(
        &self,
        claim: Claim,
        resolved: &str,
        manifest: VariantManifest,
    ) -> Result<VariantFolder, FileError> {
        let id = manifest.variant.clone();
        let folder = self.folder().join(&id);
        let mut staged = None;
        match VariantManifest::read(&folder) {
            Some(earlier) if earlier.status == VariantStatus::Succeeded => {
                staged = Some(PartialFolder::new(self.folder())?)
            }
            Some(_) => files::remove_folder(&folder)?,
            // An empty folder, or one that holds what no run left.
            None if folder.is_dir() && fs::remove_dir(&folder).is_ok() => {}
            None if folder.symlink_metadata().is_ok() => {
                let taken = "what no run left stands where the variant's folder goes; move it away";
                return Err(FileError {
                    path: folder,
                    source: std::io::Error::other(taken),
                });
            }
            None => {}
        }
        let mut variant = VariantFolder {
            id,
            folder,
            replacement: staged,
            parts: Vec::new(),
            manifest,
            _claim: claim,
        };
        // Its manifest says whose a folder is, so a folder never stands there without one.
        let begun = if variant.replacement.is_none() {
            Some(PartialFolder::new(self.folder())?)
        } else {
            None
        };
        let work = begun
            .as_ref()
            .map_or(variant.work_folder(), PartialFolder::path);
        files::write_atomic_unsynced(&work.join("pipeline.toml"), resolved.as_bytes())?;
        variant.manifest.write(work)?;
        if let Some(begun) = begun {
            begun.replace_unsynced(&variant.folder)?;
        }
        variant.manifest.outputs.insert(
            "pipeline.toml".to_owned(),
            Fingerprint::from_bytes(resolved.as_bytes()),
        );
        Ok(variant)
    }
}

impl VariantFolder {
    /// Where the variant is built.
    fn work_folder(&self) -> &Path {
        self.replacement
            .as_ref()
            .map_or(&self.folder, PartialFolder::path)
    }

    pub fn log(&self) -> PathBuf {
        self.work_folder().join("log.jsonl")
    }

    /// Takes what a stage measured, wrote and read.
    pub fn add_stage(
        &mut self,
        record: StageRecord,
        tables: &[Table],
        kept: &StoredProduct,
        inputs: &BTreeMap<String, String>,
    ) -> Result<(), TableError> {
        let (step, stage) = (record.step, record.stage.clone());
        self.parts.extend(tables.iter().map(|table| TablePart {
            step,
            stage: stage.clone(),
            table: table.clone(),
        }));
        for Table { name, .. } in tables {
            let parts: Vec<&TablePart> = self
                .parts
                .iter()
                .filter(|part| part.table.name == *name)
                .collect();
            let file = format!("{name}.parquet");
            let written =
                tables::write_parts(&self.work_folder().join(&file), name, &self.id, &parts)?;
            self.manifest.outputs.insert(file, written);
        }
        let written = kept.written_files();
        if !written.is_empty() {
            let copy = PartialFolder::new(self.work_folder())?;
            files::link_or_copy_files(
                &kept.written_folder(),
                written.keys().map(Path::new),
                copy.path(),
            )?;
            copy.move_into(self.work_folder())?;
        }
        self.manifest.outputs.extend(written);
        self.manifest.inputs.extend(
            inputs
                .iter()
                .map(|(path, hash)| (path.clone(), hash.clone())),
        );
        self.manifest.stages.push(record);
        Ok(())
    }

    /// Ends the variant: what was built takes its place, or, if it failed where a complete result stands, a place in it.
    /// Returns where its tables lie.
    pub fn finish(
        mut self,
        status: VariantStatus,
        error: Option<String>,
    ) -> Result<PathBuf, FileError> {
        (self.manifest.status, self.manifest.error) = (status, error);
        let place = match (&self.replacement, status) {
            (Some(_), VariantStatus::Succeeded) | (None, _) => self.folder.clone(),
            (Some(_), _) => self.folder.join(ATTEMPT_FOLDER),
        };
        match (status, &self.replacement) {
            // what is staged is put on the disk as a whole before it takes its place
            (VariantStatus::Succeeded, Some(_)) => {}
            (VariantStatus::Succeeded, None) => {
                files::sync_and_make_readable(&self.folder).map_err(|source| FileError {
                    path: self.folder.clone(),
                    source,
                })?;
            }
            _ => self.manifest.outputs.clear(),
        }
        self.manifest.write(self.work_folder())?;
        if let Some(staged) = self.replacement.take() {
            if place == self.folder {
                keep_foreign_files(&place, staged.path());
            }
            staged.replace(&place)?;
        }
        Ok(place)
    }
}

/// What others put into a result stays there when a new one takes its place.
fn keep_foreign_files(old: &Path, new: &Path) {
    let Some(manifest) = VariantManifest::read(old) else {
        return;
    };
    for file in files::list_files(old).unwrap_or_default() {
        let is_ours = manifest.outputs.contains_key(&*file.to_string_lossy())
            || file.starts_with(ATTEMPT_FOLDER)
            || [Path::new("manifest.json"), Path::new("log.jsonl")].contains(&&*file);
        if !is_ours
            && !new.join(&file).exists()
            && let Err(error) = files::link_or_copy_files(old, [&*file], new)
        {
            tracing::warn!(
                "`{}` is not handed on to the new result: {error}",
                old.join(&file).display()
            );
        }
    }
}
