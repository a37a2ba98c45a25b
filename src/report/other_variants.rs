//! Rows of variants that a run did not visit: those that `--only` or `--shard` excludes, and those
//! of earlier runs, with other options on the command line or another state of the pipeline file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::shape::VariantDescription;
use super::variant_summary::VariantSummary;
use crate::plan::{Plan, earlier, keys};
use crate::results::{VariantManifest, VariantStatus, variant_folders};

/// The outcomes of the variants that `--only` or `--shard` excluded from a run, as their folders
/// record them. Warns where such a row was computed from another version of an input file;
/// `current_hashes` are those of the run.
pub(crate) fn unselected_summaries(
    plan: &Plan,
    results_folder: &Path,
    current_hashes: &BTreeMap<String, String>,
) -> Vec<VariantSummary> {
    let unselected = plan.unselected.iter();
    unselected
        .filter_map(|variant| {
            let mut summary = VariantSummary::from_folder(variant.into(), results_folder)?;
            let manifest = VariantManifest::read(&summary.tables_folder)?;
            if let Some(path) = changed_input(&manifest, current_hashes) {
                tracing::warn!(
                    variant = summary.description.id,
                    "this variant was run with another version of `{path}`; run it again"
                );
            }
            summary.is_current = is_up_to_date(&manifest, current_hashes);
            Some(summary)
        })
        .collect()
}

/// The complete results of earlier runs in the folder: of variants that are not in the plan. Each
/// variant is listed once, whatever names it had, and not at all if `present` has it.
///
/// Such a variant is current if the pipeline file, with the options that its row lists, still gives
/// it, and if the files that it read and the code of its stages are the same. A plan of the
/// `pipeline.toml` of one variant says nothing about the others.
pub(crate) fn earlier_summaries(
    plan: &Plan,
    results_folder: &Path,
    current_hashes: &BTreeMap<String, String>,
    present: &[VariantSummary],
) -> Vec<VariantSummary> {
    let is_present = |description: &VariantDescription| {
        let mut complete = present
            .iter()
            .filter(|summary| summary.status == VariantStatus::Succeeded);
        complete.any(|summary| summary.description.id_hash() == description.id_hash())
    };
    let is_given = |description: &VariantDescription| {
        plan.recorded_path.is_none()
            || earlier::gives_variant(
                &plan.pipeline_text,
                &description.swept,
                description.id_hash(),
            )
    };
    let mut summaries: Vec<VariantSummary> = variant_folders(results_folder)
        .into_iter()
        .filter_map(|folder| {
            let manifest = VariantManifest::read(&folder)?;
            let description = manifest.complete_description()?;
            if plan.variant_order.contains(&description.id) || is_present(description) {
                return None;
            }
            let is_current = is_up_to_date(&manifest, current_hashes) && is_given(description);
            Some(VariantSummary {
                is_current,
                ..VariantSummary::new(description.clone(), manifest.status, None, folder)
            })
        })
        .collect();
    summaries.sort_by_key(|summary| !summary.is_current);
    let mut hashes = BTreeSet::new();
    summaries.retain(|summary| hashes.insert(summary.description.id_hash().to_owned()));
    summaries
}

fn is_up_to_date(manifest: &VariantManifest, current_hashes: &BTreeMap<String, String>) -> bool {
    let mut stages = manifest.stages.iter();
    changed_input(manifest, current_hashes).is_none()
        && stages.all(|record| record.code == keys::code_version(&record.stage))
}

/// The first input file whose content has changed since the variant was run.
fn changed_input<'a>(
    manifest: &'a VariantManifest,
    current_hashes: &BTreeMap<String, String>,
) -> Option<&'a String> {
    let mut inputs = manifest.inputs.iter();
    inputs
        .find(|(path, hash)| current_hashes.get(*path).is_some_and(|now| now != *hash))
        .map(|(path, _)| path)
}
