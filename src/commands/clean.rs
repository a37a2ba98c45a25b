//! `runner clean`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::HumanBytes;
use secateur::pipeline::problem::format_count;
use secateur::plan::Plan;
use secateur::plan::check::{Overrides, check};
use secateur::report::clean::{
    Leftover, PipelineResults, find_leftovers, find_pipeline_results, remove_variants,
};
use serde_json::{Value, json};

use crate::commands::arguments::{CleanArgs, OutputFormat};
use crate::commands::cache::environment_settings;
use crate::commands::output::{
    exit_with_error, print, print_json, print_to_stderr, report_invalid, wrap_paragraphs,
};

/// A results folder, and what can be removed from it.
struct FolderLeftovers {
    folder: PathBuf,
    /// The pipeline file; None if it is not known or not there.
    pipeline: Option<PathBuf>,
    leftovers: Vec<Leftover>,
    /// Why nothing is removed from the folder, if so.
    kept_because: Option<String>,
}

/// A removal that failed: the variant's folder and the reason.
type Failure = (PathBuf, String);

/// Lists the results that no pipeline names any more, and removes them with `--remove`.
pub(crate) fn clean(arguments: &CleanArgs) -> ExitCode {
    let folders = match find_folders(arguments) {
        Ok(folders) => folders,
        Err(code) => return code,
    };
    let mut failures = Vec::new();
    if arguments.remove {
        for folder in &folders {
            failures.extend(remove(folder));
        }
    }
    match arguments.format {
        OutputFormat::Json => print_json(&listing_json(&folders, arguments.remove, &failures)),
        OutputFormat::Text => print(&listing_text(&folders, arguments.remove, &failures)),
    };
    for (folder, reason) in &failures {
        let message = format!("`{}` was not removed: {reason}", folder.display());
        print_to_stderr(&wrap_paragraphs(&message));
    }
    if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The folders that the arguments name, with their leftovers.
fn find_folders(arguments: &CleanArgs) -> Result<Vec<FolderLeftovers>, ExitCode> {
    let (mut results_path, mut pipeline_path) = (None, None);
    for path in &arguments.paths {
        let (place, what) = match path {
            path if path.is_dir() => (&mut results_path, "results folders"),
            path if path.is_file() => (&mut pipeline_path, "pipeline files"),
            path => {
                return Err(exit_with_error(&format!(
                    "there is no `{}`",
                    path.display()
                )));
            }
        };
        if place.replace(path.clone()).is_some() {
            return Err(exit_with_error(&format!("both paths are {what}; name one")));
        }
    }
    let given_plan = pipeline_path.as_deref().map(read_plan).transpose()?;
    let root = match (&results_path, &given_plan) {
        (Some(path), Some(plan)) if find_pipeline_results(&path.join(&plan.name)).is_empty() => {
            path.clone()
        }
        (Some(path), Some(plan)) => path.join(&plan.name),
        (Some(path), None) => path.clone(),
        (None, Some(plan)) => plan.settings.run.results.join(&plan.name),
        (None, None) => {
            environment_settings()
                .map_err(|invalid| report_invalid(&invalid, arguments.format))?
                .results
        }
    };
    let mut found = find_pipeline_results(&root);
    if given_plan.is_some() {
        found.retain(|results| results.folder == root);
    }
    if found.is_empty() {
        let message = format!("`{}` holds no results of a pipeline", root.display());
        return Err(exit_with_error(&message));
    }
    if let Some(path) = &pipeline_path
        && let Some(owner) = found.iter().find_map(|results| results.other_owner(path))
    {
        let (root, owner, path) = (root.display(), owner.display(), path.display());
        return Err(exit_with_error(&format!(
            "`{root}` has the results of `{owner}`, not those of `{path}`; nothing is removed"
        )));
    }
    let mut folders = Vec::new();
    for results in found {
        let is_named = results_path.as_ref() == Some(&results.folder);
        folders.push(match (&given_plan, &pipeline_path) {
            (Some(plan), Some(path)) => folder_leftovers(results, Some((path, plan)), true),
            _ => folder_leftovers_of_recorded(results, is_named)?,
        });
    }
    select(&mut folders, &arguments.only)?;
    Ok(folders)
}

/// The plan of a pipeline file alone, without files, folders and the device.
fn read_plan(pipeline: &Path) -> Result<Plan, ExitCode> {
    check(pipeline, &Overrides::default(), false)
        .map_err(|invalid| report_invalid(&invalid, OutputFormat::Text))
}

fn folder_leftovers_of_recorded(
    results: PipelineResults,
    is_named: bool,
) -> Result<FolderLeftovers, ExitCode> {
    let recorded = results.recorded_pipeline.clone();
    match recorded.filter(|path| path.is_file()) {
        Some(path) => {
            let plan = read_plan(&path)?;
            Ok(folder_leftovers(results, Some((&path, &plan)), true))
        }
        None => Ok(folder_leftovers(results, None, is_named)),
    }
}

/// Without a pipeline file no variant is named, so everything is left over: it is removed only if
/// the folder itself was named.
fn folder_leftovers(
    results: PipelineResults,
    pipeline: Option<(&PathBuf, &Plan)>,
    may_be_removed: bool,
) -> FolderLeftovers {
    let folder = results.folder.display();
    let kept_because = format!(
        "its pipeline file is not there; name the folder to remove them: runner clean --remove \
         {folder}"
    );
    FolderLeftovers {
        leftovers: find_leftovers(&results.folder, pipeline.map(|(_, plan)| plan)),
        pipeline: pipeline.map(|(path, _)| path.clone()),
        kept_because: (!may_be_removed).then_some(kept_because),
        folder: results.folder,
    }
}

/// Leaves the variants whose ids begin with one of the names.
fn select(folders: &mut [FolderLeftovers], only: &[String]) -> Result<(), ExitCode> {
    for name in only {
        let mut leftovers = folders.iter().flat_map(|folder| &folder.leftovers);
        if !leftovers.any(|leftover| leftover.variant.starts_with(name)) {
            let message = format!("no variant that can be removed is called `{name}`");
            return Err(exit_with_error(&message));
        }
    }
    for folder in folders.iter_mut().filter(|_| !only.is_empty()) {
        folder.leftovers.retain(|leftover| {
            let mut names = only.iter();
            names.any(|name| leftover.variant.starts_with(name))
        });
    }
    Ok(())
}

/// Removes the leftovers of a folder; returns what failed.
fn remove(folder: &FolderLeftovers) -> Vec<Failure> {
    if folder.kept_because.is_some() || folder.leftovers.is_empty() {
        return Vec::new();
    }
    match remove_variants(&folder.folder, &folder.leftovers) {
        Ok(failures) => failures
            .into_iter()
            .map(|(variant, reason)| (folder.folder.join(variant), reason))
            .collect(),
        Err(error) => vec![(folder.folder.clone(), error.to_string())],
    }
}

/// Every leftover with its results folder.
fn all_leftovers(
    folders: &[FolderLeftovers],
) -> impl Iterator<Item = (&FolderLeftovers, &Leftover)> {
    folders.iter().flat_map(|folder| {
        let leftovers = folder.leftovers.iter();
        leftovers.map(move |leftover| (folder, leftover))
    })
}

fn is_removed(folder: &FolderLeftovers, leftover: &Leftover, failures: &[Failure]) -> bool {
    let variant_folder = folder.folder.join(&leftover.variant);
    let has_failed = |(path, _): &Failure| *path == variant_folder || *path == folder.folder;
    folder.kept_because.is_none() && !failures.iter().any(has_failed)
}

fn listing_text(folders: &[FolderLeftovers], remove: bool, failures: &[Failure]) -> String {
    let mut text = String::new();
    for folder in folders.iter().filter(|folder| !folder.leftovers.is_empty()) {
        let pipeline = folder.pipeline.as_ref();
        let pipeline = pipeline.map_or_else(String::new, |path| format!(" ({})", path.display()));
        text.push_str(&format!("{}{pipeline}\n", folder.folder.display()));
        let names = folder
            .leftovers
            .iter()
            .map(|leftover| leftover.variant.len());
        let width = names.max().unwrap_or(0);
        for Leftover {
            variant,
            reason,
            bytes,
        } in &folder.leftovers
        {
            let size = HumanBytes(*bytes).to_string();
            text.push_str(&format!("  {variant:<width$}  {size:>10}  {reason}\n"));
        }
        if let Some(reason) = folder.kept_because.as_ref().filter(|_| remove) {
            text.push_str(&format!("  not removed: {reason}\n"));
        }
        text.push('\n');
    }
    let count = all_leftovers(folders).count();
    if count == 0 {
        return "nothing to remove: the pipelines name every result\n".to_owned();
    }
    let last_line = if remove {
        let removed = all_leftovers(folders)
            .filter(|(folder, leftover)| is_removed(folder, leftover, failures))
            .count();
        format!("{removed} of {count} removed\n")
    } else {
        let bytes = all_leftovers(folders)
            .map(|(_, leftover)| leftover.bytes)
            .sum();
        format!(
            "{}, {}; --remove removes them\n",
            format_count(count, "result"),
            HumanBytes(bytes)
        )
    };
    text + &last_line
}

fn listing_json(folders: &[FolderLeftovers], remove: bool, failures: &[Failure]) -> Value {
    let records = all_leftovers(folders).map(|(folder, leftover)| {
        json!({
            "results": folder.folder,
            "pipeline": folder.pipeline,
            "variant": leftover.variant,
            "reason": leftover.reason,
            "bytes": leftover.bytes,
            "removed": remove && is_removed(folder, leftover, failures),
        })
    });
    Value::Array(records.collect())
}
