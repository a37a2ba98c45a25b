//! `secateur.lock` beside the pipeline: what its runs read, and which program ran them. A run brings it up to date, and
//! with `--locked` refuses to read anything else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::pipeline::problem::{InvalidPipeline, Problem};
use crate::plan::Plan;
use crate::plan::keys::{PROGRAM_VERSION, ProductKeys};
use secateur_base::files::{FileError, write_atomic};

/// The file's name.
const FILE_NAME: &str = "secateur.lock";

/// What stands above all.
const FILE_HEADER: &str = "# What the pipelines of this folder read. Written by runner; with --locked it reads nothing else.\n\n";

/// The pipelines of a folder, by their stem.
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
    /// blake3 of every file of models, tokenizers, tasks and data.
    files: BTreeMap<String, String>,
}

/// The lock file of a pipeline.
fn lock_path(plan: &Plan) -> PathBuf {
    plan.pipeline_path
        .parent()
        .unwrap_or(Path::new(""))
        .join(FILE_NAME)
}

/// A lock file that is not there has no pipelines.
fn read_lock(path: &Path) -> Result<LockFile, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            toml::from_str(&text).map_err(|e| format!("it is no lock file: {}", e.message()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(LockFile::default()),
        Err(error) => Err(error.to_string()),
    }
}

/// What is not as the lock file says, in a sentence each.
fn lock_differences(
    lock: &LockFile,
    plan: &Plan,
    inputs: &BTreeMap<String, String>,
) -> Vec<String> {
    let Some(locked) = lock.pipelines.get(&plan.name) else {
        return vec![format!("it has no entry for `{}`", plan.name)];
    };
    let program = (locked.program != PROGRAM_VERSION).then(|| {
        format!(
            "it was written by {}, this is {PROGRAM_VERSION}",
            locked.program
        )
    });
    let files = inputs
        .iter()
        .filter_map(|(file, hash)| match locked.files.get(file) {
            None => Some(format!("`{file}` is not in it")),
            Some(before) if before != hash => Some(format!("`{file}` has changed")),
            Some(_) => None,
        });
    // a model without a file that it had is another model
    let beside = |file: &&String| {
        inputs
            .keys()
            .any(|input| Path::new(input).parent() == Path::new(*file).parent())
    };
    let gone = locked
        .files
        .keys()
        .filter(|file| !inputs.contains_key(*file) && !Path::new(file).exists())
        .filter(beside);
    program
        .into_iter()
        .chain(files)
        .chain(gone.map(|file| format!("`{file}` is gone")))
        .collect()
}

/// Refuses a plan that is to be locked and has drifted.
pub fn verify(plan: &Plan, recipes: &ProductKeys) -> Result<(), InvalidPipeline> {
    if !plan.settings.run.locked {
        return Ok(());
    }
    let path = lock_path(plan);
    let messages = match read_lock(&path) {
        Ok(_) if !path.exists() => vec!["it is not there".to_owned()],
        Ok(lock) => lock_differences(&lock, plan, &recipes.input_hashes()),
        Err(message) => vec![message],
    };
    let help = "run without --locked to bring the lock file up to date";
    let problem = |message: &String| {
        plan.sources.problem(
            plan.locked_span.clone(),
            format!("`{}`: {message}", path.display()),
            help,
        )
    };
    let problems: Vec<Problem> = messages.iter().map(problem).collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(InvalidPipeline {
            name: plan.pipeline_path.display().to_string(),
            problems,
        })
    }
}

/// Brings the lock file up to date. What it says of files that this run does not read stays.
pub fn update(plan: &Plan, recipes: &ProductKeys) {
    let path = lock_path(plan);
    // Another pipeline of the folder may have begun at the same time; where a folder cannot be locked, the last one counts.
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let _held = std::fs::File::open(folder).and_then(|folder| folder.lock().map(|()| folder));
    let updated = read_lock(&path).and_then(|mut lock| {
        let before = lock.pipelines.get(&plan.name).cloned();
        let inputs = recipes.input_hashes();
        for (file, _) in before
            .iter()
            .flat_map(|locked| &locked.files)
            .filter(|(f, hash)| inputs.get(*f).is_some_and(|h| h != *hash))
        {
            tracing::warn!(
                "`{file}` is not what it was when `{}` was written",
                path.display()
            );
        }
        let mut files = before.clone().unwrap_or_default().files;
        files.retain(|file, _| Path::new(file).exists() || inputs.contains_key(file));
        files.extend(inputs);
        let now = LockedPipeline {
            program: PROGRAM_VERSION.to_owned(),
            files,
        };
        if before.as_ref() == Some(&now) {
            return Ok(());
        }
        lock.pipelines.insert(plan.name.clone(), now);
        let text = FILE_HEADER.to_owned() + &toml::to_string(&lock).map_err(|e| e.to_string())?;
        write_atomic(&path, text.as_bytes()).map_err(|e: FileError| e.source.to_string())
    });
    if let Err(message) = updated {
        tracing::warn!("`{}` is not brought up to date: {message}", path.display());
    }
}
