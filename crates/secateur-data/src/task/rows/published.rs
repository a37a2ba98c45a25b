//! Finding the files of a split of a published data set, in the layouts that the Hugging Face Hub
//! and its users have:
//!
//! ```text
//! <folder>/<split>.jsonl                                one file
//! <folder>/<split>.parquet                              one file
//! <folder>/<split>-00000-of-00002.parquet               shards; older ones end in -<hash>.parquet
//! <folder>/<split>/0000.parquet                         the Hub's converted branch
//! <folder>/data/…                                       any of these in `data/`
//! <folder>/<configuration>/…                            any of these in a configuration's folder
//! ```

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use regex::Regex;

use crate::task::error::TaskError;

/// A split of a published data set. The first of `folders` that contains the split is used.
#[derive(Clone, Debug)]
pub(crate) struct PublishedDataset {
    /// `run.data`.
    pub(crate) data_folder: PathBuf,
    /// Relative to `data_folder`.
    pub(crate) folders: Vec<String>,
    /// A text file in a folder, which is looked for before the split.
    pub(crate) text_file: Option<String>,
    pub(crate) split: String,
}

impl PublishedDataset {
    /// The file that is looked for first, relative to `data_folder`.
    pub(crate) fn expected_file(&self) -> PathBuf {
        let file_name = match &self.text_file {
            Some(text_file) => text_file.clone(),
            None => format!("{}.jsonl", self.split),
        };
        Path::new(self.folders.first().map_or("", String::as_str)).join(file_name)
    }

    /// Finds the files of the split, all shards in order. Every folder is searched before the
    /// configurations in any folder, so that an explicit layout has precedence.
    pub(crate) fn find_files(&self) -> Result<Vec<PathBuf>, TaskError> {
        let folders: Vec<PathBuf> = self
            .folders
            .iter()
            .map(|folder| self.data_folder.join(folder))
            .collect();
        for folder in &folders {
            let text_file = self.text_file.as_ref().map(|name| folder.join(name));
            if let Some(file) = text_file.filter(|file| file.is_file()) {
                return Ok(vec![file]);
            }
            if let Some(files) = find_in_folder_or_data(folder, &self.split)? {
                return Ok(files);
            }
        }
        for folder in &folders {
            if let Some(files) = find_in_configuration(folder, &self.split)? {
                return Ok(files);
            }
        }
        Err(TaskError::SplitNotFound {
            folders,
            expected: self.data_folder.join(self.expected_file()),
            split: self.split.clone(),
        })
    }
}

/// Finds the split in a folder, or in its subfolder `data`.
fn find_in_folder_or_data(folder: &Path, split: &str) -> Result<Option<Vec<PathBuf>>, TaskError> {
    match find_in_folder(folder, split)? {
        Some(files) => Ok(Some(files)),
        None => find_in_folder(&folder.join("data"), split),
    }
}

/// Finds the split in the subfolder of a configuration, such as `plain_text`. More than one
/// subfolder with the split is an error.
fn find_in_configuration(folder: &Path, split: &str) -> Result<Option<Vec<PathBuf>>, TaskError> {
    let mut configurations: Vec<PathBuf> = Vec::new();
    let mut split_files = None;
    for subfolder in sorted_entries(folder)? {
        if !subfolder.is_dir() {
            continue;
        }
        if let Some(files) = find_in_folder_or_data(&subfolder, split)? {
            split_files = Some(files);
            configurations.push(subfolder);
        }
    }
    if configurations.len() > 1 {
        return Err(TaskError::AmbiguousSplit {
            folder: folder.to_owned(),
            split: split.to_owned(),
            configurations,
        });
    }
    Ok(split_files)
}

/// Finds the split in this folder: as one file, as shards, or as numbered files in a subfolder.
fn find_in_folder(folder: &Path, split: &str) -> Result<Option<Vec<PathBuf>>, TaskError> {
    for extension in ["jsonl", "parquet"] {
        let file = folder.join(format!("{split}.{extension}"));
        if file.is_file() {
            return Ok(Some(vec![file]));
        }
    }
    if let Some(shards) = find_shards(folder, split)? {
        return Ok(Some(shards));
    }
    let numbered_files: Vec<PathBuf> = sorted_entries(&folder.join(split))?
        .into_iter()
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "parquet")
        })
        .collect();
    Ok(Some(numbered_files).filter(|files| !files.is_empty()))
}

/// Finds the shards `<split>-<number>-of-<count>.parquet`, in order. Older data sets have a hash
/// before the extension. A missing shard or two files for one shard are errors.
fn find_shards(folder: &Path, split: &str) -> Result<Option<Vec<PathBuf>>, TaskError> {
    let unreadable = |path: PathBuf, message: String| TaskError::Unreadable { path, message };
    let name_pattern = format!(
        r"^{}-(\d{{5}})-of-(\d{{5}})(-[0-9a-f]+)?\.parquet$",
        regex::escape(split)
    );
    let name_pattern = Regex::new(&name_pattern)
        .map_err(|error| unreadable(folder.to_owned(), error.to_string()))?;
    // Keyed by the number with its leading zeros, which sorts as the number does.
    let mut shards: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut shard_count = String::new();
    for path in sorted_entries(folder)? {
        let file_name = path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let Some(parts) = name_pattern.captures(&file_name) else {
            continue;
        };
        shard_count = parts[2].to_owned();
        if let Some(other) = shards.insert(parts[1].to_owned(), path.clone()) {
            let message = format!(
                "it and `{}` are the same part of the split",
                other.display()
            );
            return Err(unreadable(path, message));
        }
    }
    if shards.is_empty() {
        return Ok(None);
    }
    for number in 0..shard_count.parse().unwrap_or(0) {
        let number = format!("{number:05}");
        if !shards.contains_key(&number) {
            let missing = format!("{split}-{number}-of-{shard_count}.parquet");
            return Err(TaskError::MissingShard(folder.join(missing)));
        }
    }
    Ok(Some(shards.into_values().collect()))
}

/// The entries of a folder, sorted by name. Empty if there is no such folder.
fn sorted_entries(folder: &Path) -> Result<Vec<PathBuf>, TaskError> {
    let read_error = |source| TaskError::Read {
        path: folder.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(read_error(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(read_error)?.path());
    }
    paths.sort();
    Ok(paths)
}
