//! Joins the shards of a sweep: results folders of the same pipelines, from several machines,
//! become one. All folders are inspected before anything is written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::ReportError;
use super::parquet::VARIANTS_FILE;
use super::shape::{SweepManifest, VariantDescription};
use super::summarize::find_result_folders;
use super::sweep_report::SweepReport;
use super::tables::write_report_tables;
use super::variant_summary::VariantSummary;
use crate::results::{self, ResultsFolder, VariantManifest, VariantStatus};
use secateur_base::files::{self, FileError, PartialFolder};

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

/// What the folders of one pipeline hold, and the folder that they are joined into.
struct PipelineShards {
    target: PathBuf,
    variants: Vec<FoundVariant>,
}

struct FoundVariant {
    description: VariantDescription,
    result: FoundResult,
}

/// What the folders hold of one variant.
enum FoundResult {
    Complete(PathBuf),
    /// The variant failed or was interrupted.
    Incomplete {
        folder: PathBuf,
        reason: String,
    },
    /// No folder has a usable result.
    Unusable {
        reason: String,
    },
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

/// Inspects the folders of one pipeline, including the target if it already holds results.
fn inspect_folders(
    target: PathBuf,
    mut folders: Vec<PathBuf>,
    conflicts: &mut Vec<String>,
) -> PipelineShards {
    let is_source = folders.iter().any(|folder| is_same_path(folder, &target));
    if !is_source && SweepManifest::read(&target).is_some() {
        folders.insert(0, target.clone());
    }
    let mut variants = Vec::new();
    for description in collect_descriptions(&folders, conflicts) {
        let result = find_result(&description.id, &folders, conflicts);
        variants.push(FoundVariant {
            description,
            result,
        });
    }
    check_same_origin(&variants, conflicts);
    PipelineShards { target, variants }
}

/// Every variant of any folder's sweep, in the order of first appearance. All folders must describe
/// a variant in the same way.
fn collect_descriptions(
    folders: &[PathBuf],
    conflicts: &mut Vec<String>,
) -> Vec<VariantDescription> {
    let mut descriptions: Vec<VariantDescription> = Vec::new();
    for folder in folders {
        let Some(sweep) = SweepManifest::read(folder) else {
            continue;
        };
        for description in sweep.variants {
            let known = descriptions.iter().find(|known| known.id == description.id);
            match known {
                None => descriptions.push(description),
                Some(known) if *known != description => conflicts.push(format!(
                    "{}: `{}` describes this variant differently than the folders before it",
                    description.id,
                    folder.display()
                )),
                Some(_) => {}
            }
        }
    }
    descriptions
}

/// The first complete result of a variant, which all other complete ones must equal; else what the
/// folders have instead.
fn find_result(id: &str, folders: &[PathBuf], conflicts: &mut Vec<String>) -> FoundResult {
    let mut complete: Option<(PathBuf, VariantManifest)> = None;
    let mut fallback = FoundResult::Unusable {
        reason: "no folder has it".to_owned(),
    };
    for folder in folders.iter().map(|folder| folder.join(id)) {
        let Some((_, manifest)) = results::read_last_manifest(&folder) else {
            continue;
        };
        if manifest.status != VariantStatus::Succeeded {
            let reason = manifest
                .error
                .unwrap_or_else(|| manifest.status.name().to_owned());
            fallback = FoundResult::Incomplete { folder, reason };
        } else if let Some(file) = results::find_damaged_file(&folder, &manifest) {
            // The reason of a failed run is kept: it is more useful than that a copy is damaged.
            if matches!(fallback, FoundResult::Unusable { .. }) {
                let reason = format!("`{}` is damaged", folder.join(file).display());
                fallback = FoundResult::Unusable { reason };
            }
        } else if let Some((first_folder, first_manifest)) = &complete {
            if let Some(file) = differing_file(first_manifest, &manifest) {
                conflicts.push(format!(
                    "{id}: `{}` and `{}` differ",
                    first_folder.join(&file).display(),
                    folder.join(&file).display()
                ));
            }
        } else {
            complete = Some((folder, manifest));
        }
    }
    match complete {
        Some((folder, _)) => FoundResult::Complete(folder),
        None => fallback,
    }
}

/// A file that two complete results do not have in common. Profiles measure times, which differ
/// from run to run.
fn differing_file(one: &VariantManifest, other: &VariantManifest) -> Option<String> {
    let is_profile = |name: &str| name.starts_with("profile") && name.ends_with(".json");
    let mut names = one.outputs.keys().chain(other.outputs.keys());
    names
        .find(|name| !is_profile(name) && one.outputs.get(*name) != other.outputs.get(*name))
        .cloned()
}

/// Adds a conflict for each complete variant that was made from other input files, or by other code
/// of a stage, than one before it: rows of one table must be comparable.
fn check_same_origin(variants: &[FoundVariant], conflicts: &mut Vec<String>) {
    // The version of each file and of each stage's code, and the first variant that has it.
    let mut origins: BTreeMap<String, (String, &str)> = BTreeMap::new();
    for variant in variants {
        let FoundResult::Complete(folder) = &variant.result else {
            continue;
        };
        let Some(manifest) = VariantManifest::read(folder) else {
            continue;
        };
        let id = variant.description.id.as_str();
        for (source, version) in source_versions(manifest) {
            let (first_version, first_id) = origins
                .entry(source.clone())
                .or_insert_with(|| (version.clone(), id));
            if *first_version != version {
                conflicts.push(format!(
                    "{id}: it was made with another {source} than {first_id}"
                ));
            }
        }
    }
}

/// The input files of a variant with their hashes, then its stages with the versions of their code.
fn source_versions(manifest: VariantManifest) -> Vec<(String, String)> {
    let mut versions = Vec::new();
    for (path, hash) in manifest.inputs {
        versions.push((format!("`{path}`"), hash));
    }
    for record in manifest.stages {
        versions.push((format!("code of `{}`", record.stage), record.code));
    }
    versions
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
    for FoundVariant {
        description,
        result,
    } in shards.variants
    {
        let (folder, missing_reason) = match result {
            FoundResult::Complete(folder) => (Some(folder), None),
            FoundResult::Incomplete { folder, reason } => (Some(folder), Some(reason)),
            FoundResult::Unusable { reason } => (None, Some(reason)),
        };
        if let Some(folder) = folder {
            copy_variant(&folder, &results, &description.id)?;
            summaries.extend(VariantSummary::from_folder(description.clone(), &target));
        }
        if let Some(reason) = missing_reason {
            missing_variants.push((description.id.clone(), reason));
        }
        descriptions.push(description);
    }
    let sweep = SweepManifest {
        variants: descriptions,
    };
    sweep.write(&target)?;
    Ok(MergedPipeline {
        report: write_report_tables(&target, &summaries)?,
        missing_variants,
    })
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

/// Whether two existing paths lead to the same file.
fn is_same_path(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}
