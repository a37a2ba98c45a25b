//! The outcome of one variant, and the folder of its tables.

use std::path::{Path, PathBuf};

use super::shape::VariantDescription;
use crate::results::{self, VariantStatus};

/// The outcome of one variant; one row of `variants.parquet` is read from it.
#[derive(Clone, Debug)]
pub struct VariantSummary {
    pub description: VariantDescription,
    pub status: VariantStatus,
    /// Why the variant did not succeed.
    pub error: Option<String>,
    /// Whether the result is one of the present state of the pipeline file, with the options that
    /// its row lists, of its inputs, and of the program.
    pub is_current: bool,
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
            is_current: true,
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
            is_current: true,
            tables_folder,
        })
    }
}
