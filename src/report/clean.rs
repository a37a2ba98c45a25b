//! Results that no pipeline file names any more, and incomplete ones: what `runner clean` lists and
//! removes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use polars::prelude::*;
use serde::Serialize;

use super::error::ReportError;
use super::parquet::{VARIANTS_FILE, read_parquet, write_parquet};
use super::shape::{SweepManifest, VariantDescription};
use super::summarize::find_result_folders;
use crate::plan::owner::is_other_file;
use crate::plan::{Plan, earlier};
use crate::results::{self, ResultsFolder, VariantManifest, VariantStatus};
use secateur_base::files::{self, FileError};

/// The results folder of a pipeline.
#[derive(Clone, Debug)]
pub struct PipelineResults {
    pub folder: PathBuf,
    /// The pipeline file that the folder records.
    pub recorded_pipeline: Option<PathBuf>,
}

/// A variant's folder that can be removed.
#[derive(Clone, Debug, Serialize)]
pub struct Leftover {
    pub variant: String,
    pub reason: String,
    /// The bytes of its files. Those of products that the cache still has stay on the disk.
    pub bytes: u64,
}

/// The results folders of pipelines: `path` itself, or those directly inside it.
pub fn find_pipeline_results(path: &Path) -> Vec<PipelineResults> {
    find_result_folders(path, |folder| SweepManifest::read(folder).is_some())
        .into_iter()
        .map(|folder| PipelineResults {
            recorded_pipeline: recorded_pipeline(&folder),
            folder,
        })
        .collect()
}

impl PipelineResults {
    /// The pipeline file whose results these are, if it exists and is another one than `pipeline`.
    pub fn other_owner(&self, pipeline: &Path) -> Option<&Path> {
        let recorded = self.recorded_pipeline.as_deref();
        recorded.filter(|recorded| is_other_file(recorded, pipeline))
    }
}

/// The pipeline file that a results folder records. Its path is relative to the working directory
/// of the run, which usually is this one or the folder that `results` is in.
fn recorded_pipeline(folder: &Path) -> Option<PathBuf> {
    let recorded = PathBuf::from(SweepManifest::read(folder)?.pipeline?);
    let beside_results = folder
        .parent()
        .and_then(Path::parent)
        .map(|root| root.join(&recorded))
        .filter(|path| !recorded.exists() && path.exists());
    Some(beside_results.unwrap_or(recorded))
}

/// The variants in a results folder that are incomplete or that the pipeline file does not name.
/// `plan` is the plan of the file alone; without one, no variant is named.
pub fn find_leftovers(folder: &Path, plan: Option<&Plan>) -> Vec<Leftover> {
    results::variant_folders(folder)
        .into_iter()
        .filter_map(|variant_folder| {
            let manifest = VariantManifest::read(&variant_folder)?;
            let name = variant_folder.file_name()?.to_string_lossy().into_owned();
            Some(Leftover {
                reason: removal_reason(&variant_folder, &name, &manifest, plan)?,
                bytes: folder_bytes(&variant_folder),
                variant: name,
            })
        })
        .collect()
}

/// Why a variant's folder can be removed; None if it is a result that the pipeline file names.
fn removal_reason(
    folder: &Path,
    name: &str,
    manifest: &VariantManifest,
    plan: Option<&Plan>,
) -> Option<String> {
    if manifest.status != VariantStatus::Succeeded {
        // That of a variant whose run was killed is `interrupted`.
        let (_, last) = results::read_last_manifest(folder)?;
        return Some(format!("incomplete: {}", last.status.name()));
    }
    let Some(plan) = plan else {
        return Some("its pipeline file is not there".to_owned());
    };
    if plan.variant_order.iter().any(|id| id == name) {
        return None;
    }
    let outdated = || Some("of another state of the pipeline file".to_owned());
    let Some(description) = &manifest.description else {
        return outdated();
    };
    let mut other_names = plan.variant_order.iter();
    if let Some(other) = other_names.find(|id| id.ends_with(&format!("-{}", description.id_hash())))
    {
        return Some(format!(
            "the pipeline file gives this variant the name {other}"
        ));
    }
    let is_given = earlier::gives_variant(
        &plan.pipeline_text,
        &description.swept,
        description.id_hash(),
    );
    if is_given {
        Some(format!(
            "not in the pipeline file: {}",
            options_text(description)
        ))
    } else {
        outdated()
    }
}

/// The options of a variant as assignments.
fn options_text(description: &VariantDescription) -> String {
    let options = description.swept.iter();
    let texts: Vec<String> = options
        .map(|(key, value)| format!("{key} = {value}"))
        .collect();
    texts.join(", ")
}

fn folder_bytes(folder: &Path) -> u64 {
    let files = files::list_files(folder).unwrap_or_default().into_iter();
    files
        .filter_map(|file| std::fs::metadata(folder.join(file)).ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// Removes variants from a results folder: their folders, and their rows of the sweep's tables.
/// Returns those that could not be removed, each with the reason.
///
/// # Errors
/// If the results folder cannot be locked, or its tables cannot be written.
pub fn remove_variants(
    folder: &Path,
    leftovers: &[Leftover],
) -> Result<Vec<(String, String)>, ReportError> {
    let results = ResultsFolder::open(folder)?;
    let mut removed = BTreeSet::new();
    let mut failures = Vec::new();
    for leftover in leftovers {
        match remove_variant(&results, &leftover.variant) {
            Ok(()) => {
                removed.insert(leftover.variant.as_str());
            }
            Err(reason) => failures.push((leftover.variant.clone(), reason)),
        }
    }
    if !removed.is_empty() {
        remove_rows(&results, &removed)?;
    }
    Ok(failures)
}

fn remove_variant(results: &ResultsFolder, id: &str) -> Result<(), String> {
    let claim = results.claim(id).map_err(|error| error.to_string())?;
    let _claim = claim.ok_or("another run is working on it")?;
    files::delete_folder(&results.folder().join(id)).map_err(|error| error.to_string())
}

/// Removes variants from every table of the sweep, and from the list of its variants: a merge would
/// call them missing.
fn remove_rows(results: &ResultsFolder, variants: &BTreeSet<&str>) -> Result<(), ReportError> {
    let busy = || {
        let reason = std::io::Error::other("another run is writing it; repeat the command");
        FileError::write(&results.folder().join(VARIANTS_FILE), reason)
    };
    let _claim = results.claim(VARIANTS_FILE)?.ok_or_else(busy)?;
    if let Some(mut sweep) = SweepManifest::read(results.folder()) {
        sweep
            .variants
            .retain(|variant| !variants.contains(variant.id.as_str()));
        sweep.write(results.folder())?;
    }
    let used_options = used_options(results.folder());
    let entries = std::fs::read_dir(results.folder()).into_iter().flatten();
    let tables = entries.flatten().map(|entry| entry.path()).filter(|path| {
        path.extension()
            .is_some_and(|extension| extension == "parquet")
    });
    for path in tables {
        let table = read_parquet(&path, None)?;
        let stays: BooleanChunked = table
            .column("variant")?
            .str()?
            .iter()
            .map(|id| id.is_none_or(|id| !variants.contains(id)))
            .collect();
        let mut remaining = table.filter(&stays)?;
        drop_unused_options(&mut remaining, &used_options)?;
        write_parquet(&path, &remaining)?;
    }
    Ok(())
}

/// Drops the columns of options that the sweep or the command line set for no remaining variant.
/// They lie before the column `status`.
fn drop_unused_options(table: &mut DataFrame, used: &BTreeSet<String>) -> Result<(), PolarsError> {
    let names: Vec<String> = table
        .get_column_names()
        .iter()
        .map(|name| name.to_string())
        .collect();
    let Some(status) = names.iter().position(|name| name == "status") else {
        return Ok(());
    };
    for name in names[..status].iter().skip(1) {
        if !used.contains(name) {
            table.drop_in_place(name)?;
        }
    }
    Ok(())
}

/// The options that the sweep or the command line set for any variant in the folder.
fn used_options(folder: &Path) -> BTreeSet<String> {
    let last_sweep = SweepManifest::read(folder).unwrap_or_default().variants;
    let description = |variant_folder: &PathBuf| {
        let in_last_sweep = || {
            let name = variant_folder.file_name()?.to_string_lossy();
            last_sweep
                .iter()
                .find(|variant| variant.id == name)
                .cloned()
        };
        let manifest = VariantManifest::read(variant_folder)?;
        manifest.description.or_else(in_last_sweep)
    };
    results::variant_folders(folder)
        .iter()
        .filter_map(description)
        .flat_map(|description| description.swept)
        .map(|(key, _)| key)
        .collect()
}
