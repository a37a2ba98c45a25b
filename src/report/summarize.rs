//! Reports of results folders that a run has left, as text or JSON.

use std::path::{Path, PathBuf};

use polars::prelude::DataFrame;
use serde_json::{Value, json};

use super::error::ReportError;
use super::json::to_json_records;
use super::parquet::{GENERATIONS_FILE, VARIANTS_FILE, read_parquet, read_parquet_if_exists};
use super::text;

/// The tables of one results folder.
struct ResultTables {
    folder: PathBuf,
    variants: DataFrame,
    generations: Option<DataFrame>,
}

impl ResultTables {
    fn read(folder: PathBuf) -> Result<Self, ReportError> {
        Ok(Self {
            variants: read_parquet(&folder.join(VARIANTS_FILE), None)?,
            generations: read_parquet_if_exists(&folder.join(GENERATIONS_FILE))?,
            folder,
        })
    }

    fn to_json(&self) -> Value {
        let generations = self
            .generations
            .as_ref()
            .map_or_else(|| json!([]), to_json_records);
        json!({
            "results": self.folder,
            "variants": to_json_records(&self.variants),
            "generations": generations,
        })
    }

    fn to_text(&self) -> Result<String, ReportError> {
        let summary = text::format_sweep(&self.variants, self.generations.as_ref())?;
        let profiles = text::format_profiles(&self.folder, &self.variants)?;
        Ok(format!("{}\n\n{summary}{profiles}", self.folder.display()))
    }
}

/// Summarises results folders: each path is `results/<pipeline>`, or a folder of several such.
pub fn summarize_results(paths: &[PathBuf], as_json: bool) -> Result<String, ReportError> {
    let mut results = Vec::new();
    for path in paths {
        let folders = find_result_folders(path, |folder| folder.join(VARIANTS_FILE).exists());
        if folders.is_empty() {
            return Err(ReportError::NoResults(path.clone()));
        }
        for folder in folders {
            results.push(ResultTables::read(folder)?);
        }
    }
    if as_json {
        let records: Vec<Value> = results.iter().map(ResultTables::to_json).collect();
        return Ok(format!("{:#}\n", Value::Array(records)));
    }
    let texts: Vec<String> = results
        .iter()
        .map(ResultTables::to_text)
        .collect::<Result<_, _>>()?;
    Ok(texts.join("\n"))
}

/// The folder itself if it holds results, else the folders directly inside it that do, sorted.
pub(crate) fn find_result_folders(
    path: &Path,
    has_results: impl Fn(&Path) -> bool,
) -> Vec<PathBuf> {
    if has_results(path) {
        return vec![path.to_owned()];
    }
    let Ok(entries) = std::fs::read_dir(path) else {
        return Vec::new();
    };
    let mut folders: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|folder| has_results(folder))
        .collect();
    folders.sort();
    folders
}
