//! Finds results folders that runs have left, and reads their tables.

use std::path::{Path, PathBuf};

use super::error::ReportError;
use super::parquet::VARIANTS_FILE;
use super::sweep_report::SweepReport;

/// Reads the tables of results folders: each path is `results/<pipeline>`, or a folder of several
/// such.
pub fn read_reports(paths: &[PathBuf]) -> Result<Vec<SweepReport>, ReportError> {
    let mut reports = Vec::new();
    for path in paths {
        let folders = find_result_folders(path, |folder| folder.join(VARIANTS_FILE).exists());
        if folders.is_empty() {
            return Err(ReportError::NoResults(path.clone()));
        }
        for folder in folders {
            reports.push(SweepReport::read(folder)?);
        }
    }
    Ok(reports)
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
