//! The folder of a variant's results: the resolved pipeline, the manifest, the log, tables as they are measured, and
//! what stages write. Files appear whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{self, FileError, PartialFolder};
use crate::metrics::{self, MetricsError, Part, Table};

/// `results/<pipeline>/`, while a run is at work in it.
#[derive(Debug)]
pub struct Results {
    folder: PathBuf,
    /// Held by every run in this folder, and let go by the system however the run ends.
    _lock: fs::File,
    /// No other run was at work when this one began.
    alone: bool,
}

/// `results/<pipeline>/<variant>/`
#[derive(Debug)]
pub struct VariantFolder {
    pub id: String,
    folder: PathBuf,
    /// Where it is built if an earlier, complete result stands in its place: that one stays until this one is complete.
    staged: Option<PartialFolder>,
    /// What was measured so far.
    parts: Vec<Part>,
    manifest: Manifest,
}

/// What a run was made of: `manifest.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Manifest {
    /// The program and its version.
    pub program: String,
    /// blake3 of the pipeline file as it was read.
    pub source: String,
    /// blake3 of the variant's own `pipeline.toml`.
    pub pipeline: String,
    pub variant: String,
    pub seed: u64,
    /// `cpu` or `cuda`, with the processor's name: bits may differ between kinds of processors.
    pub device: String,
    pub processor: String,
    pub threads: usize,
    pub dtype: &'static str,
    /// blake3 of every file that a stage read.
    pub inputs: BTreeMap<String, String>,
    pub status: Status,
    pub error: Option<String>,
    pub stages: Vec<StageRecord>,
}

/// How far a variant came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    Running,
    Succeeded,
    Failed,
    Interrupted,
}

/// What a stage cost.
#[derive(Clone, Debug, Serialize)]
pub struct StageRecord {
    pub step: u32,
    pub stage: &'static str,
    pub wall_seconds: f64,
    /// The process's largest memory during the stage, in bytes; null where the system does not say.
    pub peak_memory: Option<u64>,
    /// Variants that shared this one run of the stage.
    pub shared_by: usize,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Running => "running",
            Status::Succeeded => "succeeded",
            Status::Failed => "failed",
            Status::Interrupted => "interrupted",
        }
    }
}

impl Results {
    /// Opens the folder of a pipeline. A run that is alone in it removes what a killed one left unfinished.
    pub fn open(root: &Path, pipeline: &str) -> Result<Self, FileError> {
        let folder = root.join(pipeline);
        files::make_folder(&folder)?;
        let path = folder.join(".lock");
        let failed = |source| FileError { path: path.clone(), source };
        let lock = fs::File::create(&path).map_err(failed)?;
        let alone = lock.try_lock().is_ok();
        if alone {
            files::remove_leftovers(&folder)?;
            lock.unlock().map_err(failed)?;
        }
        lock.lock_shared().map_err(failed)?;
        Ok(Self { folder, _lock: lock, alone })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A place for a stage to write in.
    pub fn stage_folder(&self) -> Result<PartialFolder, FileError> {
        PartialFolder::new(&self.folder)
    }

    /// How an earlier run of a variant ended, and why; None if there was none.
    pub fn earlier(&self, id: &str) -> Option<(Status, Option<String>)> {
        #[derive(Deserialize)]
        struct Ended {
            status: Status,
            error: Option<String>,
        }
        let text = fs::read_to_string(self.folder.join(id).join("manifest.json")).ok()?;
        let Ended { status, error } = serde_json::from_str(&text).ok()?;
        Some((status, error))
    }

    /// Begins a variant: its pipeline and manifest are written before any work. A complete result of an earlier run stays
    /// until this one is complete; an incomplete one goes.
    pub fn variant(&self, id: &str, resolved: &str, manifest: Manifest) -> Result<VariantFolder, FileError> {
        let folder = self.folder.join(id);
        let mut staged = None;
        match self.earlier(id) {
            Some((Status::Succeeded, _)) => staged = Some(PartialFolder::new(&self.folder)?),
            Some((Status::Running, _)) if !self.alone => {
                let busy = std::io::Error::other("another run is at work on this variant");
                return Err(FileError { path: folder, source: busy });
            }
            _ if folder.exists() => files::remove(&folder)?,
            _ => {}
        }
        if staged.is_none() {
            files::make_folder(&folder)?;
        }
        let variant = VariantFolder { id: id.to_owned(), folder, staged, parts: Vec::new(), manifest };
        files::write_whole(&variant.work().join("pipeline.toml"), resolved.as_bytes())?;
        variant.write_manifest()?;
        Ok(variant)
    }
}

impl VariantFolder {
    /// Where the variant is built.
    fn work(&self) -> &Path {
        self.staged.as_ref().map_or(&self.folder, PartialFolder::path)
    }

    pub fn log(&self) -> PathBuf {
        self.work().join("log.jsonl")
    }

    /// Takes what a stage measured, wrote and read. `written` is the stage's folder, which other variants may need too.
    pub fn stage_done(
        &mut self,
        record: StageRecord,
        tables: &[Table],
        written: &Path,
        inputs: &BTreeMap<String, String>,
    ) -> Result<(), MetricsError> {
        let (step, stage) = (record.step, record.stage.to_owned());
        self.parts.extend(tables.iter().map(|table| Part { step, stage: stage.clone(), table: table.clone() }));
        for table in tables {
            let parts: Vec<&Part> = self.parts.iter().filter(|part| part.table.name == table.name).collect();
            metrics::write(&self.work().join(format!("{}.parquet", table.name)), &self.id, &parts)?;
        }
        let copy = PartialFolder::new(self.work())?;
        copy_tree(written, copy.path()).map_err(|source| FileError { path: self.folder.clone(), source })?;
        copy.move_into(self.work())?;
        self.manifest.inputs.extend(inputs.iter().map(|(path, hash)| (path.clone(), hash.clone())));
        self.manifest.stages.push(record);
        Ok(self.write_manifest()?)
    }

    /// Ends the variant: what was built takes its place, or, if it failed where a complete result stands, goes.
    pub fn finish(&mut self, status: Status, error: Option<String>) -> Result<(), FileError> {
        (self.manifest.status, self.manifest.error) = (status, error);
        self.write_manifest()?;
        match self.staged.take() {
            Some(staged) if status == Status::Succeeded => staged.replace(&self.folder),
            _ => Ok(()),
        }
    }

    fn write_manifest(&self) -> Result<(), FileError> {
        let path = self.work().join("manifest.json");
        let text =
            serde_json::to_string_pretty(&self.manifest).map_err(|e| FileError { path: path.clone(), source: e.into() })?;
        files::write_whole(&path, (text + "\n").as_bytes())
    }
}

/// Copies what lies in a folder; files are linked where the file system allows, for nobody writes to them again.
fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(&target)?;
            copy_tree(&entry.path(), &target)?;
        } else if fs::hard_link(entry.path(), &target).is_err() {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// The processor's name, as far as the system tells.
pub fn processor() -> String {
    let cpu = sysinfo::RefreshKind::nothing().with_cpu(sysinfo::CpuRefreshKind::nothing());
    let system = sysinfo::System::new_with_specifics(cpu);
    let name = system.cpus().first().map(|cpu| cpu.brand().trim().to_owned()).filter(|name| !name.is_empty());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Forgets the largest memory so far, so that the next reading is of what follows. Only Linux has it.
pub fn reset_peak_memory() {
    drop(fs::write("/proc/self/clear_refs", "5"));
}

/// The process's largest memory since the last reset, in bytes.
pub fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}
