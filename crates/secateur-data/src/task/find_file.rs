//! Reading a task file, and the names that a misspelled one may mean.

use std::path::{Path, PathBuf};

use secateur_base::spelling::{closest, closest_entry};

use super::built_in::built_in_names;
use super::error::TaskError;
use crate::data_file::read_utf8;

/// Reads a task file.
///
/// # Errors
/// If there is no such file, it is not a regular file, or it is not UTF-8.
pub(crate) fn read_task_file(path: &Path) -> Result<String, TaskError> {
    // A link that leads nowhere is there; reading it names its target.
    if path.symlink_metadata().is_err() {
        return Err(TaskError::Missing {
            path: path.to_owned(),
            suggestion: suggest_path(path),
        });
    }
    Ok(read_utf8(path)?)
}

/// The task that a name may mean: a built-in one, one of `datasets/`, or a file in the working
/// directory.
pub(crate) fn suggest_task(name: &str) -> Option<String> {
    let in_datasets = task_files(Path::new("datasets")).into_iter();
    let stems = in_datasets.filter_map(|path| {
        let stem = path.file_stem()?;
        Some(stem.to_string_lossy().into_owned())
    });
    let here = task_files(Path::new("."));
    let same_stem = here
        .iter()
        .find(|path| path.file_stem().is_some_and(|stem| stem == name));
    if let Some(path) = same_stem {
        return Some(format!("./{}", path.file_name()?.to_string_lossy()));
    }
    let names: Vec<String> = built_in_names().map(str::to_owned).chain(stems).collect();
    closest(name, names.iter().map(String::as_str)).map(str::to_owned)
}

/// The task file with the most similar name in the same folder, or a built-in task of this name.
fn suggest_path(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy();
    let folder = path.parent().unwrap_or(Path::new(""));
    if let Some(similar) = closest_entry(folder, &name, is_toml) {
        return Some(similar.display().to_string());
    }
    let stem = path.file_stem()?.to_string_lossy();
    let built_in = built_in_names().find(|built_in| *built_in == stem)?;
    Some(built_in.to_owned())
}

/// The TOML files of a folder, sorted by name.
fn task_files(folder: &Path) -> Vec<PathBuf> {
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> = paths.filter(|path| is_toml(path)).collect();
    files.sort();
    files
}

fn is_toml(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "toml")
}
