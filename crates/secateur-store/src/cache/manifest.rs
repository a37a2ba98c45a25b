//! The manifest of a product, `entry.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::layout::MANIFEST_FILE_NAME;
use secateur_base::files::Fingerprint;

/// The manifest of a product: where it comes from, and the fingerprint of each of its files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProductManifest {
    /// The type of the stage that made the product.
    pub stage: String,
    /// The stage's options.
    pub options: Map<String, Value>,
    /// Name and version of the program that made the product.
    pub program: String,
    pub cost: ProductCost,
    /// Every other file of the product, by its path relative to the product's folder, with `/`.
    pub files: BTreeMap<String, Fingerprint>,
}

/// The time and memory that making a product took.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ProductCost {
    pub wall_seconds: f64,
    /// The largest resident memory of the process while the stage ran, in bytes; `None` (null)
    /// where the system does not report it.
    pub peak_memory: Option<u64>,
}

impl ProductManifest {
    /// Reads the manifest in a product's folder. `None` if it is missing or damaged: both mean that
    /// there is no usable product.
    pub(crate) fn read(product_folder: &Path) -> Option<Self> {
        let content = fs::read(product_folder.join(MANIFEST_FILE_NAME)).ok()?;
        serde_json::from_slice(&content).ok()
    }

    /// The bytes of all files of the product, without the manifest.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }

    /// Returns the first file, among those that `is_checked` selects by name, whose content differs
    /// from its fingerprint.
    pub(crate) fn find_damaged_file(
        &self,
        product_folder: &Path,
        is_checked: impl Fn(&str) -> bool,
    ) -> Option<String> {
        self.files
            .iter()
            .filter(|(name, _)| is_checked(name))
            .find(|(name, fingerprint)| !fingerprint.matches_file(&product_folder.join(name)))
            .map(|(name, _)| name.clone())
    }
}

/// Reads the manifest of a product if all of its files exist with the right lengths. Hashes nothing
/// and takes no lock, so it is fast enough for showing a plan.
pub fn read_complete_manifest(cache_folder: &Path, key: &str) -> Option<ProductManifest> {
    let product_folder = cache_folder.join(key);
    let manifest = ProductManifest::read(&product_folder)?;
    let is_complete = manifest
        .files
        .iter()
        .all(|(name, fingerprint)| fingerprint.has_length(&product_folder.join(name)));
    is_complete.then_some(manifest)
}
