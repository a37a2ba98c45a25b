//! What the folders of one pipeline hold of each variant, and where they contradict each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::plan::shard::Shard;
use crate::report::shape::{SweepManifest, VariantDescription};
use crate::results::{self, VariantManifest, VariantStatus};

/// What the folders of one pipeline hold, and the folder that they are joined into.
pub(super) struct PipelineShards {
    pub(super) target: PathBuf,
    /// The recorded path of the pipeline file.
    pub(super) pipeline: Option<String>,
    /// Those that the folders' sweeps have.
    pub(super) expected: Vec<FoundVariant>,
    /// Complete results of other variants.
    pub(super) earlier: Vec<FoundVariant>,
}

pub(super) struct FoundVariant {
    pub(super) description: VariantDescription,
    pub(super) result: FoundResult,
}

/// What the folders hold of one variant.
pub(super) enum FoundResult {
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

/// Inspects the folders of one pipeline, including the target if it already holds results.
pub(super) fn inspect_folders(
    target: PathBuf,
    mut folders: Vec<PathBuf>,
    conflicts: &mut Vec<String>,
) -> PipelineShards {
    let is_source = folders.iter().any(|folder| is_same_path(folder, &target));
    if !is_source && SweepManifest::read(&target).is_some() {
        folders.insert(0, target.clone());
    }
    let sweeps: Vec<SweepManifest> = folders
        .iter()
        .filter_map(|folder| SweepManifest::read(folder))
        .collect();
    let missing_reason = missing_reason(&sweeps);
    let expected: Vec<FoundVariant> = collect_descriptions(&folders, conflicts)
        .into_iter()
        .map(|description| FoundVariant {
            result: find_result(&description.id, &folders, &missing_reason, conflicts),
            description,
        })
        .collect();
    check_same_pipeline(&folders, conflicts);
    check_same_origin(&expected, conflicts);
    PipelineShards {
        target,
        pipeline: sweeps.into_iter().find_map(|sweep| sweep.pipeline),
        earlier: find_earlier(&expected, &folders, conflicts),
        expected,
    }
}

/// What is said of a variant that no folder has: which shards are not among the folders, if they
/// were written by shards of one distribution.
fn missing_reason(sweeps: &[SweepManifest]) -> String {
    let reason = "no folder has it".to_owned();
    let present: BTreeSet<&str> = sweeps
        .iter()
        .filter_map(|sweep| sweep.shard.as_deref())
        .collect();
    let first: Option<Shard> = present.first().and_then(|shard| shard.parse().ok());
    let Some(first) = first else {
        return reason;
    };
    let all: Vec<String> = first.all().map(|shard| shard.to_string()).collect();
    if !present
        .iter()
        .all(|shard| all.iter().any(|other| other == shard))
    {
        return reason;
    }
    let absent: Vec<String> = all
        .into_iter()
        .filter(|shard| !present.contains(shard.as_str()))
        .collect();
    if absent.is_empty() {
        return reason;
    }
    format!(
        "{reason}; the results of shard {} are not among the folders",
        absent.join(", ")
    )
}

/// Adds a conflict for folders that record different pipeline files and have no variant in common:
/// they are results of two pipelines with one file name.
fn check_same_pipeline(folders: &[PathBuf], conflicts: &mut Vec<String>) {
    let mut first: Option<(&PathBuf, String, SweepManifest)> = None;
    for folder in folders {
        let Some(sweep) = SweepManifest::read(folder) else {
            continue;
        };
        let Some(pipeline) = sweep.pipeline.clone() else {
            continue;
        };
        let Some((first_folder, first_pipeline, first_sweep)) = &first else {
            first = Some((folder, pipeline, sweep));
            continue;
        };
        let mut variants = sweep.variants.iter();
        let has_common_variant = variants.any(|variant| first_sweep.variants.contains(variant));
        if *first_pipeline != pipeline && !has_common_variant {
            conflicts.push(format!(
                "`{}` has the results of `{first_pipeline}`, `{}` those of `{pipeline}`",
                first_folder.display(),
                folder.display()
            ));
        }
    }
}

/// The complete results of variants that no folder's sweep has, and that are not there under
/// another name.
fn find_earlier(
    expected: &[FoundVariant],
    folders: &[PathBuf],
    conflicts: &mut Vec<String>,
) -> Vec<FoundVariant> {
    let mut earlier: Vec<FoundVariant> = Vec::new();
    for manifest in folders
        .iter()
        .flat_map(|folder| results::variant_folders(folder))
        .filter_map(|folder| VariantManifest::read(&folder))
    {
        let Some(description) = manifest.complete_description() else {
            continue;
        };
        let is_same = |found: &FoundVariant| {
            found.description.id == description.id
                || (found.description.id_hash() == description.id_hash()
                    && matches!(found.result, FoundResult::Complete(_)))
        };
        if expected.iter().chain(&earlier).any(is_same) {
            continue;
        }
        let complete = find_complete(&description.id, folders, VariantManifest::read, conflicts);
        if let Some(folder) = complete {
            earlier.push(FoundVariant {
                description: description.clone(),
                result: FoundResult::Complete(folder),
            });
        }
    }
    earlier
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

/// The complete result of a variant, else what the folders have instead. `missing_reason` is the
/// reason if they have nothing.
fn find_result(
    id: &str,
    folders: &[PathBuf],
    missing_reason: &str,
    conflicts: &mut Vec<String>,
) -> FoundResult {
    let read_last = |folder: &Path| results::read_last_manifest(folder).map(|(_, last)| last);
    if let Some(folder) = find_complete(id, folders, read_last, conflicts) {
        return FoundResult::Complete(folder);
    }
    let mut found = FoundResult::Unusable {
        reason: missing_reason.to_owned(),
    };
    for folder in folders.iter().map(|folder| folder.join(id)) {
        let Some(manifest) = read_last(&folder) else {
            continue;
        };
        if manifest.status != VariantStatus::Succeeded {
            let reason = manifest
                .error
                .unwrap_or_else(|| manifest.status.name().to_owned());
            found = FoundResult::Incomplete { folder, reason };
        } else if let Some(file) = results::find_damaged_file(&folder, &manifest) {
            // The reason of a failed run is kept: it is more useful than that a copy is damaged.
            if matches!(found, FoundResult::Unusable { .. }) {
                let reason = format!("`{}` is damaged", folder.join(file).display());
                found = FoundResult::Unusable { reason };
            }
        }
    }
    found
}

/// The first complete result of a variant, which all other complete ones must equal.
fn find_complete(
    id: &str,
    folders: &[PathBuf],
    read_manifest: impl Fn(&Path) -> Option<VariantManifest>,
    conflicts: &mut Vec<String>,
) -> Option<PathBuf> {
    let mut complete: Option<(PathBuf, VariantManifest)> = None;
    for folder in folders.iter().map(|folder| folder.join(id)) {
        let Some(manifest) = read_manifest(&folder) else {
            continue;
        };
        if manifest.status != VariantStatus::Succeeded
            || results::find_damaged_file(&folder, &manifest).is_some()
        {
            continue;
        }
        let Some((first_folder, first_manifest)) = &complete else {
            complete = Some((folder, manifest));
            continue;
        };
        if let Some(file) = differing_file(first_manifest, &manifest) {
            conflicts.push(format!(
                "{id}: `{}` and `{}` differ",
                first_folder.join(&file).display(),
                folder.join(&file).display()
            ));
        }
    }
    complete.map(|(folder, _)| folder)
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

/// Whether two existing paths lead to the same file.
pub(super) fn is_same_path(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}
