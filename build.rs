//! Gives each stage the version of its code: a hash of all source files that its outcome depends on, of the locked
//! dependencies, and of the compiler. A product that was kept by other code is not taken for the same.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What every stage's outcome depends on, besides its own file and folder.
const SHARED: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "src/stages/train",
    "crates/secateur-data/src",
    "crates/secateur-store/src/tables.rs",
    "crates/secateur-model/src",
    "crates/secateur-tensor/src",
    "crates/secateur-base/src/random.rs",
    "src/run/panics.rs",
    "src/run/node.rs",
    "src/stages/context.rs",
    "src/stages/mod.rs",
    "src/stages/products.rs",
    "src/stages/stage.rs",
    "src/stages/stored.rs",
    "src/stages/values.rs",
];

fn main() {
    println!("cargo::rerun-if-changed=Cargo.lock");
    println!("cargo::rerun-if-changed=Cargo.toml");
    println!("cargo::rerun-if-changed=src");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let compiler = Command::new(rustc)
        .arg("-V")
        .output()
        .map(|output| output.stdout)
        .unwrap_or_default();
    let shared: BTreeMap<PathBuf, Vec<u8>> = SHARED
        .iter()
        .flat_map(|path| content(Path::new(path)))
        .collect();
    let stages = fs::read_dir("src/stages")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let mut stages: Vec<PathBuf> = stages
        .filter(|path| path.extension().is_some_and(|ending| ending == "rs"))
        .collect();
    stages.sort();
    let versions = stages.iter().map(|file| {
        let mut all = shared.clone();
        all.extend(content(file));
        all.extend(content(&file.with_extension("")));
        let mut hasher = DefaultHasher::new();
        (&all, &compiler).hash(&mut hasher);
        let name = file
            .file_stem()
            .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        format!("(\"{name}\", \"{:016x}\"),\n", hasher.finish())
    });
    let table = format!("&[\n{}]\n", versions.collect::<String>());
    let out = std::env::var_os("OUT_DIR")
        .map(PathBuf::from)
        .expect("cargo sets OUT_DIR");
    fs::write(out.join("code_versions.rs"), table).expect("OUT_DIR can be written");
}

/// A file's content, or that of all files in a folder; nothing where there is neither.
fn content(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    if let Ok(entries) = fs::read_dir(path) {
        return entries
            .flatten()
            .flat_map(|entry| content(&entry.path()))
            .collect();
    }
    fs::read(path)
        .map(|bytes| (path.to_owned(), bytes))
        .into_iter()
        .collect()
}
