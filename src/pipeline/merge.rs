//! Shards joined: results folders of the same pipeline, from several machines, become one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::report::{self, ReportError, VariantSummary};
use super::results::{self, Manifest, Results, Status};
use super::shape::{Shape, Sweep};
use crate::files::{self, FileError, PartialFolder};

/// What was joined.
#[derive(Debug)]
pub struct Merged {
    pub folder: PathBuf,
    /// The table of the sweep, as a person reads it.
    pub summary: String,
    /// Variants of the sweep that no folder has a complete result of, and what is known of each.
    pub holes: Vec<(String, String)>,
}

/// Folders could not be joined; nothing was written.
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

/// Joins results folders, `results/<pipeline>` or folders of several, into `into`, or into the first where none is given.
/// Doing it again changes nothing.
pub fn merge(sources: &[PathBuf], into: Option<&Path>) -> Result<Vec<Merged>, MergeError> {
    let mut pipelines: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for source in sources {
        for folder in folders(source)? {
            pipelines.entry(name(&folder)).or_default().push(folder);
        }
    }
    let merged = pipelines.into_iter().map(|(pipeline, mut folders)| {
        let target = into.map_or_else(|| folders[0].clone(), |into| into.join(&pipeline));
        if target.is_dir() && !folders.contains(&target) && Sweep::read(&target).is_some() {
            folders.insert(0, target.clone());
        }
        merge_pipeline(&folders, &target)
    });
    merged.collect()
}

/// The folder itself, or those in it that hold results.
fn folders(path: &Path) -> Result<Vec<PathBuf>, MergeError> {
    if Sweep::read(path).is_some() {
        return Ok(vec![path.to_owned()]);
    }
    let inside = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = inside.filter(|folder| Sweep::read(folder).is_some()).collect();
    found.sort();
    if found.is_empty() { Err(MergeError::NoResults(path.to_owned())) } else { Ok(found) }
}

fn name(folder: &Path) -> String {
    let named = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    named.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn merge_pipeline(folders: &[PathBuf], target: &Path) -> Result<Merged, MergeError> {
    let mut conflicts = Vec::new();
    let shapes = shapes(folders, &mut conflicts);
    let found: Vec<(&Shape, Found)> = shapes.iter().map(|shape| (shape, find(shape, folders, &mut conflicts))).collect();
    if !conflicts.is_empty() {
        return Err(MergeError::Conflicts(conflicts));
    }
    let results = Results::open(target.parent().unwrap_or(Path::new("")), &name_of(target))?;
    let _claim = results.claim(report::TABLE)?.ok_or_else(|| MergeError::Busy(target.to_owned()))?;
    let mut holes = Vec::new();
    for (shape, found) in &found {
        let from = match found {
            Found::Complete(folder) => folder,
            Found::Incomplete(folder, why) => {
                holes.push((shape.id.clone(), why.clone()));
                folder
            }
            Found::Nothing => {
                holes.push((shape.id.clone(), "no folder has it".to_owned()));
                continue;
            }
        };
        bring(from, &results, &shape.id)?;
    }
    Sweep { variants: shapes.clone() }.write(target)?;
    let rows: Vec<VariantSummary> = shapes.into_iter().filter_map(|shape| VariantSummary::of_folder(shape, target)).collect();
    let summary = report::write_variants(target, &rows)?;
    Ok(Merged { folder: target.to_owned(), summary, holes })
}

fn name_of(target: &Path) -> String {
    target.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// Every variant that any folder's sweep has, in the order of the first that has it.
fn shapes(folders: &[PathBuf], conflicts: &mut Vec<String>) -> Vec<Shape> {
    let mut shapes: Vec<Shape> = Vec::new();
    for folder in folders {
        for shape in Sweep::read(folder).into_iter().flat_map(|sweep| sweep.variants) {
            match shapes.iter().find(|known| known.id == shape.id) {
                Some(known) if *known != shape => {
                    conflicts.push(format!("{}: `{}` describes it otherwise than the others", shape.id, folder.display()));
                }
                Some(_) => {}
                None => shapes.push(shape),
            }
        }
    }
    shapes
}

/// What the folders have of a variant.
enum Found {
    Complete(PathBuf),
    Incomplete(PathBuf, String),
    Nothing,
}

/// The first complete result, which all others must equal; else the first that is not complete.
fn find(shape: &Shape, folders: &[PathBuf], conflicts: &mut Vec<String>) -> Found {
    let mut complete: Option<(PathBuf, Manifest)> = None;
    let mut incomplete: Option<(PathBuf, String)> = None;
    for place in folders.iter().map(|folder| folder.join(&shape.id)) {
        let Some(manifest) = Manifest::read(&place) else { continue };
        if manifest.status != Status::Succeeded {
            let why = manifest.error.clone().unwrap_or_else(|| manifest.status.name().to_owned());
            incomplete.get_or_insert((place, why));
        } else if let Some(file) = results::damaged(&place, &manifest) {
            let why = format!("`{}` is damaged", place.join(file).display());
            incomplete.get_or_insert((place, why));
        } else if let Some((first, known)) = &complete {
            if let Some(file) = difference(known, &manifest) {
                let (first, place) = (first.join(&file), place.join(&file));
                conflicts.push(format!("{}: `{}` and `{}` differ", shape.id, first.display(), place.display()));
            }
        } else {
            complete = Some((place, manifest));
        }
    }
    match (complete, incomplete) {
        (Some((place, _)), _) => Found::Complete(place),
        (None, Some((place, why))) => Found::Incomplete(place, why),
        (None, None) => Found::Nothing,
    }
}

/// A file that two complete results do not have in common.
fn difference(one: &Manifest, other: &Manifest) -> Option<String> {
    let names = one.outputs.keys().chain(other.outputs.keys());
    names.into_iter().find(|name| one.outputs.get(*name) != other.outputs.get(*name)).cloned()
}

/// Puts a variant's folder into its place, whole.
fn bring(from: &Path, results: &Results, id: &str) -> Result<(), MergeError> {
    let target = results.folder().join(id);
    let is_same = |a: &Path, b: &Path| a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b));
    let has_it = Manifest::read(&target)
        .is_some_and(|manifest| manifest.status == Status::Succeeded && results::damaged(&target, &manifest).is_none());
    if is_same(from, &target) || has_it {
        return Ok(());
    }
    let _claim = results.claim(id)?.ok_or_else(|| MergeError::Busy(target.clone()))?;
    let copy = PartialFolder::new(results.folder())?;
    files::link_tree(from, copy.path())?;
    Ok(copy.replace(&target)?)
}
