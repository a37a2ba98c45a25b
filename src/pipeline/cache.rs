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

use super::stage::told;
use crate::files::{self, FileError, Fingerprint, PartialFolder};
use crate::locks::{Claim, SharedFolder};
use crate::metrics::{MetricsError, Table};
use crate::progress::clock;

/// Between two looks at a key that another run has claimed.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// A folder of kept products. Several runs may use it at once.
#[derive(Debug)]
pub struct Cache {
    folder: SharedFolder,
    /// The most that it may hold, in bytes.
    limit: u64,
    /// What it holds, as far as this run knows.
    held: AtomicU64,
}

/// What a kept product says of itself: `entry.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The stage's type.
    pub stage: String,
    /// The options that it had.
    pub options: Map<String, Value>,
    /// The program that made it.
    pub program: String,
    pub cost: Cost,
    /// Every other file, relative to the entry's folder.
    pub files: BTreeMap<String, Fingerprint>,
}

/// What making a product took.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Cost {
    pub wall_seconds: f64,
    /// The process's largest memory meanwhile, in bytes; null where the system does not say.
    pub peak_memory: Option<u64>,
}

/// A kept product whose tables and written files were looked at and are whole.
#[derive(Debug)]
pub struct Kept {
    folder: PathBuf,
    pub entry: Entry,
}

/// A product on disk, as a listing shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    pub key: String,
    pub stage: String,
    pub options: Map<String, Value>,
    pub bytes: u64,
    pub seconds_since_use: u64,
    pub wall_seconds: f64,
}

impl Entry {
    fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join("entry.json")).ok()?).ok()
    }

    pub fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }
}

impl Cache {
    /// Opens the folder, which is made if need be.
    pub fn open(folder: &Path, limit: u64) -> Result<Self, FileError> {
        let shared = SharedFolder::enter(folder)?;
        let held = list(folder).iter().map(|listed| listed.bytes).sum::<u64>().into();
        Ok(Self { folder: shared, limit, held })
    }

    fn place(&self, key: &str) -> PathBuf {
        self.folder.path().join(key)
    }

    /// Where a stage keeps how far it is.
    pub fn state(&self, key: &str) -> PathBuf {
        self.folder.path().join(format!("{key}.state"))
    }

    /// Waits until no other run makes or reads this product; None if the run is to stop meanwhile.
    pub fn claim(&self, key: &str, stop: &AtomicBool) -> Result<Option<Claim>, FileError> {
        let mut waited = false;
        loop {
            if let Some(claim) = self.folder.claim(key)? {
                return Ok(Some(claim));
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            if !waited {
                tracing::debug!(key, "another run is at work on this product");
            }
            waited = true;
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// The product of a key, its tables and written files checked. One that is not whole is removed, with a warning.
    pub fn take(&self, key: &str) -> Option<Kept> {
        let folder = self.place(key);
        if !folder.exists() {
            return None;
        }
        let entry = Entry::read(&folder);
        let damaged = match &entry {
            Some(entry) => damage(&folder, entry, |name| !name.starts_with("product") && !name.starts_with("model/")),
            None => Some("entry.json".to_owned()),
        };
        if let Some(file) = damaged {
            self.discard(key, &file);
            return None;
        }
        // A use; that it cannot be noted only lets the product look older.
        drop(fs::File::open(folder.join("entry.json")).and_then(|file| file.set_modified(SystemTime::now())));
        Some(Kept { folder, entry: entry? })
    }

    /// Removes a product of which a file is not what was written.
    pub fn discard(&self, key: &str, file: &str) {
        tracing::warn!(key, file, "a kept product is damaged: it is made again");
        if let Err(error) = files::remove(&self.place(key)) {
            tracing::warn!("it cannot be removed: {error}");
        }
    }

    /// A folder for a stage to work in.
    pub fn room(&self) -> Result<Room, FileError> {
        let folder = PartialFolder::new(self.folder.path())?;
        for inside in ["written", "tables"] {
            files::make_folder(&folder.path().join(inside))?;
        }
        Ok(Room { folder })
    }

    /// Keeps what a stage made under its key, in place of what was there.
    pub fn keep(&self, key: &str, room: Room, mut entry: Entry, tables: &[Table]) -> Result<Kept, MetricsError> {
        let folder = room.folder.path();
        for table in tables {
            table.save(&folder.join(format!("tables/{}.parquet", table.name)))?;
        }
        let failed = |source| FileError { path: folder.to_owned(), source };
        for file in files::files_in(folder).map_err(failed)? {
            let fingerprint = Fingerprint::of(&folder.join(&file)).map_err(failed)?;
            entry.files.insert(file.to_string_lossy().replace('\\', "/"), fingerprint);
        }
        let text = serde_json::to_vec_pretty(&entry).map_err(|e| failed(e.into()))?;
        files::write_quickly(&folder.join("entry.json"), &text)?;
        let target = self.place(key);
        room.folder.replace_quickly(&target)?;
        self.held.fetch_add(entry.bytes(), Ordering::Relaxed);
        drop(fs::remove_file(self.state(key)));
        Ok(Kept { folder: target, entry })
    }

    /// Whether a product is there and its files have their lengths; a quick look.
    pub fn find(&self, key: &str) -> Option<Entry> {
        look(self.folder.path(), key)
    }

    /// Every product, the least recently used first.
    pub fn list(&self) -> Vec<Listed> {
        list(self.folder.path())
    }

    /// Removes products until all that are left fit into the limit, the least recently used first.
    pub fn trim(&self) {
        if self.held.load(Ordering::Relaxed) > self.limit {
            self.trim_to(self.limit);
        }
    }

    /// As [`Cache::trim`], with another limit. Returns how many were removed, and their bytes.
    pub fn trim_to(&self, limit: u64) -> (usize, u64) {
        let all = self.list();
        let (mut total, mut removed) = (all.iter().map(|listed| listed.bytes).sum::<u64>(), (0, 0));
        for listed in all {
            if total <= limit {
                break;
            }
            // What another run has claimed is in use.
            let Ok(Some(_claim)) = self.folder.claim(&listed.key) else { continue };
            if files::remove(&self.place(&listed.key)).is_ok() {
                tracing::debug!(key = listed.key, stage = listed.stage, "a kept product makes room");
                total -= listed.bytes;
                removed = (removed.0 + 1, removed.1 + listed.bytes);
            }
        }
        self.held.store(total, Ordering::Relaxed);
        removed
    }

    /// Removes what interrupted stages left.
    pub fn remove_states(&self) {
        let entries = fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        let states = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "state"));
        states.for_each(|state| drop(fs::remove_file(state)));
    }

    /// Checks every file of every product against its hash, and removes what is damaged. Returns how many were.
    pub fn verify(&self) -> usize {
        let is_damaged = |listed: &Listed| {
            let folder = self.place(&listed.key);
            let found = Entry::read(&folder).and_then(|entry| damage(&folder, &entry, |_| true));
            found.map(|file| self.discard(&listed.key, &file)).is_some()
        };
        self.list().iter().filter(|listed| is_damaged(listed)).count()
    }
}

/// A place where a stage makes its product.
#[derive(Debug)]
pub struct Room {
    folder: PartialFolder,
}

impl Room {
    /// Where the stage leaves what appears beside the tables.
    pub fn written(&self) -> PathBuf {
        self.folder.path().join("written")
    }

    /// The room itself.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Kept {
    pub fn tables(&self) -> Result<Vec<Table>, MetricsError> {
        let names = self.entry.files.keys().filter_map(|file| file.strip_prefix("tables/")?.strip_suffix(".parquet"));
        names.map(|name| Table::read(name, &self.folder.join(format!("tables/{name}.parquet")))).collect()
    }

    /// What the stage wrote beside the tables.
    pub fn written(&self) -> PathBuf {
        self.folder.join("written")
    }

    /// The files of [`Kept::written`].
    pub fn written_files(&self) -> BTreeMap<String, Fingerprint> {
        let written = |(name, file): (&String, &Fingerprint)| Some((name.strip_prefix("written/")?.to_owned(), file.clone()));
        self.entry.files.iter().filter_map(written).collect()
    }

    /// A file of the product that is what was written; else its name.
    pub fn file(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.folder.join(name);
        let whole = self.entry.files.get(name).is_some_and(|file| file.matches(&path));
        if whole { Ok(path) } else { Err(name.to_owned()) }
    }

    /// A folder of the product whose files are what was written; else the name of one that is not.
    pub fn folder(&self, name: &str) -> Result<PathBuf, String> {
        let inside = format!("{name}/");
        damage(&self.folder, &self.entry, |file| file.starts_with(&inside)).map_or_else(|| Ok(self.folder.join(name)), Err)
    }
}

/// A listing as a person reads it.
pub fn text(listed: &[Listed]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for Listed { key, stage, options, bytes, seconds_since_use, wall_seconds } in listed {
        let used = indicatif::HumanDuration(Duration::from_secs(*seconds_since_use));
        let (size, took) = (indicatif::HumanBytes(*bytes).to_string(), clock(*wall_seconds));
        lines.push(format!("{}  {size:>12}  took {took}  used {used:#} ago  {stage}{}", &key[..8], told(options)));
    }
    let total = indicatif::HumanBytes(listed.iter().map(|listed| listed.bytes).sum());
    let number = if listed.len() == 1 { "1 product".to_owned() } else { format!("{} products", listed.len()) };
    lines.push(format!("{number}, {total}"));
    lines.join("\n") + "\n"
}

/// The first of these files of a product that is not what was written.
fn damage(folder: &Path, entry: &Entry, of: impl Fn(&str) -> bool) -> Option<String> {
    entry.files.iter().find(|(name, file)| of(name) && !file.matches(&folder.join(name))).map(|(name, _)| name.clone())
}

/// As [`Cache::find`], in a folder that is not opened.
pub fn look(folder: &Path, key: &str) -> Option<Entry> {
    let folder = folder.join(key);
    let entry = Entry::read(&folder)?;
    entry.files.iter().all(|(name, file)| file.has_length(&folder.join(name))).then_some(entry)
}

/// As [`Cache::list`], in a folder that is not opened.
pub fn list(folder: &Path) -> Vec<Listed> {
    let now = SystemTime::now();
    let listed = |entry: fs::DirEntry| {
        let used = fs::metadata(entry.path().join("entry.json")).ok()?.modified().ok()?;
        let found = Entry::read(&entry.path())?;
        let bytes = found.bytes();
        let Entry { stage, options, cost, .. } = found;
        let key = entry.file_name().into_string().ok().filter(|key| !key.starts_with('.'))?;
        let seconds_since_use = now.duration_since(used).unwrap_or_default();
        Some((
            seconds_since_use,
            Listed {
                key,
                stage,
                options,
                bytes,
                seconds_since_use: seconds_since_use.as_secs(),
                wall_seconds: cost.wall_seconds,
            },
        ))
    };
    let mut all: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().filter_map(listed).collect();
    all.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.key.cmp(&b.1.key)));
    all.into_iter().map(|(_, listed)| listed).collect()
}
