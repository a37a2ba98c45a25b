//! Joins the shards of a sweep: results folders of the same pipelines, from several machines,
//! become one. All folders are inspected before anything is written.
//!
//! The variants that `sweep.json` lists in any folder are expected: one without a complete result is
//! missing. Complete results of earlier runs are joined as well.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use polars::prelude::PolarsError;

use self::inspect::{FoundResult, FoundVariant, PipelineShards, inspect_folders, is_same_path};
use super::error::ReportError;
use super::parquet::{VARIANTS_FILE, read_parquet};
use super::shape::SweepManifest;
use super::summarize::find_result_folders;
use super::sweep_report::SweepReport;
use super::tables::write_report_tables;
use super::variant_summary::VariantSummary;
use crate::results::{self, ResultsFolder, VariantStatus};
use secateur_base::files::{self, FileError, PartialFolder};

mod inspect;

/// The joined results of one pipeline.
#[derive(Debug)]
pub struct MergedPipeline {
    /// The tables of the joined sweep.
    pub report: SweepReport,
    /// Variants of which no folder has a complete result: their ids and the reasons.
    pub missing_variants: Vec<(String, String)>,
}

/// Why folders could not be joined. After [`MergeError::Conflicts`] nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("`{}` holds no results: it has no sweep.json", .0.display())]
    NoResults(PathBuf),
    #[error("the folders contradict each other:\n{}", .0.join("\n"))]
    Conflicts(Vec<String>),
    #[error("another process is writing to `{}`", .0.display())]
    Busy(PathBuf),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Report(#[from] ReportError),
}

/// Joins results folders (each `results/<pipeline>`, or a folder of several such) into `into`, or
/// into the parent of the first. A second call with the same arguments changes nothing.
pub fn merge(sources: &[PathBuf], into: Option<&Path>) -> Result<Vec<MergedPipeline>, MergeError> {
    let folders = find_source_folders(sources)?;
    let first_parent = folders.first().and_then(|folder| folder.parent());
    let target_root = into.or(first_parent).unwrap_or(Path::new(""));
    let mut folders_by_pipeline: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for folder in &folders {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        folders_by_pipeline
            .entry(name.into_owned())
            .or_default()
            .push(folder.clone());
    }
    let mut conflicts = Vec::new();
    let mut pipelines = Vec::new();
    for (name, folders) in folders_by_pipeline {
        pipelines.push(inspect_folders(
            target_root.join(name),
            folders,
            &mut conflicts,
        ));
    }
    if !conflicts.is_empty() {
        return Err(MergeError::Conflicts(conflicts));
    }
    pipelines.into_iter().map(write_merged).collect()
}

/// The results folders of all sources, as absolute paths.
fn find_source_folders(sources: &[PathBuf]) -> Result<Vec<PathBuf>, MergeError> {
    let mut found = Vec::new();
    for source in sources {
        let folders = find_result_folders(source, |folder| SweepManifest::read(folder).is_some());
        if folders.is_empty() {
            return Err(MergeError::NoResults(source.clone()));
        }
        for folder in folders {
            found.push(folder.canonicalize().unwrap_or(folder));
        }
    }
    Ok(found)
}

/// Copies every usable result into the target folder, and writes the report tables there.
fn write_merged(shards: PipelineShards) -> Result<MergedPipeline, MergeError> {
    let target = shards.target;
    let results = ResultsFolder::open(&target)?;
    let _claim = results
        .claim(VARIANTS_FILE)?
        .ok_or_else(|| MergeError::Busy(target.clone()))?;
    let mut missing_variants = Vec::new();
    let mut summaries = Vec::new();
    let mut descriptions = Vec::new();
    for found in shards.expected {
        if let FoundResult::Incomplete { reason, .. } | FoundResult::Unusable { reason } =
            &found.result
        {
            missing_variants.push((found.description.id.clone(), reason.clone()));
        }
        descriptions.push(found.description.clone());
        summaries.extend(take_over(found, &results)?);
    }
    let mut earlier = Vec::new();
    for found in shards.earlier {
        earlier.extend(take_over(found, &results)?);
    }
    earlier.sort_by_key(|summary| !summary.is_current);
    summaries.extend(earlier);
    let sweep = SweepManifest {
        pipeline: shards.pipeline,
        shard: None,
        variants: descriptions,
    };
    sweep.write(&target)?;
    Ok(MergedPipeline {
        report: write_report_tables(&target, &summaries)?,
        missing_variants,
    })
}

/// Copies the result of a variant into the target folder, and returns its row; None if no folder
/// has a usable result.
fn take_over(
    found: FoundVariant,
    results: &ResultsFolder,
) -> Result<Option<VariantSummary>, MergeError> {
    let (FoundResult::Complete(folder) | FoundResult::Incomplete { folder, .. }) = found.result
    else {
        return Ok(None);
    };
    let id = found.description.id.clone();
    copy_variant(&folder, results, &id)?;
    let is_current = !is_marked_outdated(&folder, &id)?;
    let summary = VariantSummary::from_folder(found.description, results.folder());
    Ok(summary.map(|summary| VariantSummary {
        is_current,
        ..summary
    }))
}

/// Whether the table beside a variant's folder says that the variant is not current.
fn is_marked_outdated(variant_folder: &Path, id: &str) -> Result<bool, MergeError> {
    let table_path = variant_folder.with_file_name(VARIANTS_FILE);
    let Ok(table) = read_parquet(&table_path, Some(&["variant", "current"])) else {
        // The run was killed before it wrote the table, or an earlier version wrote it.
        return Ok(false);
    };
    let read = || -> Result<bool, PolarsError> {
        let ids = table.column("variant")?.str()?;
        let current = table.column("current")?.bool()?;
        let mut rows = ids.iter().zip(current.iter());
        Ok(rows.any(|(row_id, is_current)| row_id == Some(id) && is_current == Some(false)))
    };
    Ok(read().map_err(ReportError::from)?)
}

/// Copies a variant's folder into the target folder atomically, unless the target has a complete
/// result of it.
fn copy_variant(source: &Path, results: &ResultsFolder, id: &str) -> Result<(), MergeError> {
    let target = results.folder().join(id);
    if is_same_path(source, &target) || has_complete_result(&target) {
        return Ok(());
    }
    let _claim = results
        .claim(id)?
        .ok_or_else(|| MergeError::Busy(target.clone()))?;
    let copy = PartialFolder::new(results.folder())?;
    files::link_or_copy_tree(source, copy.path())?;
    Ok(copy.replace(&target)?)
}

fn has_complete_result(folder: &Path) -> bool {
    results::read_last_manifest(folder).is_some_and(|(_, manifest)| {
        manifest.status == VariantStatus::Succeeded
            && results::find_damaged_file(folder, &manifest).is_none()
    })
}
