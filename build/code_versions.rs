//! The version of a stage's code: a hash of everything in the source tree that its outcome depends
//! on. `build.rs` computes the versions; `src/plan/keys.rs` includes this file for its tests.
//!
//! The hash of a stage covers
//! - its file and folder in `src/stages`, and the files of `src/stages` that these use;
//! - the files that run a stage, store its product and read it back;
//! - the sources of the crates of this workspace that those files use ([`CRATE_SOURCES`]);
//! - of the external crates that any of these files use: the line in `Cargo.toml` (version and
//!   features), and the locked versions of the crate and of its dependencies;
//! - the compiler.
//!
//! So a changed kernel discards the products of every stage that computes with it, and a changed
//! report, command line or update of polars discards none.
//!
//! Uses are found in the text: a file uses a module or a crate if it contains `name::` outside of
//! comments. Every real use is found. A word that is found by accident adds a dependency that does
//! not exist, which at worst computes a product again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The files and folders that versions depend on.
pub(crate) const INPUT_PATHS: [&str; 5] = [
    "Cargo.lock",
    "Cargo.toml",
    "crates",
    "src/run",
    "src/stages",
];

/// The files of `src/run` that decide outcomes: random streams, and how products are stored and
/// read back. A file that is not there counts as empty.
const RUN_SOURCES: [&str; 2] = ["src/run/node.rs", "src/run/values.rs"];

/// Modules of `src/stages` that change no outcome: `environment` and `facts` serve the check and
/// its estimates, `error` holds messages, `stage` is the trait, and `registry` lists the stages, so
/// that following its uses would add all stages to each.
const STAGE_MODULES_WITHOUT_EFFECT: [&str; 5] =
    ["environment", "error", "facts", "registry", "stage"];

/// The crates of the workspace, and the sources of each that decide outcomes. The other files of
/// `secateur-base` and `secateur-store` deal with files, locks, memory and the cache.
const CRATE_SOURCES: [(&str, &str); 5] = [
    ("secateur-base", "src/random.rs"),
    ("secateur-data", "src"),
    ("secateur-model", "src"),
    ("secateur-store", "src/tables.rs"),
    ("secateur-tensor", "src"),
];

/// External crates that decide error messages, logs, schemas and where files are written, but no
/// outcome.
const CRATES_WITHOUT_EFFECT: [&str; 4] = ["schemars", "tempfile", "thiserror", "tracing"];

/// For each stage type the version of its code, as 16 hexadecimal digits. `root` is the root of the
/// source tree, `compiler` the output of `rustc -V`.
pub(crate) fn code_versions(root: &Path, compiler: &[u8]) -> BTreeMap<String, String> {
    let tree = SourceTree::read(root);
    tree.stage_modules
        .keys()
        .map(|stage| (stage.clone(), tree.version(stage, compiler)))
        .collect()
}

/// Files by path relative to the root.
type Files = BTreeMap<PathBuf, Rc<SourceFile>>;

struct SourceFile {
    text: String,
    /// The words of its code.
    words: BTreeSet<String>,
    /// The words that `::` follows.
    path_words: BTreeSet<String>,
}

/// The sources and locked versions that versions are computed from.
struct SourceTree {
    /// The modules of `src/stages`, stages and shared ones, with the files of each.
    stage_modules: BTreeMap<String, Files>,
    /// The names that `src/stages/mod.rs` re-exports, with the module of each.
    reexports: Vec<(String, String)>,
    run_files: Files,
    /// The crates of the workspace, with the sources of [`CRATE_SOURCES`].
    workspace_crates: BTreeMap<String, Files>,
    /// The lines of `[workspace.dependencies]`, by crate.
    dependency_lines: BTreeMap<String, String>,
    lock: BTreeMap<String, LockedCrate>,
}

/// A `[[package]]` of `Cargo.lock`. Several versions of one crate are joined.
#[derive(Default)]
struct LockedCrate {
    versions: BTreeSet<String>,
    dependencies: BTreeSet<String>,
}

impl SourceTree {
    fn read(root: &Path) -> Self {
        let mut stage_modules: BTreeMap<String, Files> = BTreeMap::new();
        for (path, file) in read_files(root, Path::new("src/stages")) {
            // `src/stages/prune.rs` and `src/stages/prune/decide.rs` are the module `prune`.
            let third_part = path.iter().nth(2).map(Path::new);
            let module = third_part.and_then(Path::file_stem).unwrap_or_default();
            let module = module.to_string_lossy().into_owned();
            stage_modules.entry(module).or_default().insert(path, file);
        }
        let mod_file = stage_modules.remove("mod").unwrap_or_default();
        let reexports = mod_file
            .values()
            .flat_map(|file| reexports(&file.text))
            .collect();
        let run_files = RUN_SOURCES
            .iter()
            .flat_map(|path| read_files(root, Path::new(path)))
            .collect();
        let workspace_crates = CRATE_SOURCES
            .iter()
            .map(|(name, sources)| {
                let folder = Path::new("crates").join(name);
                ((*name).to_owned(), read_files(root, &folder.join(sources)))
            })
            .collect();
        let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
        Self {
            stage_modules,
            reexports,
            run_files,
            workspace_crates,
            dependency_lines: dependency_lines(&read("Cargo.toml")),
            lock: parse_lock(&read("Cargo.lock")),
        }
    }

    fn version(&self, stage: &str, compiler: &[u8]) -> String {
        let mut files = self.run_files.clone();
        for module in self.used_stage_modules(stage) {
            files.extend(self.stage_modules[&module].clone());
        }
        // Crates of the workspace use each other, so their files are added until none is new.
        let mut crates: BTreeSet<&String> = BTreeSet::new();
        loop {
            let used_crates = self.workspace_crates.keys().filter(|name| {
                let identifier = name.replace('-', "_");
                files
                    .values()
                    .any(|file| file.path_words.contains(&identifier))
            });
            let new_crates: Vec<&String> = used_crates.filter(|name| crates.insert(name)).collect();
            if new_crates.is_empty() {
                break;
            }
            for name in new_crates {
                files.extend(self.workspace_crates[name].clone());
            }
        }
        let external_crates = self.external_crates(&files);
        let lines: Vec<&String> = external_crates
            .iter()
            .filter_map(|name| self.dependency_lines.get(name))
            .collect();
        let locked = self.locked_versions(&external_crates);
        let mut hasher = DefaultHasher::new();
        for (path, file) in &files {
            (path, &file.text).hash(&mut hasher);
        }
        (&lines, &locked, compiler).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// The module of a stage and the modules of `src/stages` that it uses, directly or through
    /// others.
    fn used_stage_modules(&self, stage: &str) -> BTreeSet<String> {
        let mut used = BTreeSet::new();
        let mut pending = vec![stage.to_owned()];
        while let Some(module) = pending.pop() {
            if !used.insert(module.clone()) {
                continue;
            }
            let files = &self.stage_modules[&module];
            for other in self.stage_modules.keys() {
                // A module is used by its path, or by a name that `src/stages/mod.rs` re-exports.
                let has_path = files.values().any(|file| file.path_words.contains(other));
                let mut exported = self.reexports.iter().filter(|(_, from)| from == other);
                let has_exported_name =
                    exported.any(|(name, _)| files.values().any(|file| file.words.contains(name)));
                let is_used = has_path || has_exported_name;
                if is_used && !STAGE_MODULES_WITHOUT_EFFECT.contains(&other.as_str()) {
                    pending.push(other.clone());
                }
            }
        }
        used
    }

    /// The external crates that any of the files use.
    fn external_crates(&self, files: &Files) -> BTreeSet<String> {
        let names = self.dependency_lines.keys();
        names
            .filter(|name| !CRATES_WITHOUT_EFFECT.contains(&name.as_str()))
            .filter(|name| !self.workspace_crates.contains_key(*name))
            .filter(|name| {
                let identifier = name.replace('-', "_");
                files
                    .values()
                    .any(|file| file.path_words.contains(&identifier))
            })
            .cloned()
            .collect()
    }

    /// The locked versions of the crates and of their dependencies.
    fn locked_versions(&self, crates: &BTreeSet<String>) -> BTreeMap<&str, &BTreeSet<String>> {
        let mut versions = BTreeMap::new();
        let mut pending: Vec<&str> = crates.iter().map(String::as_str).collect();
        while let Some(name) = pending.pop() {
            let Some((name, locked)) = self.lock.get_key_value(name) else {
                continue;
            };
            if CRATES_WITHOUT_EFFECT.contains(&name.as_str()) {
                continue;
            }
            if versions.insert(name.as_str(), &locked.versions).is_none() {
                pending.extend(locked.dependencies.iter().map(String::as_str));
            }
        }
        versions
    }
}

impl SourceFile {
    fn new(text: String) -> Self {
        let (mut words, mut path_words) = (BTreeSet::new(), BTreeSet::new());
        for line in code_lines(&text) {
            let is_separator = |byte: u8| !(byte.is_ascii_alphanumeric() || byte == b'_');
            let mut rest = line;
            while let Some(start) = rest.bytes().position(|byte| !is_separator(byte)) {
                let word_and_rest = &rest[start..];
                let end = word_and_rest.bytes().position(is_separator);
                let (word, after) = word_and_rest.split_at(end.unwrap_or(word_and_rest.len()));
                words.insert(word.to_owned());
                if after.starts_with("::") {
                    path_words.insert(word.to_owned());
                }
                rest = after;
            }
        }
        Self {
            text,
            words,
            path_words,
        }
    }
}

/// A file, or all files of a folder, with paths relative to `root`. A path that does not exist has
/// no files.
fn read_files(root: &Path, path: &Path) -> Files {
    let mut files = Files::new();
    if let Ok(entries) = fs::read_dir(root.join(path)) {
        for entry in entries.flatten() {
            files.extend(read_files(root, &path.join(entry.file_name())));
        }
    } else if let Ok(bytes) = fs::read(root.join(path)) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        files.insert(path.to_owned(), Rc::new(SourceFile::new(text)));
    }
    files
}

/// The lines of a source file that are not comments.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
}

/// The names of `pub use module::{…};` and `pub(crate) use module::name;` with their modules.
fn reexports(text: &str) -> Vec<(String, String)> {
    let code: String = code_lines(text).collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    for statement in code.split(';') {
        let statement = statement.trim();
        let Some((visibility, path)) = statement.split_once("use ") else {
            continue;
        };
        if !visibility.trim_start().starts_with("pub") {
            continue;
        }
        let Some((module, names)) = path.split_once("::") else {
            continue;
        };
        for name in names.split(['{', '}', ',', ':']) {
            if !name.trim().is_empty() {
                found.push((name.trim().to_owned(), module.trim().to_owned()));
            }
        }
    }
    found
}

/// The lines of `[workspace.dependencies]`, by crate. Each dependency is on one line.
fn dependency_lines(manifest: &str) -> BTreeMap<String, String> {
    let section = manifest
        .lines()
        .skip_while(|line| line.trim() != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['));
    section
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| Some((line.split_once('=')?.0.trim().to_owned(), line.to_owned())))
        .collect()
}

/// The packages of `Cargo.lock`, by name. cargo writes one `key = "value"` a line, and dependencies
/// as a list with one `"name"`, `"name version"` or `"name version (source)"` a line.
fn parse_lock(text: &str) -> BTreeMap<String, LockedCrate> {
    let mut crates: BTreeMap<String, LockedCrate> = BTreeMap::new();
    for package in text.split("[[package]]").skip(1) {
        let value = |key: &str| {
            let mut lines = package.lines();
            lines.find_map(|line| Some(line.strip_prefix(key)?.trim_matches(['=', ' ', '"'])))
        };
        let (Some(name), Some(version)) = (value("name"), value("version")) else {
            continue;
        };
        let checksum = value("checksum").unwrap_or_default();
        let locked = crates.entry(name.to_owned()).or_default();
        locked.versions.insert(format!("{version} {checksum}"));
        let dependencies = package.lines().filter_map(|line| line.strip_prefix(" \""));
        locked.dependencies.extend(
            dependencies
                .filter_map(|dependency| dependency.split([' ', '"']).next())
                .map(str::to_owned),
        );
    }
    crates
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPILER: &[u8] = b"rustc 1.95.0";

    /// A copy of the files of this source tree that versions depend on, and of some that they do
    /// not.
    fn copy_of_the_tree() -> tempfile::TempDir {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let copy = tempfile::tempdir().expect("a temporary folder");
        for path in INPUT_PATHS
            .into_iter()
            .chain(["src/report", "src/commands"])
        {
            for (file_path, file) in read_files(root, Path::new(path)) {
                let target = copy.path().join(file_path);
                fs::create_dir_all(target.parent().expect("a parent")).expect("a folder");
                fs::write(target, &file.text).expect("a file");
            }
        }
        copy
    }

    /// The stages whose versions change when `edit` is applied to a file.
    fn changed_by(path: &str, edit: impl Fn(&str) -> String) -> Vec<String> {
        let copy = copy_of_the_tree();
        let before = code_versions(copy.path(), COMPILER);
        let file = copy.path().join(path);
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{path}: {error}"));
        let edited = edit(&text);
        assert_ne!(text, edited, "the edit of {path} changes nothing");
        fs::write(&file, edited).expect("a file");
        let after = code_versions(copy.path(), COMPILER);
        assert_eq!(
            before.keys().collect::<Vec<_>>(),
            after.keys().collect::<Vec<_>>()
        );
        let names = before.keys().filter(|name| before[*name] != after[*name]);
        let stages: Vec<&str> = crate::stages::registry::tags().collect();
        names
            .filter(|name| stages.contains(&name.as_str()))
            .cloned()
            .collect()
    }

    fn with_a_new_line(text: &str) -> String {
        format!("{text}\n// another line\n")
    }

    /// Another version of a crate in `Cargo.lock`.
    fn locked_as_99(name: &str) -> impl Fn(&str) -> String {
        let heading = format!("name = \"{name}\"\nversion = \"");
        move |lock| lock.replace(&heading, &format!("{heading}99."))
    }

    fn all_stages() -> Vec<String> {
        let mut all: Vec<String> = crate::stages::registry::tags().map(str::to_owned).collect();
        all.sort();
        all
    }

    #[test]
    fn every_stage_has_a_version() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let versions = code_versions(root, COMPILER);
        for stage in all_stages() {
            assert!(versions.contains_key(&stage), "{stage} has no version");
        }
    }

    #[test]
    fn reports_commands_and_their_dependencies_change_no_version() {
        for path in ["src/report/mod.rs", "src/report/text/mod.rs"] {
            assert_eq!(changed_by(path, with_a_new_line), [""; 0], "{path}");
        }
        assert_eq!(
            changed_by("src/commands/arguments.rs", with_a_new_line),
            [""; 0]
        );
        assert_eq!(changed_by("src/run/status.rs", with_a_new_line), [""; 0]);
        assert_eq!(
            changed_by("crates/secateur-store/src/cache.rs", with_a_new_line),
            [""; 0]
        );
        assert_eq!(
            changed_by("crates/secateur-base/src/locks.rs", with_a_new_line),
            [""; 0]
        );
        for name in [
            "polars",
            "polars-core",
            "clap",
            "miette",
            "indicatif",
            "figment",
            "thiserror",
        ] {
            let changed = changed_by("Cargo.lock", locked_as_99(name));
            assert_eq!(changed, [""; 0], "{name}");
        }
        let changed = changed_by("Cargo.toml", |text| {
            text.replace("\npolars = ", "\npolars = {} #")
        });
        assert_eq!(changed, [""; 0]);
    }

    #[test]
    fn a_stage_file_changes_the_version_of_its_stage_alone() {
        assert_eq!(
            changed_by("src/stages/prune.rs", with_a_new_line),
            ["prune"]
        );
        assert_eq!(
            changed_by("src/stages/prune/decide.rs", with_a_new_line),
            ["prune"]
        );
        let changed = changed_by("src/stages/evaluate/choices.rs", with_a_new_line);
        assert_eq!(changed, ["evaluate"]);
    }

    #[test]
    fn a_shared_stage_file_changes_the_versions_of_its_users() {
        let trainers = changed_by("src/stages/train/mod.rs", with_a_new_line);
        assert_eq!(trainers, ["pretrain", "recover"]);
    }

    #[test]
    fn a_kernel_or_its_crates_change_the_versions_of_all_stages_that_compute() {
        let kernel = "crates/secateur-tensor/src/ops/cpu/gemm.rs";
        assert_eq!(changed_by(kernel, with_a_new_line), all_stages());
        for name in ["gemm-f32", "dfdx", "safetensors", "tokenizers", "pulp"] {
            let changed = changed_by("Cargo.lock", locked_as_99(name));
            assert_eq!(changed, all_stages(), "{name}");
        }
        // A dependency of a dependency: gemm-common of gemm-f32.
        let changed = changed_by("Cargo.lock", locked_as_99("gemm-common"));
        assert_eq!(changed, all_stages());
        let changed = changed_by("Cargo.toml", |text| {
            text.replace(
                "gemm-f32 = { version = \"0.19\"",
                "gemm-f32 = { version = \"0.20\"",
            )
        });
        assert_eq!(changed, all_stages());
    }

    #[test]
    fn the_data_crate_changes_the_versions_of_the_stages_that_read_data() {
        let changed = changed_by("crates/secateur-data/src/corpus.rs", with_a_new_line);
        for reader in ["evaluate", "importance", "pretrain", "recover"] {
            assert!(
                changed.iter().any(|stage| stage == reader),
                "{reader}: {changed:?}"
            );
        }
        for other in ["aggregate", "dependencies", "prune"] {
            assert!(
                !changed.iter().any(|stage| stage == other),
                "{other}: {changed:?}"
            );
        }
    }

    #[test]
    fn another_compiler_changes_every_version() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let before = code_versions(root, COMPILER);
        let after = code_versions(root, b"rustc 1.96.0");
        assert!(
            before
                .iter()
                .all(|(stage, version)| after[stage] != *version)
        );
    }
}
