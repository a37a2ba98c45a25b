//! The shape of the project: imports point one way, files stay readable, and whatever ships is in order.

use std::path::{Path, PathBuf};

use secateur::plan::check::{Overrides, check};
use secateur_data::task::Task;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Modules from the top down: each may use those after it, never one before. Those of one line may use each other.
const LAYERS: [&[&str]; 5] = [
    &["pipeline"],
    &["stages"],
    &["data", "model"],
    &["ops", "tensor"],
    &[
        "adam", "files", "locks", "memory", "metrics", "progress", "random", "spelling",
    ],
];

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|layer| layer.contains(&module))
        .unwrap_or_else(|| panic!("`{module}` stands in no layer"))
}

/// The module of `src` that a file belongs to: `stages` for `src/stages/prune.rs`.
fn module(file: &Path) -> String {
    let inside = file.strip_prefix(Path::new(ROOT).join("src")).unwrap();
    inside
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_str()
        .unwrap()
        .trim_end_matches(".rs")
        .to_owned()
}

#[test]
fn imports_point_one_way() {
    let mut arrows = 0;
    for file in files(&Path::new(ROOT).join("src"), "rs") {
        let from = module(&file);
        if ["main", "lib"].contains(&from.as_str()) {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        // tests at the end of a file may look anywhere
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        for (line, used) in code
            .lines()
            .enumerate()
            .filter_map(|(i, line)| Some((i + 1, line.split("crate::").nth(1)?)))
        {
            let to: String = used
                .trim_start_matches('{')
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            assert!(
                layer(&from) <= layer(&to),
                "{}:{line}: `{from}` uses `{to}`, which stands above it",
                file.display()
            );
            arrows += 1;
        }
    }
    assert!(arrows > 100, "the imports were not found");
}

#[test]
fn no_stage_knows_another() {
    let stages = Path::new(ROOT).join("src/stages");
    let names: Vec<String> = secateur::stages::registry::Stage::TAGS
        .iter()
        .map(|tag| (*tag).to_owned())
        .collect();
    for file in files(&stages, "rs") {
        let own = file
            .strip_prefix(&stages)
            .unwrap()
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap()
            .to_owned();
        let text = std::fs::read_to_string(&file).unwrap();
        for name in names
            .iter()
            .filter(|name| *name != own.trim_end_matches(".rs"))
        {
            let uses = text.lines().find(|line| {
                line.contains(&format!("stages::{name}"))
                    || line.trim_start().starts_with(&format!("use super::{name}"))
            });
            assert_eq!(uses, None, "{} knows the stage `{name}`", file.display());
        }
    }
}

#[test]
fn a_stage_is_a_file_and_a_file_fits_a_reading() {
    for tag in secateur::stages::registry::Stage::TAGS {
        assert!(
            Path::new(ROOT)
                .join(format!("src/stages/{tag}.rs"))
                .exists(),
            "type = \"{tag}\" has no file"
        );
    }
    for file in files(&Path::new(ROOT).join("src"), "rs") {
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        assert!(
            lines <= 370,
            "{} has {lines} lines: what in it is a thing of its own?",
            file.display()
        );
    }
}

#[test]
fn every_pipeline_that_ships_is_in_order() {
    let pipelines = files(&Path::new(ROOT).join("pipelines"), "toml");
    assert!(pipelines.len() >= 2);
    for path in pipelines {
        if let Err(invalid) = check(&path, &Overrides::default(), false) {
            let messages: Vec<String> = invalid
                .problems
                .iter()
                .map(|problem| problem.message.clone())
                .collect();
            panic!("{}: {messages:?}", path.display());
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let head: String = text
            .lines()
            .take_while(|line| line.starts_with('#'))
            .collect();
        assert!(
            head.contains("runner") || head.contains("cargo run"),
            "{} does not say how it is run",
            path.display()
        );
    }
}

#[test]
fn every_task_that_ships_is_built_in() {
    for path in files(&Path::new(ROOT).join("datasets"), "toml") {
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(
            Task::built_in_names().any(|built_in| built_in == name),
            "{name} is not built into the program"
        );
    }
}
