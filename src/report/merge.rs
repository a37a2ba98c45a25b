//! Shards joined: results folders of the same pipelines, from several machines, become one. All are looked at before anything
//! is written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::report::shape::{SweepManifest, VariantDescription};
use crate::report::{self, ReportError, VariantSummary};
use crate::results::{self, ResultsFolder, VariantManifest, VariantStatus};
use secateur_base::files::{self, FileError, PartialFolder};

/// What was joined.
#[derive(Debug)]
pub struct MergedPipeline {
    pub folder: PathBuf,
    /// The table of the sweep, as a person reads it.
    pub summary: String,
    /// Variants of the sweep that no folder has a complete result of, and what is known of each.
    pub missing_variants: Vec<(String, String)>,
}

/// Folders could not be joined. Where they contradict each other nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("`{}` holds no results: it has no sweep.json", .0.display())]
    NoResults(PathBuf),
    #[error("the folders contradict each other:\n{}", .0.join("\n"))]
    Conflicts(Vec<String>),
    #[error("another program is at work in `{}`", .0.display())]
    Busy(PathBuf),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Report(#[from] ReportError),
}

/// One pipeline's results in several folders.
struct PipelineShards {
    target: PathBuf,
    descriptions: Vec<VariantDescription>,
    /// What the folders have of each.
    found_results: Vec<FoundResult>,
}

/// What the folders have of a variant.
enum FoundResult {
    Complete(PathBuf),
    /// It failed, or was interrupted.
    Incomplete(PathBuf, String),
    /// Nothing that could be used, and why.
    Unusable(String),
}

/// Joins results folders, `results/<pipeline>` or folders of several, into `into`; where none is given, into the first. Doing
/// it again changes nothing.
pub fn merge(sources: &[PathBuf], into: Option<&Path>) -> Result<Vec<MergedPipeline>, MergeError> {
    let mut pipelines: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let mut root = into.map(Path::to_owned);
    for source in sources {
        let folders =
            report::find_result_folders(source, |folder| SweepManifest::read(folder).is_some());
        if folders.is_empty() {
            return Err(MergeError::NoResults(source.clone()));
        }
        for folder in folders {
            let folder = folder.canonicalize().unwrap_or(folder);
            root.get_or_insert_with(|| folder.parent().unwrap_or(Path::new("")).to_owned());
            let name = folder
                .file_name()
                .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            pipelines.entry(name).or_default().push(folder);
        }
    }
    let root = root.unwrap_or_default();
    let mut conflicts = Vec::new();
    let looked = pipelines
        .into_iter()
        .map(|(name, folders)| inspect_folders(root.join(name), folders, &mut conflicts));
    let looked: Vec<PipelineShards> = looked.collect();
    if conflicts.is_empty() {
        looked.into_iter().map(write_merged).collect()
    } else {
        Err(MergeError::Conflicts(conflicts))
    }
}

/// What the folders of a pipeline have, those of the target included, and where they contradict each other.
fn inspect_folders(
    target: PathBuf,
    mut folders: Vec<PathBuf>,
    conflicts: &mut Vec<String>,
) -> PipelineShards {
    let is_target = |folder: &PathBuf| target.canonicalize().is_ok_and(|target| target == *folder);
    if !folders.iter().any(is_target) && SweepManifest::read(&target).is_some() {
        folders.insert(0, target.clone());
    }
    let shapes = collect_descriptions(&folders, conflicts);
    let found: Vec<FoundResult> = shapes
        .iter()
        .map(|shape| find_result(shape, &folders, conflicts))
        .collect();
    check_same_origin(&shapes, &found, conflicts);
    PipelineShards {
        target,
        descriptions: shapes,
        found_results: found,
    }
}

/// Every variant that any folder's sweep has, in the order of the first that has it.
fn collect_descriptions(
    folders: &[PathBuf],
    conflicts: &mut Vec<String>,
) -> Vec<VariantDescription> {
    let mut shapes: Vec<VariantDescription> = Vec::new();
    for folder in folders {
        for shape in SweepManifest::read(folder)
            .into_iter()
            .flat_map(|sweep| sweep.variants)
        {
            match shapes.iter().find(|known| known.id == shape.id) {
                Some(known) if *known != shape => {
                    conflicts.push(format!(
                        "{}: `{}` describes it otherwise than the others",
                        shape.id,
                        folder.display()
                    ));
                }
                Some(_) => {}
                None => shapes.push(shape),
            }
        }
    }
    shapes
}

/// The first complete result, which all others must equal; else the first that is not complete.
fn find_result(
    shape: &VariantDescription,
    folders: &[PathBuf],
    conflicts: &mut Vec<String>,
) -> FoundResult {
    let mut complete: Option<(PathBuf, VariantManifest)> = None;
    let mut other = FoundResult::Unusable("no folder has it".to_owned());
    for place in folders.iter().map(|folder| folder.join(&shape.id)) {
        let Some((_, manifest)) = results::read_last_manifest(&place) else {
            continue;
        };
        if manifest.status != VariantStatus::Succeeded {
            let why = manifest
                .error
                .clone()
                .unwrap_or_else(|| manifest.status.name().to_owned());
            other = FoundResult::Incomplete(place, why);
        } else if let Some(file) = results::find_damaged_file(&place, &manifest) {
            if matches!(other, FoundResult::Unusable(_)) {
                other =
                    FoundResult::Unusable(format!("`{}` is damaged", place.join(file).display()));
            }
        } else if let Some((first, known)) = &complete {
            if let Some(file) = differing_file(known, &manifest) {
                let (first, place) = (first.join(&file), place.join(&file));
                conflicts.push(format!(
                    "{}: `{}` and `{}` differ",
                    shape.id,
                    first.display(),
                    place.display()
                ));
            }
        } else {
            complete = Some((place, manifest));
        }
    }
    complete.map_or(other, |(place, _)| FoundResult::Complete(place))
}

/// A file that two complete results do not have in common; a profile is of its own run.
fn differing_file(one: &VariantManifest, other: &VariantManifest) -> Option<String> {
    let is_profile = |name: &String| name.starts_with("profile") && name.ends_with(".json");
    let mut names = one.outputs.keys().chain(other.outputs.keys());
    names
        .find(|name| !is_profile(name) && one.outputs.get(*name) != other.outputs.get(*name))
        .cloned()
}

/// Variants of one table are made by one program from one set of files.
fn check_same_origin(
    shapes: &[VariantDescription],
    found: &[FoundResult],
    conflicts: &mut Vec<String>,
) {
    let mut origins: BTreeMap<String, (String, &str)> = BTreeMap::new();
    for (shape, found) in shapes.iter().zip(found) {
        let FoundResult::Complete(place) = found else {
            continue;
        };
        let Some(manifest) = VariantManifest::read(place) else {
            continue;
        };
        let files = manifest
            .inputs
            .into_iter()
            .map(|(path, hash)| (format!("`{path}`"), hash));
        let code = manifest
            .stages
            .into_iter()
            .map(|record| (format!("code of `{}`", record.stage), record.code));
        for (what, version) in files.chain(code) {
            let (known, of) = origins
                .entry(what.clone())
                .or_insert_with(|| (version.clone(), &shape.id));
            if *known != version {
                conflicts.push(format!(
                    "{}: it was made with another {what} than {of}",
                    shape.id
                ));
            }
        }
    }
}

/// Brings everything into the target, and writes its table.
fn write_merged(
    PipelineShards {
        target,
        descriptions: shapes,
        found_results: found,
    }: PipelineShards,
) -> Result<MergedPipeline, MergeError> {
    let results = ResultsFolder::open(&target)?;
    let _claim = results
        .claim(report::VARIANTS_FILE)?
        .ok_or_else(|| MergeError::Busy(target.clone()))?;
    let (mut holes, mut rows) = (Vec::new(), Vec::new());
    for (shape, found) in shapes.iter().zip(&found) {
        if let FoundResult::Incomplete(_, why) | FoundResult::Unusable(why) = found {
            holes.push((shape.id.clone(), why.clone()));
        }
        if let FoundResult::Complete(from) | FoundResult::Incomplete(from, _) = found {
            copy_variant(from, &results, &shape.id)?;
            rows.extend(VariantSummary::from_folder(shape.clone(), &target));
        }
    }
    SweepManifest { variants: shapes }.write(&target)?;
    let summary = report::write_report_tables(&target, &rows)?;
    Ok(MergedPipeline {
        folder: target,
        summary,
        missing_variants: holes,
    })
}

/// Puts a variant's folder into its place, whole.
fn copy_variant(from: &Path, results: &ResultsFolder, id: &str) -> Result<(), MergeError> {
    let target = results.folder().join(id);
    let is_same = |a: &Path, b: &Path| {
        a.canonicalize()
            .is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
    };
    let has_it = |(_, manifest): (PathBuf, VariantManifest)| {
        manifest.status == VariantStatus::Succeeded
            && results::find_damaged_file(&target, &manifest).is_none()
    };
    if is_same(from, &target) || results::read_last_manifest(&target).is_some_and(has_it) {
        return Ok(());
    }
    let _claim = results
        .claim(id)?
        .ok_or_else(|| MergeError::Busy(target.clone()))?;
    let copy = PartialFolder::new(results.folder())?;
    files::link_or_copy_tree(from, copy.path())?;
    Ok(copy.replace(&target)?)
}
