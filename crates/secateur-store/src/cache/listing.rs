//! What a cache folder contains, for `runner cache` and for trimming.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::{Map, Value};

use super::layout::{CHECKPOINT_SUFFIX, MANIFEST_FILE_NAME, is_key};
use super::manifest::ProductManifest;
use secateur_base::files::list_files;

/// A product, or the checkpoint of an interrupted stage, as a listing shows it.
#[derive(Clone, Debug, Serialize)]
pub struct ListedProduct {
    /// The product's key; of a checkpoint, its key and [`CHECKPOINT_SUFFIX`].
    pub key: String,
    /// The stage's type, `(interrupted)` for a checkpoint, or `(damaged)` without a readable
    /// manifest.
    pub stage: String,
    /// The stage's options; empty without a readable manifest.
    pub options: Map<String, Value>,
    pub bytes: u64,
    pub seconds_since_use: u64,
    /// The time that making the product took; 0 without a readable manifest.
    pub wall_seconds: f64,
}

/// Lists the products and checkpoints in a cache folder, the least recently used first.
///
/// Takes no lock: an entry that another run removes meanwhile is left out. A folder that cannot be
/// read counts as empty; [`super::ProductCache::open`] reports the error.
pub fn list_products(cache_folder: &Path) -> Vec<ListedProduct> {
    let now = SystemTime::now();
    let entries = fs::read_dir(cache_folder).into_iter().flatten().flatten();
    let mut aged_products: Vec<(Duration, ListedProduct)> = entries
        .filter_map(|entry| read_entry(&entry, now))
        .collect();
    // Sorted by the exact age, not by the whole seconds of `seconds_since_use`. Equal ages are
    // sorted by key, so that the order is defined.
    aged_products.sort_by(|(first_age, first), (second_age, second)| {
        second_age
            .cmp(first_age)
            .then_with(|| first.key.cmp(&second.key))
    });
    aged_products
        .into_iter()
        .map(|(_, product)| product)
        .collect()
}

/// Reads an entry of a cache folder, with the time since its last use. `None` for a lock, the cache
/// tag, a temporary folder, or an entry that is no longer there.
fn read_entry(entry: &fs::DirEntry, now: SystemTime) -> Option<(Duration, ListedProduct)> {
    let path = entry.path();
    let key = entry.file_name().into_string().ok()?;
    let stage_without_manifest = match key.strip_suffix(CHECKPOINT_SUFFIX) {
        Some(stage_key) if is_key(stage_key) => "(interrupted)",
        None if is_key(&key) => "(damaged)",
        _ => return None,
    };
    // Every use of a product sets the time of its manifest.
    let last_use = fs::metadata(path.join(MANIFEST_FILE_NAME))
        .or_else(|_| fs::metadata(&path))
        .and_then(|metadata| metadata.modified())
        .ok()?;
    let age = now.duration_since(last_use).unwrap_or_default();
    let manifest = ProductManifest::read(&path);
    let bytes = match &manifest {
        Some(manifest) => manifest.total_bytes(),
        None => disk_bytes(&path),
    };
    let (stage, options, wall_seconds) = match manifest {
        Some(manifest) => (manifest.stage, manifest.options, manifest.cost.wall_seconds),
        None => (stage_without_manifest.to_owned(), Map::new(), 0.0),
    };
    let product = ListedProduct {
        key,
        stage,
        options,
        bytes,
        seconds_since_use: age.as_secs(),
        wall_seconds,
    };
    Some((age, product))
}

/// The bytes of a file, or of all files in a folder and its subfolders.
fn disk_bytes(path: &Path) -> u64 {
    // For a file `list_files` fails, and the file itself is counted. Folders are filtered out
    // below.
    let inner_files = list_files(path).unwrap_or_default();
    let paths = inner_files
        .iter()
        .map(|file| path.join(file))
        .chain([path.to_owned()]);
    paths
        .filter_map(|path| fs::metadata(path).ok())
        .filter(fs::Metadata::is_file)
        .map(|metadata| metadata.len())
        .sum()
}
