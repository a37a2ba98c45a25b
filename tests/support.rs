//! Where tests find what lies outside the repository, and how they say that it is not there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use secateur::model::Model;
use secateur::model::walk::{self, Sequence};
use secateur::progress::Progress;
use secateur::random::Seed;
use secateur::stages::Context;
use secateur::tensor::for_each_sequence;

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
pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A JSON array of numbers.
pub fn numbers<T: serde::de::DeserializeOwned>(value: &serde_json::Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Copies the files of a folder, so that they can be changed.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::write(to.join(entry.file_name()), std::fs::read(entry.path()).unwrap()).unwrap();
    }
}

/// The perplexity of a stream of ids in windows of 128, as LLM-Pruner measures it.
pub fn stream_perplexity(model: &Model, ids: &[u32]) -> f64 {
    let windows: Vec<Sequence> = ids.chunks_exact(128).map(|ids| Sequence::new(ids.to_vec(), &[true; 128])).collect();
    let log_probabilities = for_each_sequence(&windows, |_, window| {
        walk::token_scores(model, &window.ids, &window.targets).iter().map(|s| s.log_probability).sum::<f64>()
    });
    (-log_probabilities.iter().sum::<f64>() / (windows.len() * 127) as f64).exp()
}
