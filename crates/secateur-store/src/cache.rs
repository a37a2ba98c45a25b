//! The cache of products. What a stage makes is stored under its key, a hash of everything that its
//! outcome depends on. Other variants of a sweep and later runs that need the same product read it
//! instead of making it again.
//!
//! ```text
//! <cache>/<key>/entry.json            the manifest: stage, options, cost, fingerprints of files
//! <cache>/<key>/tables/NAME.parquet   the rows that the stage measured
//! <cache>/<key>/written/…             other files that the stage writes: `hf/`, `plan.json`, …
//! <cache>/<key>/product, model/       the values for later stages, if computing them takes longer
//!                                     than reading them
//! <cache>/<key>.state                 the checkpoint of an interrupted stage
//! <cache>/.lock, .locks/<key>         locks, see `secateur_base::locks`
//! ```
//!
//! Several runs can use a cache folder at the same time. The protocol for one key:
//!
//! 1. [`ProductCache::wait_for_claim`] claims the key. Until the claim is dropped no other run
//!    makes, reads or removes this product.
//! 2. [`ProductCache::get`] verifies the product and returns it. A damaged one is removed.
//! 3. If there is none, the stage works in a [`ProductDraft`], a folder with a temporary name, and
//!    [`ProductCache::store`] moves the complete folder to its key in one step.
//! 4. The claim is held until every later stage has read what it needs from the product, then
//!    dropped.
//!
//! A killed run loses its claims with its process. What it leaves is either a complete product or a
//! folder with a temporary name, which the next run that is alone in the cache removes.
//!
//! | file | content |
//! |---|---|
//! | `layout` | names of files and folders |
//! | `manifest` | the manifest of a product |
//! | `draft` | a product that is being made |
//! | `stored_product` | a product that is stored |
//! | `listing` | what a cache folder contains |

mod draft;
mod layout;
mod listing;
mod manifest;
mod stored_product;

pub use draft::ProductDraft;
pub use layout::{CHECKPOINT_SUFFIX, KEY_HEX_DIGITS, MODEL_FOLDER, is_cache};
pub use listing::{ListedProduct, list_products};
pub use manifest::{ProductCost, ProductManifest, read_complete_manifest};
pub use stored_product::StoredProduct;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::tables::{Table, TableError};
use layout::{MANIFEST_FILE_NAME, TAG_FILE_CONTENT, TAG_FILE_NAME};
use secateur_base::files::{
    FileError, delete_folder, remove_folder, set_time_of_use, write_atomic_unsynced,
};
use secateur_base::locks::{Claim, LockSupport, SharedFolder};

/// Time between two attempts to claim a key that another run holds.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A folder of products that several runs may use at the same time.
#[derive(Debug)]
pub struct ProductCache {
    folder: SharedFolder,
    /// Above this many bytes [`ProductCache::trim`] removes products.
    limit_bytes: u64,
    /// The bytes of all products: those found when the cache was opened, and the changes by this
    /// run. Changes by other runs are counted when the cache is trimmed.
    stored_bytes: AtomicU64,
    /// Whether a warning has said that products above the limit cannot be removed.
    has_warned: AtomicBool,
}

/// What a removal of products did.
#[derive(Debug, Default)]
pub struct RemovalSummary {
    pub removed_count: usize,
    pub removed_bytes: u64,
    /// Products that would have been removed, but that another run is using.
    pub in_use_count: usize,
    /// Why products that should have been removed are still there; one error for each.
    pub failures: Vec<FileError>,
}

impl ProductCache {
    /// Opens a cache folder and creates it if needed.
    ///
    /// # Errors
    /// If the folder cannot be created, locked or tagged.
    pub fn open(folder: &Path, limit_bytes: u64) -> Result<Self, FileError> {
        let shared = SharedFolder::open(folder)?;
        if !is_cache(folder) {
            write_atomic_unsynced(&folder.join(TAG_FILE_NAME), TAG_FILE_CONTENT.as_bytes())?;
        }
        let stored_bytes: u64 = total_bytes(&list_products(folder));
        Ok(Self {
            folder: shared,
            limit_bytes,
            stored_bytes: stored_bytes.into(),
            has_warned: AtomicBool::new(false),
        })
    }

    pub fn lock_support(&self) -> LockSupport {
        self.folder.lock_support()
    }

    /// Why files that killed runs left in the cache are still there.
    pub fn leftover_failures(&self) -> &[FileError] {
        self.folder.leftover_failures()
    }

    fn product_path(&self, key: &str) -> PathBuf {
        self.folder.path().join(key)
    }

    /// The file in which a stage stores its progress, so that an interrupted run can resume it.
    pub fn checkpoint_path(&self, key: &str) -> PathBuf {
        self.folder.path().join(format!("{key}{CHECKPOINT_SUFFIX}"))
    }

    /// Claims `key`. Returns `None` if another run still holds the claim after `patience`.
    ///
    /// # Errors
    /// If the lock file cannot be created or locked.
    pub fn claim_within(&self, key: &str, patience: Duration) -> Result<Option<Claim>, FileError> {
        let begin = Instant::now();
        loop {
            let claim = self.folder.try_claim(key)?;
            if claim.is_some() || begin.elapsed() >= patience {
                return Ok(claim);
            }
            std::thread::sleep(POLL_INTERVAL.min(patience));
        }
    }

    /// Waits until no other run holds the claim on `key` and takes it. Returns `None` if `stop` is
    /// set meanwhile.
    ///
    /// # Errors
    /// If the lock file cannot be created or locked.
    pub fn wait_for_claim(&self, key: &str, stop: &AtomicBool) -> Result<Option<Claim>, FileError> {
        let mut has_waited = false;
        loop {
            if let Some(claim) = self.folder.try_claim(key)? {
                return Ok(Some(claim));
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            if !has_waited {
                tracing::debug!(key, "waiting for another run that uses this product");
            }
            has_waited = true;
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Returns the product of `key` after verifying all of its files but those of a model. Removes
    /// a damaged product, with a warning, and returns `None`. The caller holds the claim on `key`.
    pub fn get(&self, key: &str) -> Option<StoredProduct> {
        let folder = self.product_path(key);
        if !folder.exists() {
            return None;
        }
        let Some(manifest) = ProductManifest::read(&folder) else {
            self.remove_damaged(key, MANIFEST_FILE_NAME);
            return None;
        };
        let model_prefix = format!("{MODEL_FOLDER}/");
        let is_checked = |name: &str| !name.starts_with(&model_prefix);
        if let Some(file) = manifest.find_damaged_file(&folder, is_checked) {
            self.remove_damaged(key, &file);
            return None;
        }
        // A run that was killed between storing the product and removing the checkpoint left it.
        drop(fs::remove_file(self.checkpoint_path(key)));
        // The manifest's time is the time of the last use. If it cannot be set, the product only
        // looks older than it is and is trimmed earlier.
        drop(set_time_of_use(&folder.join(MANIFEST_FILE_NAME)));
        Some(StoredProduct { folder, manifest })
    }

    /// Removes a product and warns that `file` in it is damaged. The caller holds the claim on
    /// `key`.
    pub fn remove_damaged(&self, key: &str, file: &str) {
        tracing::warn!(key, file, "a kept product is damaged: it is made again");
        if let Err(error) = remove_folder(&self.product_path(key)) {
            tracing::warn!(key, "the damaged product cannot be removed: {error}");
        }
    }

    /// Creates a folder in which a stage makes its product.
    ///
    /// # Errors
    /// If the folder cannot be created.
    pub fn new_draft(&self) -> Result<ProductDraft, FileError> {
        ProductDraft::new(self.folder.path())
    }

    /// Completes a draft with the stage's tables and its manifest, whose `files` are filled in
    /// here, and moves it to `key`. A product that is there is replaced. The caller holds the claim
    /// on `key`.
    ///
    /// # Errors
    /// If a table cannot be encoded or a file cannot be written.
    pub fn store(
        &self,
        key: &str,
        draft: ProductDraft,
        manifest: ProductManifest,
        tables: &[Table],
    ) -> Result<StoredProduct, TableError> {
        let manifest = draft.complete(manifest, tables)?;
        let product_path = self.product_path(key);
        let checkpoint_path = self.checkpoint_path(key);
        let replaced_bytes = ProductManifest::read(&product_path)
            .map_or(0, |replaced_manifest| replaced_manifest.total_bytes());
        // A checkpoint can hold hours of work. It is removed only after the product that replaces
        // it is flushed to the disk. Without one, a product that a crash damages is made again.
        if checkpoint_path.exists() {
            draft.folder.replace(&product_path)?;
        } else {
            draft.folder.replace_unsynced(&product_path)?;
        }
        drop(fs::remove_file(checkpoint_path));
        self.stored_bytes
            .fetch_add(manifest.total_bytes(), Ordering::Relaxed);
        // The counter may be smaller than the replaced product, because `trim_to` resets it; an
        // unsigned counter must not wrap around.
        let subtracted = replaced_bytes.min(self.stored_bytes.load(Ordering::Relaxed));
        self.stored_bytes.fetch_sub(subtracted, Ordering::Relaxed);
        Ok(StoredProduct {
            folder: product_path,
            manifest,
        })
    }

    /// Lists every product and checkpoint, the least recently used first.
    pub fn list_products(&self) -> Vec<ListedProduct> {
        list_products(self.folder.path())
    }

    /// If the cache exceeds its limit, removes products, the least recently used first, until it
    /// does not.
    ///
    /// Warns once if that fails.
    pub fn trim(&self) {
        if self.stored_bytes.load(Ordering::Relaxed) <= self.limit_bytes {
            return;
        }
        let failures = self.trim_to(self.limit_bytes).failures;
        if let Some(first) = failures.first()
            && !self.has_warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                "the cache is above its limit, and {} of its products cannot be removed: {first}",
                failures.len()
            );
        }
    }

    /// As [`ProductCache::trim`], with another limit and without a warning. Products that another
    /// run has claimed are in use and stay.
    pub fn trim_to(&self, limit_bytes: u64) -> RemovalSummary {
        let products = self.list_products();
        let mut remaining_bytes = total_bytes(&products);
        let mut summary = RemovalSummary::default();
        for product in products {
            if remaining_bytes <= limit_bytes {
                break;
            }
            match self.delete(&product.key) {
                Ok(true) => {
                    tracing::debug!(
                        key = product.key,
                        stage = product.stage,
                        "removed a product to keep the cache below its limit"
                    );
                    remaining_bytes -= product.bytes;
                    summary.removed_count += 1;
                    summary.removed_bytes += product.bytes;
                }
                Ok(false) => summary.in_use_count += 1,
                Err(error) => summary.failures.push(error),
            }
        }
        self.stored_bytes.store(remaining_bytes, Ordering::Relaxed);
        summary
    }

    /// Removes a product or checkpoint. Returns false if another run is using it.
    fn delete(&self, key: &str) -> Result<bool, FileError> {
        match self.claim_listed(key)? {
            Some(_claim) => delete_folder(&self.product_path(key)).map(|()| true),
            None => Ok(false),
        }
    }

    /// Claims a product or checkpoint by the key in its listing.
    fn claim_listed(&self, key: &str) -> Result<Option<Claim>, FileError> {
        // A checkpoint is protected by the claim on its product's key.
        self.folder
            .try_claim(key.trim_end_matches(CHECKPOINT_SUFFIX))
    }

    /// Verifies every file of every product and removes damaged products. Those that another run is
    /// using are left to it.
    pub fn verify(&self) -> RemovalSummary {
        let mut summary = RemovalSummary::default();
        for product in self.list_products() {
            let claim = self.claim_listed(&product.key);
            if matches!(claim, Ok(None)) || !self.is_damaged(&product) {
                continue;
            }
            match claim.and_then(|_claim| delete_folder(&self.product_path(&product.key))) {
                Ok(()) => {
                    summary.removed_count += 1;
                    summary.removed_bytes += product.bytes;
                }
                Err(error) => summary.failures.push(error),
            }
        }
        summary
    }

    /// Whether a file of a product is not what was stored.
    fn is_damaged(&self, product: &ListedProduct) -> bool {
        let folder = self.product_path(&product.key);
        match ProductManifest::read(&folder) {
            Some(manifest) => manifest.find_damaged_file(&folder, |_| true).is_some(),
            // A checkpoint has no manifest; the stage that resumes from it verifies it.
            None => !product.key.ends_with(CHECKPOINT_SUFFIX),
        }
    }
}

fn total_bytes(products: &[ListedProduct]) -> u64 {
    products.iter().map(|product| product.bytes).sum()
}

#[cfg(test)]
mod tests;
