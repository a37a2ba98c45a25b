//! Finds results folders that runs have left, and reads their tables.

use std::path::{Path, PathBuf};

use super::error::ReportError;
use super::parquet::VARIANTS_FILE;
use super::sweep_report::SweepReport;

/// Reads the tables of results folders: each path is `results/<pipeline>`, a folder of several such,
/// or the folder of one variant.
pub fn read_reports(paths: &[PathBuf]) -> Result<Vec<SweepReport>, ReportError> {
    let mut reports = Vec::new();
    for path in paths {
        reports.extend(read_tables(path)?);
    }
    Ok(reports)
}

/// The tables of every results folder at a path.
fn read_tables(path: &Path) -> Result<Vec<SweepReport>, ReportError> {
    if !path.exists() {
        return Err(ReportError::Missing(path.to_owned()));
    }
    if !path.is_dir() {
        return Err(ReportError::NoFolder(path.to_owned()));
    }
    let has_results = |folder: &Path| folder.join(VARIANTS_FILE).exists();
    let folders = find_result_folders(path, has_results);
    if !folders.is_empty() {
        return folders.into_iter().map(SweepReport::read).collect();
    }
    // `results/<pipeline>/<variant>`, also as `.` inside it.
    let absolute = path.canonicalize().unwrap_or(path.to_owned());
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) if has_results(parent) => {
            let tables = SweepReport::read(parent.to_owned())?;
            Ok(vec![tables.into_variant(path, &name.to_string_lossy())?])
        }
        _ => Err(ReportError::NoResults(path.to_owned())),
    }
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
