//! Where tests find what lies outside the repository, and how they say that it is not there.

use std::path::PathBuf;
use std::sync::Arc;

use secateur::progress::Progress;
use secateur::random::Seed;
use secateur::stages::Context;

/// A file or folder of the shared reference material: beside the project, or where `SECATEUR_SHARED` says.
pub fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("SECATEUR_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared")), PathBuf::from);
    let found = root.join(path);
    if found.exists() {
        return Some(found);
    }
    eprintln!("SKIPPED: `{}` is not there; set SECATEUR_SHARED to the folder that holds `{path}`", found.display());
    None
}

/// The surroundings of a stage that is called alone.
pub fn context() -> Context {
    Context {
        seed: Seed::root(42),
        data: shared("data"),
        folder: std::env::temp_dir(),
        progress: Progress::default(),
        stop: Arc::default(),
    }
}

/// A JSON file.
pub fn json(path: &std::path::Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A JSON array of numbers.
pub fn numbers<T: serde::de::DeserializeOwned>(value: &serde_json::Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}
