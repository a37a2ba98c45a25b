//! Products on disk. What a stage made lies in a folder named by its key, the hash of all that its outcome depends on
//! (`recipe.rs`), so that nothing is made twice. Every file is checked against its hash when it is used.
//!
//! ```text
//! <cache>/<key>/entry.json            what it is, how long it took, and the hash of every other file
//! <cache>/<key>/tables/NAME.parquet   what was measured
//! <cache>/<key>/written/…             what the stage leaves beside the tables: `hf/`, `adapter/`, `plan.json`
//! <cache>/<key>/product, model/       what it hands on, where that is not made faster from the rest
//! <cache>/<key>.state                 how far an interrupted stage came
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::tables::{Table, TableError};
use secateur_base::files::{self, FileError, Fingerprint, PartialFolder};
use secateur_base::locks::{Claim, SharedFolder};

/// Between two looks at a key that another run has claimed.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Hexadecimal digits of a product's key.
pub const KEY_HEX_DIGITS: usize = 32;

/// The file that tells programs, backups among them, what the folder is (bford.info/cachedir).
const TAG_FILE_NAME: &str = "CACHEDIR.TAG";
const TAG_FILE_CONTENT: &str =
    "Signature: 8a477f597d28d172789f06886806bc55\n# Products kept by secateur's runner.\n";

/// Whether a folder holds kept products.
pub fn is_cache(folder: &Path) -> bool {
    fs::read_to_string(folder.join(TAG_FILE_NAME)).is_ok_and(|text| text == TAG_FILE_CONTENT)
}

/// A folder of kept products. Several runs may use it at once.
#[derive(Debug)]
pub struct ProductCache {
    folder: SharedFolder,
    /// The most that it may hold, in bytes.
    limit_bytes: u64,
    /// What it holds, as far as this run knows.
    stored_bytes: AtomicU64,
}

/// What a kept product says of itself: `entry.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProductManifest {
    /// The stage's type.
    pub stage: String,
    /// The options that it had.
    pub options: Map<String, Value>,
    /// The program that made it.
    pub program: String,
    pub cost: ProductCost,
    /// Every other file, relative to the entry's folder.
    pub files: BTreeMap<String, Fingerprint>,
}

/// What making a product took.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ProductCost {
    pub wall_seconds: f64,
    /// The process's largest memory meanwhile, in bytes; null where the system does not say.
    pub peak_memory: Option<u64>,
}

/// Ends the name of the file that says how far an interrupted stage came.
pub const CHECKPOINT_SUFFIX: &str = ".state";

/// A kept product that was looked at and is whole; a model in it is looked at when it is asked for.
#[derive(Debug)]
pub struct StoredProduct {
    folder: PathBuf,
    pub manifest: ProductManifest,
}

/// A product on disk, as a listing shows it.
#[derive(Clone, Debug, Serialize)]
pub struct ListedProduct {
    pub key: String,
    pub stage: String,
    pub options: Map<String, Value>,
    pub bytes: u64,
    pub seconds_since_use: u64,
    pub wall_seconds: f64,
}

impl ProductManifest {
    fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join("entry.json")).ok()?).ok()
    }

    pub fn total_bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }
}

impl ProductCache {
    /// Opens the folder, which is made if need be.
    pub fn open(folder: &Path, limit: u64) -> Result<Self, FileError> {
        let shared = SharedFolder::open(folder)?;
        if !is_cache(folder) {
            files::write_atomic_unsynced(&folder.join(TAG_FILE_NAME), TAG_FILE_CONTENT.as_bytes())?;
        }
        let held = list_products(folder)
            .iter()
            .map(|listed| listed.bytes)
            .sum::<u64>()
            .into();
        Ok(Self {
            folder: shared,
            limit_bytes: limit,
            stored_bytes: held,
        })
    }

    fn product_path(&self, key: &str) -> PathBuf {
        self.folder.path().join(key)
    }

    /// Where a stage keeps how far it is.
    pub fn checkpoint_path(&self, key: &str) -> PathBuf {
        self.folder.path().join(format!("{key}{CHECKPOINT_SUFFIX}"))
    }

    /// Waits until no other run makes or reads this product; None if the run is to stop meanwhile.
    pub fn wait_for_claim(&self, key: &str, stop: &AtomicBool) -> Result<Option<Claim>, FileError> {
        let mut waited = false;
        loop {
            if let Some(claim) = self.folder.try_claim(key)? {
                return Ok(Some(claim));
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            if !waited {
                tracing::debug!(key, "another run is at work on this product");
            }
            waited = true;
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// The product of a key, all its files but a model's checked. One that is not whole is removed, with a warning.
    pub fn get(&self, key: &str) -> Option<StoredProduct> {
        let folder = self.product_path(key);
        if !folder.exists() {
            return None;
        }
        let entry = ProductManifest::read(&folder);
        let damaged = match &entry {
            Some(entry) => find_damaged_file(&folder, entry, |name| !name.starts_with("model/")),
            None => Some("entry.json".to_owned()),
        };
        if let Some(file) = damaged {
            self.remove_damaged(key, &file);
            return None;
        }
        // What a run left that was killed between keeping the product and this.
        drop(fs::remove_file(self.checkpoint_path(key)));
        // A use; that it cannot be noted only lets the product look older.
        drop(
            fs::File::open(folder.join("entry.json"))
                .and_then(|file| file.set_modified(SystemTime::now())),
        );
        Some(StoredProduct {
            folder,
            manifest: entry?,
        })
    }

    /// Removes a product of which a file is not what was written.
    pub fn remove_damaged(&self, key: &str, file: &str) {
        tracing::warn!(key, file, "a kept product is damaged: it is made again");
        if let Err(error) = files::remove_folder(&self.product_path(key)) {
            tracing::warn!("it cannot be removed: {error}");
        }
    }

    /// A folder for a stage to work in.
    pub fn new_draft(&self) -> Result<ProductDraft, FileError> {
        let folder = PartialFolder::new(self.folder.path())?;
        for inside in ["written", "tables"] {
            files::create_folder(&folder.path().join(inside))?;
        }
        Ok(ProductDraft { folder })
    }

    /// Keeps what a stage made under its key, in place of what was there.
    pub fn store(
        &self,
        key: &str,
        room: ProductDraft,
        mut entry: ProductManifest,
        tables: &[Table],
    ) -> Result<StoredProduct, TableError> {
        let folder = room.folder.path();
        for table in tables {
            table.save(&folder.join(format!("tables/{}.parquet", table.name)))?;
        }
        let failed = |source| FileError {
            path: folder.to_owned(),
            source,
        };
        for file in files::list_files(folder).map_err(failed)? {
            let fingerprint = Fingerprint::from_file(&folder.join(&file)).map_err(failed)?;
            entry
                .files
                .insert(file.to_string_lossy().replace('\\', "/"), fingerprint);
        }
        let text = serde_json::to_vec_pretty(&entry).map_err(|e| failed(e.into()))?;
        files::write_atomic_unsynced(&folder.join("entry.json"), &text)?;
        let (target, state) = (self.product_path(key), self.checkpoint_path(key));
        let before = ProductManifest::read(&target).map_or(0, |entry| entry.total_bytes());
        // Hours of work may lie in a state; it goes only when what came of it is on the disk.
        if state.exists() {
            room.folder.replace(&target)?
        } else {
            room.folder.replace_unsynced(&target)?
        }
        drop(fs::remove_file(state));
        self.stored_bytes
            .fetch_add(entry.total_bytes(), Ordering::Relaxed);
        self.stored_bytes.fetch_sub(
            before.min(self.stored_bytes.load(Ordering::Relaxed)),
            Ordering::Relaxed,
        );
        Ok(StoredProduct {
            folder: target,
            manifest: entry,
        })
    }

    /// Every product, the least recently used first.
    pub fn list_products(&self) -> Vec<ListedProduct> {
        list_products(self.folder.path())
    }

    /// Removes products until all that are left fit into the limit, the least recently used first.
    pub fn trim(&self) {
        if self.stored_bytes.load(Ordering::Relaxed) > self.limit_bytes {
            self.trim_to(self.limit_bytes);
        }
    }

    /// As [`Cache::trim`], with another limit. Returns how many were removed, and their bytes.
    pub fn trim_to(&self, limit: u64) -> (usize, u64) {
        let all = self.list_products();
        let (mut total, mut removed) = (all.iter().map(|listed| listed.bytes).sum::<u64>(), (0, 0));
        for listed in all {
            if total <= limit {
                break;
            }
            // What another run has claimed is in use.
            let Ok(Some(_claim)) = self
                .folder
                .try_claim(listed.key.trim_end_matches(CHECKPOINT_SUFFIX))
            else {
                continue;
            };
            if files::remove_folder(&self.product_path(&listed.key)).is_ok() {
                tracing::debug!(
                    key = listed.key,
                    stage = listed.stage,
                    "a kept product makes room"
                );
                total -= listed.bytes;
                removed = (removed.0 + 1, removed.1 + listed.bytes);
            }
        }
        self.stored_bytes.store(total, Ordering::Relaxed);
        removed
    }

    /// Checks every file of every product against its hash, and removes what is damaged. Returns how many were.
    pub fn verify(&self) -> usize {
        let is_damaged = |listed: &ListedProduct| {
            // What another run has claimed is looked at by that run.
            let Ok(Some(_claim)) = self.folder.try_claim(&listed.key) else {
                return false;
            };
            let folder = self.product_path(&listed.key);
            let found = match ProductManifest::read(&folder) {
                Some(entry) => find_damaged_file(&folder, &entry, |_| true),
                None => (!listed.key.ends_with(CHECKPOINT_SUFFIX)).then(|| "entry.json".to_owned()),
            };
            found
                .map(|file| self.remove_damaged(&listed.key, &file))
                .is_some()
        };
        self.list_products()
            .iter()
            .filter(|listed| is_damaged(listed))
            .count()
    }
}

/// A place where a stage makes its product.
#[derive(Debug)]
pub struct ProductDraft {
    folder: PartialFolder,
}

impl ProductDraft {
    /// Where the stage leaves what appears beside the tables.
    pub fn written_folder(&self) -> PathBuf {
        self.folder.path().join("written")
    }

    /// The room itself.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl StoredProduct {
    pub fn tables(&self) -> Result<Vec<Table>, TableError> {
        let names = self
            .manifest
            .files
            .keys()
            .filter_map(|file| file.strip_prefix("tables/")?.strip_suffix(".parquet"));
        names
            .map(|name| Table::read(name, &self.folder.join(format!("tables/{name}.parquet"))))
            .collect()
    }

    /// What the stage wrote beside the tables.
    pub fn written_folder(&self) -> PathBuf {
        self.folder.join("written")
    }

    /// The files of [`Kept::written`].
    pub fn written_files(&self) -> BTreeMap<String, Fingerprint> {
        let written = |(name, file): (&String, &Fingerprint)| {
            Some((name.strip_prefix("written/")?.to_owned(), file.clone()))
        };
        self.manifest.files.iter().filter_map(written).collect()
    }

    /// A file of the product; those that are not a model's were checked when it was taken.
    pub fn file_path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A folder of the product whose files are what was written; else the name of one that is not.
    pub fn verified_folder(&self, name: &str) -> Result<PathBuf, String> {
        let inside = format!("{name}/");
        find_damaged_file(&self.folder, &self.manifest, |file| {
            file.starts_with(&inside)
        })
        .map_or_else(|| Ok(self.folder.join(name)), Err)
    }
}

/// The first of these files of a product that is not what was written.
fn find_damaged_file(
    folder: &Path,
    entry: &ProductManifest,
    of: impl Fn(&str) -> bool,
) -> Option<String> {
    entry
        .files
        .iter()
        .find(|(name, file)| of(name) && !file.matches_file(&folder.join(name)))
        .map(|(name, _)| name.clone())
}

/// Whether a product is there and its files have their lengths: a quick look, into a folder that is not opened.
pub fn read_complete_manifest(folder: &Path, key: &str) -> Option<ProductManifest> {
    let folder = folder.join(key);
    let entry = ProductManifest::read(&folder)?;
    entry
        .files
        .iter()
        .all(|(name, file)| file.has_length(&folder.join(name)))
        .then_some(entry)
}

/// As [`Cache::list`], in a folder that is not opened.
pub fn list_products(folder: &Path) -> Vec<ListedProduct> {
    let now = SystemTime::now();
    let listed = |entry: fs::DirEntry| {
        let (path, key) = (entry.path(), entry.file_name().into_string().ok()?);
        let is_key = |name: &str| {
            name.len() == KEY_HEX_DIGITS && name.bytes().all(|b| b.is_ascii_hexdigit())
        };
        let kind = match key.strip_suffix(CHECKPOINT_SUFFIX) {
            Some(stage) if is_key(stage) => Some("(interrupted)"),
            None if is_key(&key) => None,
            _ => return None,
        };
        let found = ProductManifest::read(&path);
        let bytes = found
            .as_ref()
            .map_or_else(|| disk_bytes(&path), ProductManifest::total_bytes);
        let used = fs::metadata(path.join("entry.json"))
            .or_else(|_| fs::metadata(&path))
            .ok()?
            .modified()
            .ok()?;
        let since = now.duration_since(used).unwrap_or_default();
        let (stage, options, wall_seconds) = match found {
            Some(found) => (found.stage, found.options, found.cost.wall_seconds),
            None => (kind.unwrap_or("(damaged)").to_owned(), Map::new(), 0.0),
        };
        Some((
            since,
            ListedProduct {
                key,
                stage,
                options,
                bytes,
                seconds_since_use: since.as_secs(),
                wall_seconds,
            },
        ))
    };
    let mut all: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(listed)
        .collect();
    all.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.key.cmp(&b.1.key)));
    all.into_iter().map(|(_, listed)| listed).collect()
}

/// The bytes of a file, or of all files in a folder.
fn disk_bytes(path: &Path) -> u64 {
    let files = files::list_files(path).unwrap_or_default();
    let all = files
        .iter()
        .map(|file| path.join(file))
        .chain([path.to_owned()]);
    all.filter_map(|path| fs::metadata(path).ok())
        .filter(fs::Metadata::is_file)
        .map(|found| found.len())
        .sum()
}
