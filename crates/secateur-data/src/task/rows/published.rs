//! Finding the files of a split of a published data set, in the layouts that the Hugging Face Hub
//! and its users have:
//!
//! ```text
//! <folder>/<split>.jsonl                                one file; .json, .ndjson, .csv, .tsv, .parquet
//! <folder>/<split>.jsonl.gz                             compressed; .zst
//! <folder>/<split>-00000-of-00002.parquet               shards; older ones end in -<hash>.parquet
//! <folder>/<split>/0000.parquet                         the Hub's converted branch
//! <folder>/data/…                                       any of these in `data/`
//! <folder>/<configuration>/…                            any of these in a configuration's folder
//! ```

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use regex::Regex;

use crate::data_file::DataFileError;
use crate::task::error::TaskError;

/// The extensions of files with rows, in the order in which they are looked for.
const EXTENSIONS: [&str; 6] = ["jsonl", "parquet", "json", "ndjson", "csv", "tsv"];

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

    /// The text file of the first folder that has it.
    pub(crate) fn find_text_file(&self) -> Option<PathBuf> {
        let folders = self.folders.iter();
        folders
            .map(|folder| self.data_folder.join(folder))
            .find_map(|folder| self.text_file_in(&folder))
    }

    fn text_file_in(&self, folder: &Path) -> Option<PathBuf> {
        let file = folder.join(self.text_file.as_ref()?);
        file.is_file().then_some(file)
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
            if let Some(file) = self.text_file_in(folder) {
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
        if !self.data_folder.is_dir() {
            return Err(TaskError::DataFolder(self.data_folder.clone()));
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
    for extension in EXTENSIONS {
        for compression in ["", ".gz", ".zst"] {
            let file = folder.join(format!("{split}.{extension}{compression}"));
            if file.is_file() {
                return Ok(Some(vec![file]));
            }
        }
    }
    if let Some(shards) = find_shards(folder, split)? {
        return Ok(Some(shards));
    }
    let numbered_name = name_pattern(folder, r"\d+")?;
    let numbered_files: Vec<PathBuf> = sorted_entries(&folder.join(split))?
        .into_iter()
        .filter(|path| numbered_name.is_match(&file_name(path)))
        .collect();
    Ok(Some(numbered_files).filter(|files| !files.is_empty()))
}

/// A pattern of file names: `stem`, and then the extensions of a data file.
fn name_pattern(folder: &Path, stem: &str) -> Result<Regex, TaskError> {
    let extensions = EXTENSIONS.join("|");
    Regex::new(&format!(
        r"^{stem}(?<ending>\.({extensions})(\.(gz|zst))?)$"
    ))
    .map_err(|error| DataFileError::cannot_read(folder, &error).into())
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Finds the shards `<split>-<number>-of-<count>.parquet`, in order, or those of another format.
/// Older data sets have a hash before the extension, C4 a dot before the number. A missing shard or
/// two files for one shard are errors.
fn find_shards(folder: &Path, split: &str) -> Result<Option<Vec<PathBuf>>, TaskError> {
    let stem = format!(
        r"{}[-.](?<number>\d{{5}})-of-(?<count>\d{{5}})(-[0-9a-f]+)?",
        regex::escape(split)
    );
    let name_pattern = name_pattern(folder, &stem)?;
    // Keyed by the number with its leading zeros, which sorts as the number does.
    let mut shards: BTreeMap<String, PathBuf> = BTreeMap::new();
    let (mut shard_count, mut ending) = (String::new(), String::new());
    for path in sorted_entries(folder)? {
        let name = file_name(&path);
        let Some(parts) = name_pattern.captures(&name) else {
            continue;
        };
        shard_count = parts["count"].to_owned();
        ending = parts["ending"].to_owned();
        if let Some(other) = shards.insert(parts["number"].to_owned(), path.clone()) {
            let cause = format!(
                "it and `{}` are the same part of the split",
                other.display()
            );
            return Err(DataFileError::cannot_read(&path, &cause).into());
        }
    }
    if shards.is_empty() {
        return Ok(None);
    }
    for number in 0..shard_count.parse().unwrap_or(0) {
        let number = format!("{number:05}");
        if !shards.contains_key(&number) {
            let missing = format!("{split}-{number}-of-{shard_count}{ending}");
            return Err(TaskError::MissingShard(folder.join(missing)));
        }
    }
    Ok(Some(shards.into_values().collect()))
}

/// The entries of a folder, sorted by name. Empty if there is no such folder.
fn sorted_entries(folder: &Path) -> Result<Vec<PathBuf>, TaskError> {
    let read_error = |error| DataFileError::cannot_read(folder, &error);
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(read_error(error).into()),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(read_error)?.path());
    }
    paths.sort();
    Ok(paths)
}
