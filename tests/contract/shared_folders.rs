//! Folders that users share, and folders that cannot be used: permissions, other users' files,
//! links that lead nowhere, file systems without locks.

#![cfg(target_os = "linux")]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::support::{ProgramOutput, Sandbox, chain, runner, walk};

/// A pipeline with few stages that exports a model.
const EXPORT: &str = r#"
[[stage]]
type = "load"
model = "models/tiny"

[[stage]]
type = "dependencies"

[[stage]]
type = "importance"
method = "l2"

[[stage]]
type = "aggregate"

[[stage]]
type = "prune"
ratio = 0.25

[[stage]]
type = "export"
formats = ["hf", "plan"]
"#;

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("export.toml", EXPORT);
    sandbox
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Runs the program under a umask.
fn run_with_umask(sandbox: &Sandbox, umask: &str, arguments: &[&str]) -> ProgramOutput {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")])
        .arg(runner())
        .args(arguments)
        .current_dir(sandbox.path(""));
    output_of(&mut command)
}

fn output_of(command: &mut Command) -> ProgramOutput {
    let output = command.output().unwrap();
    ProgramOutput {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Asserts that everything below a folder has the permissions of new files under this umask.
fn assert_modes(sandbox: &Sandbox, folder: &str, umask: u32) {
    let paths = walk(&sandbox.path(folder));
    assert!(paths.len() > 5, "{paths:?}");
    for path in paths {
        let path = Path::new(&path);
        let full = if path.is_dir() { 0o777 } else { 0o666 };
        assert_eq!(
            mode(path),
            full & !umask,
            "{:o}: {}",
            mode(path),
            path.display()
        );
    }
}

test!(permissions_follow_the_umask);
fn permissions_follow_the_umask() {
    let sandbox = sandbox();
    for (umask, text) in [(0o077, "077"), (0o002, "002"), (0o022, "022")] {
        let results = format!("results-{text}");
        let ran = run_with_umask(&sandbox, text, &["export.toml", "--results", &results]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert_modes(&sandbox, &results, umask);
        // A variant that was complete and is made again has them too.
        let forced = ["export.toml", "--results", &results, "--force"];
        assert_eq!(run_with_umask(&sandbox, text, &forced).code, 0);
        assert_modes(&sandbox, &results, umask);
        assert!(sandbox.path(&results).join(".cache").is_dir());
    }
    // Results made from products that a run with another umask has kept.
    for (umask, text) in [(0o077, "077"), (0o002, "002")] {
        let results = format!("others-{text}");
        let cache = ["--set", "run.cache=results-022/.cache"];
        let arguments = [&["export.toml", "--results", &results][..], &cache].concat();
        let ran = run_with_umask(&sandbox, text, &arguments);
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert_modes(&sandbox, &results, umask);
    }
    let merged = ["merge", "results-022", "--into", "merged"];
    let ran = run_with_umask(&sandbox, "077", &merged);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_modes(&sandbox, "merged", 0o077);
}

/// A call of the program as a user for whom permissions hold: root may write everything, so root
/// becomes another user. Everything in the sandbox belongs to that user.
fn run_as_plain_user(sandbox: &Sandbox, arguments: &[&str]) -> ProgramOutput {
    let mut command = sandbox.command(arguments);
    if is_root() {
        const NOBODY: u32 = 65534;
        // The program may lie where another user cannot read it.
        let program = sandbox.path("runner");
        if !program.exists() {
            std::fs::copy(runner(), &program).unwrap();
        }
        let mut as_nobody = Command::new(&program);
        as_nobody
            .args(arguments)
            .current_dir(sandbox.path(""))
            .uid(NOBODY)
            .gid(NOBODY);
        for path in walk(&sandbox.path("")).iter().map(Path::new) {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        std::os::unix::fs::chown(sandbox.path(""), Some(NOBODY), Some(NOBODY)).unwrap();
        command = as_nobody;
    }
    output_of(&mut command)
}

/// Whether this process is root's: files that it creates belong to user 0.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    let own_file = tempfile::NamedTempFile::new().unwrap();
    own_file.as_file().metadata().unwrap().uid() == 0
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The folders of the products in the cache of `results`.
fn products(sandbox: &Sandbox) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(sandbox.path("results/.cache")).unwrap();
    let folders = entries.flatten().map(|entry| entry.path());
    folders
        .filter(|folder| folder.file_name().is_some_and(|name| name.len() == 32))
        .collect()
}

test!(products_that_cannot_be_removed_are_named);
fn products_that_cannot_be_removed_are_named() {
    let sandbox = sandbox();
    let ran = run_as_plain_user(&sandbox, &["export.toml"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let mut all = products(&sandbox);
    assert_eq!(all.len(), 6);
    // One that a pipeline with another ratio does not make.
    all.retain(|product| {
        let manifest = std::fs::read_to_string(product.join("entry.json")).unwrap();
        manifest.contains("\"stage\": \"export\"")
    });
    // As a product of another user: its folder cannot be changed.
    set_mode(&all[0], 0o555);
    let cleaned = run_as_plain_user(&sandbox, &["cache", "clean"]);
    assert_eq!(cleaned.code, 1, "{}{}", cleaned.out, cleaned.err);
    let name = all[0].file_name().unwrap().to_str().unwrap();
    assert!(
        cleaned.out.contains("5 products were removed")
            && cleaned.out.contains("1 product could not be removed")
            && cleaned.err.contains(name)
            && cleaned.err.contains("Permission denied"),
        "{}{}",
        cleaned.out,
        cleaned.err
    );
    assert_eq!(products(&sandbox), [all[0].clone()]);
    // The same for a damaged product, and for the limit of a run, which goes on.
    std::fs::write(all[0].join("entry.json"), "{}").unwrap();
    let verified = run_as_plain_user(&sandbox, &["cache", "verify"]);
    assert_eq!(verified.code, 1, "{}{}", verified.out, verified.err);
    assert!(verified.err.contains(name), "{}", verified.err);
    let limited = ["export.toml", "--set", "run.cache_limit=0"];
    let other = run_as_plain_user(
        &sandbox,
        &[&limited[..], &["--set", "prune.ratio=0.5"]].concat(),
    );
    assert_eq!(other.code, 0, "{}", other.err);
    assert_eq!(
        other.err.matches("cannot be removed").count(),
        1,
        "{}",
        other.err
    );
    let as_json = run_as_plain_user(&sandbox, &["cache", "clean", "--format", "json"]);
    let summary: serde_json::Value = serde_json::from_str(&as_json.out).unwrap();
    assert_eq!(as_json.code, 1);
    assert_eq!(summary["not_removed"].as_array().unwrap().len(), 1);
    set_mode(&all[0], 0o755);
    let cleaned = run_as_plain_user(&sandbox, &["cache", "clean"]);
    assert_eq!(cleaned.code, 0, "{}", cleaned.err);
    assert!(products(&sandbox).is_empty());
}

test!(folders_that_cannot_be_written_are_named_by_the_check);
fn folders_that_cannot_be_written_are_named_by_the_check() {
    let sandbox = sandbox();
    std::fs::create_dir_all(sandbox.path("results/export/.locks")).unwrap();
    std::fs::create_dir_all(sandbox.path("kept")).unwrap();
    for (folder, named) in [
        ("results", "results folder `results`"),
        ("results/export", "results folder `results/export`"),
        ("results/export/.locks", "`results/export/.locks`"),
        ("kept", "folder of kept products `kept`"),
    ] {
        let arguments = ["check", "export.toml", "--set", "run.cache=kept"];
        assert_eq!(run_as_plain_user(&sandbox, &arguments).code, 0);
        set_mode(&sandbox.path(folder), 0o555);
        let ran = run_as_plain_user(&sandbox, &arguments);
        set_mode(&sandbox.path(folder), 0o755);
        assert_eq!(ran.code, 2, "{folder}: {}", ran.err);
        let err = ran.err.replace('\n', " ");
        assert!(
            err.contains(named) && err.contains("Permission denied"),
            "{folder}: {err}"
        );
        assert!(err.contains("umask 002"), "{folder}: {err}");
    }
}

test!(links_that_lead_nowhere_are_named);
fn links_that_lead_nowhere_are_named() {
    let sandbox = sandbox();
    symlink("/no/such/disk", sandbox.path("gone")).unwrap();
    symlink("loop", sandbox.path("loop")).unwrap();
    for arguments in [
        ["export.toml", "--results", "gone"],
        ["export.toml", "--results", "gone/inside"],
        ["export.toml", "--set", "run.cache=gone"],
        ["export.toml", "--set", "run.results=gone"],
    ] {
        let ran = sandbox.run(&arguments);
        assert_eq!(ran.code, 2, "{}", ran.err);
        assert!(
            ran.err.contains("`gone` is a link to `/no/such/disk`")
                && ran.err.contains("create the folder that the link names"),
            "{}",
            ran.err
        );
        assert_eq!(ran.err.matches("is a link to").count(), 1, "{}", ran.err);
    }
    let ran = sandbox.run(&["export.toml", "--results", "loop"]);
    assert!(
        ran.code == 2 && ran.err.contains("`loop` is a link to `loop`"),
        "{}",
        ran.err
    );
    // A link that leads to a folder is used.
    std::fs::create_dir(sandbox.path("disk")).unwrap();
    symlink("disk", sandbox.path("link")).unwrap();
    assert_eq!(sandbox.run(&["export.toml", "--results", "link"]).code, 0);
    assert!(sandbox.path("disk/export/variants.parquet").exists());
}

/// Replaces the system call of locks by one that fails as on a file system without locks.
const NO_LOCKS: &str = "#include <errno.h>\n\
                        int flock(int file, int operation) { errno = ENOLCK; return -1; }\n";

test!(file_system_without_locks_is_used_with_a_warning);
fn file_system_without_locks_is_used_with_a_warning() {
    let sandbox = chain();
    sandbox.write("export.toml", EXPORT);
    sandbox.write("no_locks.c", NO_LOCKS);
    // The build of the program needs a C compiler too.
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o", "no_locks.so", "no_locks.c"])
        .current_dir(sandbox.path(""))
        .status()
        .unwrap();
    assert!(compiled.success());
    let run = |arguments: &[&str]| {
        let library = sandbox.path("no_locks.so");
        output_of(sandbox.command(arguments).env("LD_PRELOAD", library))
    };
    let checked = run(&["check", "export.toml"]);
    assert_eq!(checked.code, 0, "{}", checked.err);
    assert!(
        checked.err.contains("has no locks") && checked.err.contains("only one run at a time"),
        "{}",
        checked.err
    );
    let ran = run(&["export.toml"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(ran.err.matches("has no locks").count(), 1, "{}", ran.err);
    let status = sandbox.json("results/export/status.json");
    assert_eq!(status["state"], "succeeded");
    let cleaned = run(&["cache", "clean"]);
    assert_eq!(cleaned.code, 0, "{}", cleaned.err);
    assert!(
        cleaned.out.contains("6 products were removed"),
        "{}",
        cleaned.out
    );
}
