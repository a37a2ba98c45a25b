//! The folder of a variant while its stages run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::manifest::{StageRecord, VariantManifest, VariantStatus};
use secateur_base::files::{self, FileError, Fingerprint, PartialFolder};
use secateur_base::locks::Claim;
use secateur_store::tables::{self, Table, TableError, TablePart};

/// The folder inside a complete result for a later run of the variant that did not succeed.
pub(super) const ATTEMPT_FOLDER: &str = "attempt";

/// `results/<pipeline>/<variant>/` while its stages run. The claim keeps other processes out.
#[derive(Debug)]
pub struct VariantFolder {
    id: String,
    folder: PathBuf,
    /// The folder that is written to if `folder` holds a complete result of an earlier run: that
    /// result stays in place until this one is complete.
    replacement: Option<PartialFolder>,
    /// The rows that each stage has added so far, in the order of the steps.
    parts: Vec<TablePart>,
    /// The step that wrote each file or folder of the variant's folder, tables excepted.
    writers: BTreeMap<String, u32>,
    manifest: VariantManifest,
    _claim: Claim,
}

impl VariantFolder {
    /// Opens a variant's folder for a new run, and writes its pipeline and manifest there. A
    /// complete result of an earlier run stays until this one is complete; an incomplete one is
    /// removed.
    pub(super) fn begin(
        results_folder: &Path,
        claim: Claim,
        pipeline_toml: &str,
        manifest: VariantManifest,
    ) -> Result<Self, FileError> {
        let id = manifest.variant.clone();
        let folder = results_folder.join(&id);
        let replacement = make_room(&folder, results_folder)?;
        let mut variant = Self {
            id,
            folder,
            replacement,
            parts: Vec::new(),
            writers: BTreeMap::new(),
            manifest,
            _claim: claim,
        };
        // `make_room` refuses folders without a manifest, so the folder must never exist without
        // one: both files are written elsewhere and moved together.
        match &variant.replacement {
            Some(replacement) => variant.write_first_files(replacement.path(), pipeline_toml)?,
            None => {
                let draft = PartialFolder::new(results_folder)?;
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

    /// Whether the outcome of this step was added.
    pub fn has_step(&self, step: u32) -> bool {
        self.manifest.stage(step).is_some()
    }

    /// Adds what a stage measured, wrote (`written`, in `written_folder`) and read. Stages may be added in any order: the result is
    /// that of adding them in the order of their steps.
    pub fn add_stage(
        &mut self,
        record: StageRecord,
        tables: &[Table],
        written_folder: &Path,
        written: BTreeMap<String, Fingerprint>,
        inputs: &BTreeMap<String, String>,
    ) -> Result<(), TableError> {
        for table in tables {
            let position = self.parts.partition_point(|part| part.step <= record.step);
            let part = TablePart {
                step: record.step,
                stage: record.stage.clone(),
                table: table.clone(),
            };
            self.parts.insert(position, part);
        }
        for table in tables {
            self.write_table(&table.name)?;
        }
        self.copy_written_files(record.step, written_folder, written)?;
        for (path, hash) in inputs {
            self.manifest.inputs.insert(path.clone(), hash.clone());
        }
        self.manifest.add_stage(record);
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

    /// Links or copies the files that a stage wrote into the variant's folder. A file or folder of a
    /// later step stays.
    fn copy_written_files(
        &mut self,
        step: u32,
        written_folder: &Path,
        mut written: BTreeMap<String, Fingerprint>,
    ) -> Result<(), FileError> {
        written.retain(|name, _| {
            let writer = self.writers.get(top_entry(name));
            writer.is_none_or(|&writer| writer <= step)
        });
        if written.is_empty() {
            return Ok(());
        }
        let copy = PartialFolder::new(self.work_folder())?;
        files::link_or_copy_files(written_folder, written.keys().map(Path::new), copy.path())?;
        copy.move_into(self.work_folder())?;
        for name in written.keys() {
            self.writers.insert(top_entry(name).to_owned(), step);
        }
        // An entry that an earlier step wrote was replaced as a whole.
        let outputs = &mut self.manifest.outputs;
        outputs.retain(|name, _| self.writers.get(top_entry(name)) != Some(&step));
        outputs.extend(written);
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
            files::sync_tree(&self.folder)
                .map_err(|source| FileError::write(&self.folder, source))?;
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

/// Removes what an earlier run left in a variant's folder, unless it is a complete result: then
/// returns a folder that the new result is written to.
fn make_room(folder: &Path, results_folder: &Path) -> Result<Option<PartialFolder>, FileError> {
    if let Some(manifest) = VariantManifest::read(folder) {
        if manifest.status == VariantStatus::Succeeded {
            return PartialFolder::new(results_folder).map(Some);
        }
        files::remove_folder(folder)?;
        return Ok(None);
    }
    let is_removed = folder.is_dir() && fs::remove_dir(folder).is_ok();
    if !is_removed && folder.symlink_metadata().is_ok() {
        let message =
            "the variant's folder holds files that no run of this program wrote; move it away";
        return Err(FileError::write(folder, std::io::Error::other(message)));
    }
    Ok(None)
}

/// The file or folder directly inside the variant's folder that a path belongs to.
fn top_entry(name: &str) -> &str {
    name.split('/').next().unwrap_or(name)
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
        let (old, new) = (old.join(&file), new.join(&file));
        // Links and copies both have the permissions that the user has given the file.
        let kept = files::create_folder(new.parent().unwrap_or(&new)).and_then(|()| {
            fs::hard_link(&old, &new)
                .or_else(|_| fs::copy(&old, &new).map(drop))
                .map_err(|error| FileError::write(&new, error))
        });
        if let Err(error) = kept {
            tracing::warn!("`{}` is not in the new result: {error}", old.display());
        }
    }
}
