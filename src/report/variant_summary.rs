//! The outcome of one variant, and the folder of its tables.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::shape::VariantDescription;
use crate::plan::Plan;
use crate::results::{self, VariantManifest, VariantStatus};

/// The outcome of one variant; one row of `variants.parquet` is read from it.
#[derive(Clone, Debug)]
pub struct VariantSummary {
    pub description: VariantDescription,
    pub status: VariantStatus,
    /// Why the variant did not succeed.
    pub error: Option<String>,
    /// The folder of the variant's tables.
    pub(crate) tables_folder: PathBuf,
}

impl VariantSummary {
    pub fn new(
        description: VariantDescription,
        status: VariantStatus,
        error: Option<String>,
        tables_folder: PathBuf,
    ) -> Self {
        Self {
            description,
            status,
            error,
            tables_folder,
        }
    }

    /// Reads the outcome from the variant's folder inside the pipeline's results folder; `None` if
    /// the variant has no folder or no manifest there.
    pub(crate) fn from_folder(
        description: VariantDescription,
        results_folder: &Path,
    ) -> Option<Self> {
        let variant_folder = results_folder.join(&description.id);
        let (tables_folder, manifest) = results::read_last_manifest(&variant_folder)?;
        Some(Self {
            description,
            status: manifest.status,
            error: manifest.error,
            tables_folder,
        })
    }

    /// The first input file whose content has changed since the variant was run.
    fn changed_input(&self, current_hashes: &BTreeMap<String, String>) -> Option<String> {
        let manifest = VariantManifest::read(&self.tables_folder)?;
        manifest
            .inputs
            .into_iter()
            .find(|(path, hash)| current_hashes.get(path).is_some_and(|now| now != hash))
            .map(|(path, _)| path)
    }
}

/// The outcomes of the variants that `--only` or `--shard` excluded from a run, as their folders
/// record them. Warns where such a row was computed from another version of an input file;
/// `current_hashes` are those of the run.
pub(crate) fn unselected_summaries(
    plan: &Plan,
    results_folder: &Path,
    current_hashes: &BTreeMap<String, String>,
) -> Vec<VariantSummary> {
    let summaries: Vec<VariantSummary> = plan
        .unselected
        .iter()
        .filter_map(|variant| VariantSummary::from_folder(variant.into(), results_folder))
        .collect();
    for summary in &summaries {
        if let Some(path) = summary.changed_input(current_hashes) {
            tracing::warn!(
                variant = summary.description.id,
                "this variant was run with another version of `{path}`; run it again"
            );
        }
    }
    summaries
}
