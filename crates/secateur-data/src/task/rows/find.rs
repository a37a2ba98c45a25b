//! Where a split lies: `<folder>/<split>.jsonl` or `.parquet`, or as on the Hub: in shards, in `data/`, or in the folder
//! of a configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regex::Regex;

use super::PublishedDataset;
use crate::task::TaskError;

/// The files of a split, all shards in order. Every folder is looked at before any folder inside one is.
pub fn find_split(published: &PublishedDataset) -> Result<Vec<PathBuf>, TaskError> {
    let folders: Vec<PathBuf> = published
        .folders
        .iter()
        .map(|folder| published.data_folder.join(folder))
        .collect();
    for folder in &folders {
        if let Some(file) = published
            .text_file
            .as_ref()
            .map(|file| folder.join(file))
            .filter(|file| file.is_file())
        {
            return Ok(vec![file]);
        }
        if let Some(found) = find_in_folder_or_data(folder, &published.split)? {
            return Ok(found);
        }
    }
    for folder in &folders {
        if let Some(found) = find_in_configuration(folder, &published.split)? {
            return Ok(found);
        }
    }
    Err(TaskError::SplitNotFound {
        folders,
        expected: published.data_folder.join(published.expected_file()),
        split: published.split.clone(),
    })
}

/// The split in a folder, or in its `data/`.
fn find_in_folder_or_data(folder: &Path, split: &str) -> Result<Option<Vec<PathBuf>>, TaskError> {
    match find_in_folder(folder, split)? {
        Some(found) => Ok(Some(found)),
        None => find_in_folder(&folder.join("data"), split),
    }
}

/// The split in the only folder inside this one that holds it, such as `plain_text/`.
fn find_in_configuration(folder: &Path, split: &str) -> Result<Option<Vec<PathBuf>>, TaskError> {
    let mut found: Vec<(PathBuf, Vec<PathBuf>)> = Vec::new();
    for inside in sorted_entries(folder)
        .into_iter()
        .filter(|path| path.is_dir())
    {
        found.extend(find_in_folder_or_data(&inside, split)?.map(|files| (inside, files)));
    }
    if found.len() > 1 {
        let configurations = found.into_iter().map(|(inside, _)| inside).collect();
        return Err(TaskError::AmbiguousSplit {
            folder: folder.to_owned(),
            split: split.to_owned(),
            configurations,
        });
    }
    Ok(found.pop().map(|(_, files)| files))
}

/// The split in this very folder.
fn find_in_folder(folder: &Path, split: &str) -> Result<Option<Vec<PathBuf>>, TaskError> {
    let single = ["jsonl", "parquet"].map(|ending| folder.join(format!("{split}.{ending}")));
    if let Some(file) = single.into_iter().find(|file| file.is_file()) {
        return Ok(Some(vec![file]));
    }
    // The Hub's names: `train-00000-of-00002.parquet`, older ones with a hash.
    let name = format!(
        r"^{}-(\d{{5}})-of-(\d{{5}})(-[0-9a-f]+)?\.parquet$",
        regex::escape(split)
    );
    let shard = Regex::new(&name).map_err(|e| TaskError::Unreadable {
        path: folder.to_owned(),
        message: e.to_string(),
    })?;
    let mut shards = BTreeMap::new();
    let mut of = String::new();
    for path in sorted_entries(folder) {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let Some(found) = shard.captures(&name) else {
            continue;
        };
        of = found[2].to_owned();
        if let Some(other) = shards.insert(found[1].to_owned(), path.clone()) {
            let message = format!(
                "it and `{}` are the same part of the split",
                other.display()
            );
            return Err(TaskError::Unreadable { path, message });
        }
    }
    if shards.is_empty() {
        // The branch that the Hub converts to Parquet by itself: `train/0000.parquet`.
        let numbered = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "parquet");
        let files: Vec<PathBuf> = sorted_entries(&folder.join(split))
            .into_iter()
            .filter(numbered)
            .collect();
        return Ok(Some(files).filter(|files| !files.is_empty()));
    }
    let count: usize = of.parse().unwrap_or_default();
    match (0..count)
        .map(|i| format!("{i:05}"))
        .find(|i| !shards.contains_key(i))
    {
        Some(missing) => Err(TaskError::MissingShard(
            folder.join(format!("{split}-{missing}-of-{of}.parquet")),
        )),
        None => Ok(Some(shards.into_values().collect())),
    }
}

/// What a folder holds, in the order of names; nothing where there is none.
fn sorted_entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}
