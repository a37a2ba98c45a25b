//! The pipeline file that a results folder belongs to. Results are in a folder named after the stem
//! of their pipeline file; two files of one stem must not share it.

use std::path::Path;

use crate::pipeline::problem::{Problem, SourceTexts};
use crate::pipeline::settings::SettingSpans;
use crate::results::VariantManifest;
use crate::results::sweep::SweepManifest;

/// The path of a pipeline file as `sweep.json` records it: relative to the working directory if the
/// file lies inside, so that a checkout can be moved. None for the `pipeline.toml` of a variant:
/// those of all variants have one stem, and their results may share a folder.
pub(super) fn recorded_path(pipeline: &Path) -> Option<String> {
    let folder = pipeline.parent().unwrap_or(Path::new(""));
    if VariantManifest::read(folder).is_some() {
        return None;
    }
    let absolute = std::path::absolute(pipeline).ok()?;
    let working_directory = std::env::current_dir().ok()?;
    let path = absolute.strip_prefix(&working_directory);
    Some(path.unwrap_or(&absolute).to_string_lossy().into_owned())
}

/// Refuses a results folder whose last run was of another pipeline file that still exists. Files
/// that were moved or renamed, and those of another checkout, are not told apart from this one: the
/// recorded path leads to this file or to none.
pub(super) fn check_results_owner(
    pipeline: &Path,
    results_folder: &Path,
    spans: &SettingSpans,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) {
    let recorded = SweepManifest::read(results_folder).and_then(|sweep| sweep.pipeline);
    let Some(owner) = recorded else {
        return;
    };
    if is_other_file(Path::new(&owner), pipeline) {
        problems.push(sources.problem(
            spans.get("results"),
            format!(
                "the results of this pipeline go to `{}`, which has those of `{owner}`",
                results_folder.display()
            ),
            "give this pipeline another results folder, with --results or [run] results, or rename \
             one of the two files",
        ));
    }
}

/// Whether both files exist and have different contents.
pub(crate) fn is_other_file(owner: &Path, pipeline: &Path) -> bool {
    match (std::fs::read(owner), std::fs::read(pipeline)) {
        (Ok(owner_text), Ok(text)) => owner_text != text,
        _ => false,
    }
}
