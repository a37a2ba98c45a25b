//! `secateur.lock` beside a pipeline: the hashes of the files that its runs read, and the version
//! of the program. `runner lock` writes it. A run of the whole file brings an entry that exists up
//! to date; with `--locked` a run refuses to read other files.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::machine::PROGRAM_VERSION;
use crate::pipeline::problem::{InvalidPipeline, Problem};
use crate::plan::Plan;
use crate::plan::keys::ProductKeys;
use secateur_base::files::write_atomic;

const FILE_NAME: &str = "secateur.lock";

/// The first lines of the file.
const FILE_HEADER: &str = "# What the pipelines of this folder read. Written by `runner lock`; \
                           with --locked a run reads nothing else.\n\n";

/// The content of a lock file: the pipelines of its folder, by file stem.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct LockFile {
    pipelines: BTreeMap<String, LockedPipeline>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LockedPipeline {
    /// The program and its version.
    program: String,
    /// The blake3 hash of every file of models, tokenizers, tasks and data, by its path relative to
    /// the working directory.
    files: BTreeMap<String, String>,
}

/// The path of a pipeline's lock file.
fn lock_path(plan: &Plan) -> PathBuf {
    pipeline_folder(plan).join(FILE_NAME)
}

/// The folder of the pipeline file; empty for the working directory.
fn pipeline_folder(plan: &Plan) -> &Path {
    plan.pipeline_path.parent().unwrap_or(Path::new(""))
}

/// The input files of a plan and their hashes. Paths are relative to the working directory: an
/// absolute path would hold on one machine only.
fn locked_files(keys: &ProductKeys) -> BTreeMap<String, String> {
    let working_directory = std::env::current_dir().unwrap_or_default();
    keys.input_hashes()
        .into_iter()
        .map(|(file, hash)| (relative_path(&file, &working_directory), hash))
        .collect()
}

/// A path relative to an absolute folder. The name of a built-in file and a relative path stay.
fn relative_path(file: &str, folder: &Path) -> String {
    let path = Path::new(file);
    if !path.is_absolute() {
        return file.to_owned();
    }
    let common = folder
        .components()
        .zip(path.components())
        .take_while(|(one, other)| one == other)
        .count();
    let up = folder
        .components()
        .skip(common)
        .map(|_| Component::ParentDir);
    let relative: PathBuf = up.chain(path.components().skip(common)).collect();
    relative.to_string_lossy().into_owned()
}

impl LockFile {
    /// Reads a lock file. One that does not exist has no pipelines.
    fn read(path: &Path) -> Result<Self, String> {
        match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text)
                .map_err(|error| format!("this is not a lock file: {}", error.message())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The differences between the lock file and the present inputs of a pipeline, one sentence
    /// each.
    fn differences(&self, pipeline: &str, inputs: &BTreeMap<String, String>) -> Vec<String> {
        let Some(locked) = self.pipelines.get(pipeline) else {
            return vec![format!("it has no entry for `{pipeline}`")];
        };
        let mut differences = Vec::new();
        if locked.program != PROGRAM_VERSION {
            let written_by = &locked.program;
            differences.push(format!(
                "it was written by {written_by}, this is {PROGRAM_VERSION}"
            ));
        }
        for (file, hash) in inputs {
            match locked.files.get(file) {
                None => differences.push(format!("`{file}` is not in it")),
                Some(locked_hash) if locked_hash != hash => {
                    differences.push(format!("`{file}` has changed"));
                }
                Some(_) => {}
            }
        }
        // Entries of files that this run does not read may remain, for example those of another
        // `--set`. A missing file counts only if it stood beside an input: a model without one of
        // its files is another model.
        let is_beside_an_input = |file: &str| {
            let folder = Path::new(file).parent();
            let mut input_paths = inputs.keys();
            input_paths.any(|input| Path::new(input).parent() == folder)
        };
        for file in locked.files.keys() {
            let is_missing = !inputs.contains_key(file) && !Path::new(file).exists();
            if is_missing && is_beside_an_input(file) {
                differences.push(format!("`{file}` is gone"));
            }
        }
        differences
    }
}

/// Refuses a plan with `locked` whose inputs are not those of the lock file.
///
/// # Errors
/// One problem for each difference.
pub fn verify(plan: &Plan, keys: &ProductKeys) -> Result<(), InvalidPipeline> {
    if !plan.settings.run.locked {
        return Ok(());
    }
    let path = lock_path(plan);
    let differences = match LockFile::read(&path) {
        Ok(_) if !path.exists() => vec!["there is no such lock file".to_owned()],
        Ok(lock) => lock.differences(&plan.name, &locked_files(keys)),
        Err(message) => vec![message],
    };
    let problems: Vec<Problem> = differences
        .iter()
        .map(|difference| {
            plan.sources.problem(
                plan.locked_span.clone(),
                format!("`{}`: {difference}", path.display()),
                format!(
                    "{} writes it, with the files as they are now",
                    lock_command(plan)
                ),
            )
        })
        .collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(InvalidPipeline {
            name: plan.pipeline_path.display().to_string(),
            problems,
        })
    }
}

/// The command line that writes the lock file of a plan's pipeline.
fn lock_command(plan: &Plan) -> String {
    let command = format!("`runner lock {}`", plan.pipeline_path.display());
    match plan.is_whole_file {
        true => command,
        false => format!("{command}, with the --set of this run,"),
    }
}

/// Brings the entry of a plan's pipeline up to date if the lock file has one. A plan with `--set`, `--sweep`,
/// `--only` or `--shard` changes nothing: its inputs are not those of the file. A failure is a
/// warning: the run does not depend on the file.
pub fn update(plan: &Plan, keys: &ProductKeys) {
    if !plan.is_whole_file {
        return;
    }
    let path = lock_path(plan);
    let has_entry = LockFile::read(&path).map(|lock| lock.pipelines.contains_key(&plan.name));
    let updated = match has_entry {
        Ok(false) => Ok(()),
        Ok(true) => write_entry(plan, &locked_files(keys), &path),
        Err(message) => Err(message),
    };
    if let Err(message) = updated {
        tracing::warn!("`{}` is not brought up to date: {message}", path.display());
    }
}

/// Writes the inputs of a plan into the lock file, which is created if there is none, and returns
/// its path. Entries of files that this plan does not read stay, unless the file is gone.
///
/// # Errors
/// If the file cannot be read or written, with the path and the reason.
pub fn write(plan: &Plan, keys: &ProductKeys) -> Result<PathBuf, String> {
    let path = lock_path(plan);
    match write_entry(plan, &locked_files(keys), &path) {
        Ok(()) => Ok(path),
        Err(message) => Err(format!("`{}` cannot be written: {message}", path.display())),
    }
}

fn write_entry(plan: &Plan, inputs: &BTreeMap<String, String>, path: &Path) -> Result<(), String> {
    // Runs of other pipelines in the folder may update the file at the same time. Where the folder
    // cannot be locked, the last one to write determines the content.
    let folder = Some(pipeline_folder(plan)).filter(|folder| !folder.as_os_str().is_empty());
    let _folder_lock = File::open(folder.unwrap_or(Path::new(".")))
        .and_then(|folder| folder.lock().map(|()| folder));
    let mut lock = LockFile::read(path)?;
    let old_entry = lock.pipelines.get(&plan.name).cloned();
    let mut files = old_entry.clone().unwrap_or_default().files;
    for (file, hash) in &files {
        if inputs
            .get(file)
            .is_some_and(|current_hash| current_hash != hash)
        {
            tracing::warn!(
                "`{file}` has changed since `{}` was written",
                path.display()
            );
        }
    }
    // Earlier versions wrote absolute paths.
    files.retain(|file, _| !Path::new(file).is_absolute() && Path::new(file).exists());
    files.extend(inputs.clone());
    let new_entry = LockedPipeline {
        program: PROGRAM_VERSION.to_owned(),
        files,
    };
    if old_entry.as_ref() == Some(&new_entry) {
        return Ok(());
    }
    lock.pipelines.insert(plan.name.clone(), new_entry);
    let body = toml::to_string(&lock).map_err(|error| error.to_string())?;
    let text = format!("{FILE_HEADER}{body}");
    write_atomic(path, text.as_bytes()).map_err(|error| error.source.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_entries_are_relative() {
        let folder = Path::new("/home/me/work");
        for (path, relative) in [
            ("models/tiny/config.json", "models/tiny/config.json"),
            ("tiny_boolq.toml", "tiny_boolq.toml"),
            ("/home/me/work/data/a.txt", "data/a.txt"),
            ("/home/me/models/b.json", "../models/b.json"),
            ("/data/c.txt", "../../../data/c.txt"),
        ] {
            assert_eq!(relative_path(path, folder), relative);
        }
    }
}
