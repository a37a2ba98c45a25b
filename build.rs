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
    fold_identical_functions();
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

/// Links functions with equal machine code once, which saves 3 % of the program. Only lld has the
/// option; it is the default linker where the toolchain ships it and no other linker is
/// configured.
fn fold_identical_functions() {
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    let target = std::env::var("TARGET").unwrap_or_default();
    let rustflags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    if target != "x86_64-unknown-linux-gnu" || !rustflags.is_empty() {
        return;
    }
    if std::env::var_os("RUSTC_LINKER").is_some() {
        return;
    }
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let Ok(sysroot) = Command::new(rustc).args(["--print", "sysroot"]).output() else {
        return;
    };
    let sysroot = String::from_utf8_lossy(&sysroot.stdout).trim().to_owned();
    let lld = format!("{sysroot}/lib/rustlib/{target}/bin/gcc-ld/ld.lld");
    if Path::new(&lld).exists() {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}
