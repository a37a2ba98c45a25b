//! Writes `code_versions.rs`: for each stage type the hash of the code that its outcome depends on.
//! `src/plan/keys.rs` includes the table, and the hash is part of the key of every stored product.

#[path = "build/code_versions.rs"]
mod code_versions;

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    for path in code_versions::INPUT_PATHS {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let compiler = Command::new(rustc)
        .arg("-V")
        .output()
        .map(|output| output.stdout)
        .unwrap_or_default();
    let versions = code_versions::code_versions(Path::new("."), &compiler);
    let rows: String = versions
        .iter()
        .map(|(stage, version)| format!("(\"{stage}\", \"{version}\"),\n"))
        .collect();
    let out_dir = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let path = PathBuf::from(out_dir).join("code_versions.rs");
    std::fs::write(path, format!("&[\n{rows}]\n")).expect("OUT_DIR can be written");
}
