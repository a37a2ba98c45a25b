//! How the source files depend on each other, and that what ships with the project is valid.
//!
//! Cargo forbids cycles between crates; these tests forbid them inside a crate.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use secateur::plan::check::{Overrides, check};
use secateur_data::task::Task;

use crate::support::Sandbox;

mod file_graph;
mod source_paths;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The modules of `src` from the top down. A module may use itself and those after it.
const LAYERS: [&str; 9] = [
    "commands", "run", "report", "plan", "results", "pipeline", "stages", "progress", "machine",
];

/// The largest number of lines of code in a file, without comments and blank lines.
const MAX_CODE_LINES: usize = 400;

/// The files with this extension in a folder and the folders inside it.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The folders of source code of the workspace, each with the name of its crate in the code.
fn source_folders() -> Vec<(PathBuf, String)> {
    let mut folders = vec![(Path::new(ROOT).join("src"), "secateur".to_owned())];
    for entry in std::fs::read_dir(Path::new(ROOT).join("crates")).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_str().unwrap();
        folders.push((folder.join("src"), name.replace('-', "_")));
    }
    assert!(folders.len() > 1, "no crate was found");
    folders
}

/// The module directly below `src` that a file belongs to: `stages` for `src/stages/prune.rs`.
fn top_module(file: &Path) -> String {
    let inside = file.strip_prefix(Path::new(ROOT).join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str();
    Path::new(first)
        .file_stem()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

/// The path of a file relative to the root of the source tree.
fn relative_path(file: &Path) -> String {
    file.strip_prefix(ROOT)
        .unwrap_or(file)
        .display()
        .to_string()
}

test!(imports_point_down_the_layers);
fn imports_point_down_the_layers() {
    let edges = file_graph::read(&Path::new(ROOT).join("src"), "secateur");
    let layer = |file: &Path| {
        let module = top_module(file);
        let layer = LAYERS.iter().position(|name| *name == module);
        layer
            .unwrap_or_else(|| panic!("`{module}` has no place in LAYERS: {}", relative_path(file)))
    };
    let is_root = |file: &Path| ["main", "lib"].contains(&top_module(file).as_str());
    let (mut count, mut wrong) = (0, Vec::new());
    for (file, targets) in edges.iter().filter(|(file, _)| !is_root(file)) {
        for (target, names) in targets.iter().filter(|(target, _)| !is_root(target)) {
            count += 1;
            if layer(file) > layer(target) {
                wrong.push(format!(
                    "{} -> {}: {names:?}",
                    relative_path(file),
                    relative_path(target)
                ));
            }
        }
    }
    assert!(count > 100, "only {count} imports were found");
    assert!(
        wrong.is_empty(),
        "imports that point up:\n{}",
        wrong.join("\n")
    );
}

test!(no_files_form_an_import_cycle);
fn no_files_form_an_import_cycle() {
    let mut cycles = Vec::new();
    for (folder, name) in source_folders() {
        let edges = file_graph::read(&folder, &name);
        assert!(!edges.is_empty(), "{} has no source file", folder.display());
        for cycle in file_graph::cycles(&edges) {
            let prefix = format!("{ROOT}/");
            cycles.push(cycle.join("\n").replace(&prefix, ""));
        }
    }
    assert!(
        cycles.is_empty(),
        "files that import each other:\n{}",
        cycles.join("\n\n")
    );
}

/// The values of `type` in a pipeline, as `runner schema` lists them.
fn stage_types() -> Vec<String> {
    let ran = Sandbox::new().run(&["schema"]);
    let schema: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let stages = schema["properties"]["stage"]["items"]["oneOf"].as_array();
    let types: Vec<String> = stages
        .unwrap()
        .iter()
        .map(|stage| {
            stage["properties"]["type"]["const"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert!(types.len() >= 12, "{types:?}");
    types
}

test!(every_stage_type_has_its_own_file);
fn every_stage_type_has_its_own_file() {
    let stages = Path::new(ROOT).join("src/stages");
    for stage in stage_types() {
        let exists = stages.join(format!("{stage}.rs")).exists()
            || stages.join(&stage).join("mod.rs").exists();
        assert!(exists, "type = \"{stage}\" has no file in src/stages");
    }
}

test!(no_stage_imports_another_stage);
fn no_stage_imports_another_stage() {
    let src = Path::new(ROOT).join("src");
    let types: BTreeSet<String> = stage_types().into_iter().collect();
    // The stage that a file belongs to: `prune` for src/stages/prune.rs and
    // src/stages/prune/decide.rs.
    let stage_of = |file: &Path| {
        let inside = file.strip_prefix(src.join("stages")).ok()?;
        let first = Path::new(inside.components().next()?.as_os_str());
        let name = first.file_stem()?.to_str()?.to_owned();
        types.contains(&name).then_some(name)
    };
    let (mut files_of_stages, mut wrong) = (0, Vec::new());
    for (file, targets) in file_graph::read(&src, "secateur") {
        let Some(stage) = stage_of(&file) else {
            continue;
        };
        files_of_stages += 1;
        for (target, names) in targets {
            if stage_of(&target).is_some_and(|other| other != stage) {
                wrong.push(format!(
                    "{} -> {}: {names:?}",
                    relative_path(&file),
                    relative_path(&target)
                ));
            }
        }
    }
    assert!(
        files_of_stages >= types.len(),
        "the files of stages were not found"
    );
    assert!(
        wrong.is_empty(),
        "a stage uses another one:\n{}",
        wrong.join("\n")
    );
}

test!(no_source_file_is_too_long);
fn no_source_file_is_too_long() {
    let mut too_long = Vec::new();
    for (folder, _) in source_folders() {
        for file in files(&folder, "rs") {
            let text = std::fs::read_to_string(&file).unwrap();
            let is_code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
            let lines = text.lines().filter(is_code).count();
            if lines > MAX_CODE_LINES {
                too_long.push(format!(
                    "{} has {lines} lines of code",
                    relative_path(&file)
                ));
            }
        }
    }
    assert!(
        too_long.is_empty(),
        "move a part of each to its own file:\n{}",
        too_long.join("\n")
    );
}

test!(no_test_bypasses_the_harness);
fn no_test_bypasses_the_harness() {
    // In a binary with its own harness the compiler drops functions with this attribute.
    let attribute = concat!("#[", "test]");
    for file in files(&Path::new(ROOT).join("tests"), "rs") {
        let text = std::fs::read_to_string(&file).unwrap();
        let found = text.lines().find(|line| line.trim() == attribute);
        assert_eq!(
            found,
            None,
            "{} must use `test!(name);`",
            relative_path(&file)
        );
    }
}

test!(every_shipped_pipeline_passes_the_check);
fn every_shipped_pipeline_passes_the_check() {
    let pipelines = files(&Path::new(ROOT).join("pipelines"), "toml");
    assert!(pipelines.len() >= 10, "{pipelines:?}");
    for path in pipelines {
        if let Err(invalid) = check(&path, &Overrides::default(), false) {
            let messages: Vec<String> = invalid
                .problems
                .iter()
                .map(|problem| problem.message.clone())
                .collect();
            panic!("{}: {messages:?}", relative_path(&path));
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let header: String = text
            .lines()
            .take_while(|line| line.starts_with('#'))
            .collect();
        assert!(
            header.contains("runner") || header.contains("cargo run"),
            "the comment at the top of {} does not say how to run it",
            relative_path(&path)
        );
    }
}

test!(every_shipped_task_is_built_in);
fn every_shipped_task_is_built_in() {
    let tasks = files(&Path::new(ROOT).join("datasets"), "toml");
    assert!(tasks.len() >= 10, "{tasks:?}");
    for path in tasks {
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(
            Task::built_in_names().any(|built_in| built_in == name),
            "{name} is not built into the program"
        );
    }
}
