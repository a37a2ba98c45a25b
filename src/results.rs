//! The results folder of a variant: the resolved pipeline, the manifest, the log, the tables and
//! the files that stages write. Files are written atomically.

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

/// `results/<pipeline>/`, open for writing. Several processes can have it open; each variant is
/// claimed by one of them.
#[derive(Debug)]
pub struct ResultsFolder {
    folder: SharedFolder,
}

/// `results/<pipeline>/<variant>/` while its stages run. The claim keeps other processes out.
#[derive(Debug)]
pub struct VariantFolder {
    id: String,
    folder: PathBuf,
    /// The folder that is written to if `folder` holds a complete result of an earlier run: that
    /// result stays in place until this one is complete.
    replacement: Option<PartialFolder>,
    /// The rows that each stage has added so far.
    parts: Vec<TablePart>,
    manifest: VariantManifest,
    _claim: Claim,
}

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
    pub stages: Vec<StageRecord>,
    /// Every file of the result except this manifest and the log. Empty until the variant is
    /// complete.
    pub outputs: BTreeMap<String, Fingerprint>,
}

/// How the run of a variant ended.
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

/// The state of a variant's results folder.
#[derive(Debug)]
pub enum ResultState {
    /// There is no complete result.
    Missing,
    /// A complete result of other inputs, code or options.
    Outdated,
    /// The result is complete.
    Complete,
    /// The result is complete, but this file is not what was written.
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
        serde_json::from_slice(&fs::read(folder.join("manifest.json")).ok()?).ok()
    }

    /// Whether its stages have these keys, in this order.
    pub fn has_stage_keys(&self, keys: &[&str]) -> bool {
        self.stages
            .iter()
            .map(|record| record.key.as_str())
            .eq(keys.iter().copied())
    }

    fn write(&self, folder: &Path) -> Result<(), FileError> {
        let path = folder.join("manifest.json");
        let text = serde_json::to_string_pretty(self).map_err(|error| FileError {
            path: path.clone(),
            source: error.into(),
        })?;
        files::write_atomic(&path, (text + "\n").as_bytes())
    }
}

/// Reads the manifest of the last run of a variant, and returns it with the folder that it lies in:
/// the `attempt` folder if the last run did not succeed where a complete result already was.
pub fn read_last_manifest(folder: &Path) -> Option<(PathBuf, VariantManifest)> {
    let candidates = [folder.join(ATTEMPT_FOLDER), folder.to_owned()];
    candidates
        .into_iter()
        .find_map(|folder| VariantManifest::read(&folder).map(|manifest| (folder, manifest)))
}

/// The folder inside a complete result for a later run of the variant that did not succeed.
const ATTEMPT_FOLDER: &str = "attempt";

/// The state of a variant's folder. `verify_contents` hashes every file; otherwise only its length
/// is compared.
pub fn result_state(folder: &Path, keys: &[&str], verify_contents: bool) -> ResultState {
    let Some(manifest) = VariantManifest::read(folder)
        .filter(|manifest| manifest.status == VariantStatus::Succeeded)
    else {
        return ResultState::Missing;
    };
    if !manifest.has_stage_keys(keys) {
        return ResultState::Outdated;
    }
    let damaged = if verify_contents {
        find_damaged_file(folder, &manifest)
    } else {
        find_file_of_other_length(folder, &manifest)
    };
    damaged.map_or(ResultState::Complete, ResultState::Damaged)
}

/// A file of a complete result whose content is not what was written.
pub fn find_damaged_file(folder: &Path, manifest: &VariantManifest) -> Option<String> {
    let mut outputs = manifest.outputs.iter();
    let damaged = outputs.find(|(name, file)| !file.matches_file(&folder.join(name)));
    damaged.map(|(name, _)| name.clone())
}

fn find_file_of_other_length(folder: &Path, manifest: &VariantManifest) -> Option<String> {
    let mut outputs = manifest.outputs.iter();
    let damaged = outputs.find(|(name, file)| !file.has_length(&folder.join(name)));
    damaged.map(|(name, _)| name.clone())
}

impl ResultsFolder {
    /// Opens the results folder of a pipeline, and creates it if needed.
    pub fn open(folder: &Path) -> Result<Self, FileError> {
        Ok(Self {
            folder: SharedFolder::open(folder)?,
        })
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Claims a variant, by its id, or a table, by its file name; `None` while another process has
    /// the claim.
    pub fn claim(&self, id: &str) -> Result<Option<Claim>, FileError> {
        self.folder.try_claim(id)
    }

    /// Whether the folder has a complete result of a variant. If so, removes a stale `attempt`
    /// folder. Warns if the hash of a file does not match the manifest.
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
                    "a result is damaged: it is assembled again"
                );
                false
            }
            ResultState::Missing | ResultState::Outdated => false,
        }
    }

    /// Opens a variant's folder for a new run, and writes its pipeline and manifest there. A
    /// complete result of an earlier run stays until this one is complete; an incomplete one is
    /// removed.
    pub fn begin_variant(
        &self,
        claim: Claim,
        pipeline_toml: &str,
        manifest: VariantManifest,
    ) -> Result<VariantFolder, FileError> {
        let id = manifest.variant.clone();
        let folder = self.folder().join(&id);
        let replacement = self.make_room(&folder)?;
        let mut variant = VariantFolder {
            id,
            folder,
            replacement,
            parts: Vec::new(),
            manifest,
            _claim: claim,
        };
        // `make_room` refuses folders without a manifest, so the folder must never exist without
        // one: both files are written elsewhere and moved together.
        match &variant.replacement {
            Some(replacement) => variant.write_first_files(replacement.path(), pipeline_toml)?,
            None => {
                let draft = PartialFolder::new(self.folder())?;
                variant.write_first_files(draft.path(), pipeline_toml)?;
                draft.replace_unsynced(&variant.folder)?;
            }
        }
        // After the manifest was written: on disk its outputs are empty until the variant is
        // complete.
        variant.manifest.outputs.insert(
            "pipeline.toml".to_owned(),
            Fingerprint::from_bytes(pipeline_toml.as_bytes()),
        );
        Ok(variant)
    }

    /// Removes what an earlier run left in a variant's folder, unless it is a complete result: then
    /// returns a folder that the new result is written to.
    fn make_room(&self, folder: &Path) -> Result<Option<PartialFolder>, FileError> {
        if let Some(manifest) = VariantManifest::read(folder) {
            if manifest.status == VariantStatus::Succeeded {
                return PartialFolder::new(self.folder()).map(Some);
            }
            files::remove_folder(folder)?;
            return Ok(None);
        }
        let is_removed = folder.is_dir() && fs::remove_dir(folder).is_ok();
        if !is_removed && folder.symlink_metadata().is_ok() {
            let message =
                "the variant's folder holds files that no run of this program wrote; move it away";
            return Err(FileError {
                path: folder.to_owned(),
                source: std::io::Error::other(message),
            });
        }
        Ok(None)
    }
}

impl VariantFolder {
    /// The folder that is written to.
    fn work_folder(&self) -> &Path {
        self.replacement
            .as_ref()
            .map_or(&self.folder, PartialFolder::path)
    }

    pub fn log(&self) -> PathBuf {
        self.work_folder().join("log.jsonl")
    }

    fn write_first_files(&self, folder: &Path, pipeline_toml: &str) -> Result<(), FileError> {
        files::write_atomic_unsynced(&folder.join("pipeline.toml"), pipeline_toml.as_bytes())?;
        self.manifest.write(folder)
    }

    /// Adds what a stage measured, wrote and read.
    pub fn add_stage(
        &mut self,
        record: StageRecord,
        tables: &[Table],
        product: &StoredProduct,
        inputs: &BTreeMap<String, String>,
    ) -> Result<(), TableError> {
        for table in tables {
            self.parts.push(TablePart {
                step: record.step,
                stage: record.stage.clone(),
                table: table.clone(),
            });
        }
        for table in tables {
            self.write_table(&table.name)?;
        }
        self.copy_written_files(product)?;
        for (path, hash) in inputs {
            self.manifest.inputs.insert(path.clone(), hash.clone());
        }
        self.manifest.stages.push(record);
        Ok(())
    }

    /// Writes one table of the variant whole, with the rows of all stages so far.
    fn write_table(&mut self, name: &str) -> Result<(), TableError> {
        let has_name = |part: &&TablePart| part.table.name == name;
        let parts: Vec<&TablePart> = self.parts.iter().filter(has_name).collect();
        let file = format!("{name}.parquet");
        let path = self.work_folder().join(&file);
        let fingerprint = tables::write_parts(&path, name, &self.id, &parts)?;
        self.manifest.outputs.insert(file, fingerprint);
        Ok(())
    }

    /// Links or copies the files that a stage wrote from the cache into the variant's folder.
    fn copy_written_files(&mut self, product: &StoredProduct) -> Result<(), FileError> {
        let written = product.written_files();
        if !written.is_empty() {
            let copy = PartialFolder::new(self.work_folder())?;
            files::link_or_copy_files(
                &product.written_folder(),
                written.keys().map(Path::new),
                copy.path(),
            )?;
            copy.move_into(self.work_folder())?;
        }
        self.manifest.outputs.extend(written);
        Ok(())
    }

    /// Ends the variant, and returns the folder of its tables.
    ///
    /// A run that succeeded replaces an earlier complete result. One that did not succeed goes into
    /// the `attempt` folder of that result.
    pub fn finish(
        mut self,
        status: VariantStatus,
        error: Option<String>,
    ) -> Result<PathBuf, FileError> {
        self.manifest.status = status;
        self.manifest.error = error;
        let has_succeeded = status == VariantStatus::Succeeded;
        if !has_succeeded {
            self.manifest.outputs.clear();
        } else if self.replacement.is_none() {
            // The manifest is written last: it must not claim a complete result before the files
            // are on the disk. A replacement is synced as a whole by `PartialFolder::replace`.
            files::sync_and_make_readable(&self.folder).map_err(|source| FileError {
                path: self.folder.clone(),
                source,
            })?;
        }
        self.manifest.write(self.work_folder())?;
        let Some(replacement) = self.replacement.take() else {
            return Ok(self.folder.clone());
        };
        if !has_succeeded {
            let attempt = self.folder.join(ATTEMPT_FOLDER);
            replacement.replace(&attempt)?;
            return Ok(attempt);
        }
        keep_foreign_files(&self.folder, replacement.path());
        replacement.replace(&self.folder)?;
        Ok(self.folder.clone())
    }
}

/// Links or copies files that no run wrote, such as notes of the user, from the old result into the
/// new one that replaces it.
fn keep_foreign_files(old: &Path, new: &Path) {
    let Some(manifest) = VariantManifest::read(old) else {
        return;
    };
    for file in files::list_files(old).unwrap_or_default() {
        let is_from_a_run = manifest.outputs.contains_key(&*file.to_string_lossy())
            || file.starts_with(ATTEMPT_FOLDER)
            || file == Path::new("manifest.json")
            || file == Path::new("log.jsonl");
        if is_from_a_run || new.join(&file).exists() {
            continue;
        }
        if let Err(error) = files::link_or_copy_files(old, [&*file], new) {
            tracing::warn!(
                "`{}` cannot be copied into the new result: {error}",
                old.join(&file).display()
            );
        }
    }
}
