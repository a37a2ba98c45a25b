//! Which source file of a crate uses which: the graph of files, read from the paths in the code.
//!
//! A path counts wherever it stands, in a `use` declaration or in an expression, if it starts at
//! `crate`, `super`, `self`, the crate's own name, a child module, or a module that the file
//! imported. A path is followed to the file that defines the item:
//!
//! - `mod child;` alone is no edge: it says where the file is, not that its items are used.
//! - A re-export of a descendant (`pub use child::Item;`) is no edge either, unless the file also
//!   uses the item. Whoever imports the item through the re-export gets an edge to `child`.
//! - A module that is split into files is one unit: that a part uses items of the module above it
//!   (`prune/decide.rs` uses `super::Options` of `prune.rs`) is no edge. The root of the crate is
//!   not such a module: if it uses a file that uses it, the two are a cycle.
//! - Code under `#[cfg(test)]` and files named `tests` are left out: tests may use every file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::source_paths::{UsedPath, tokenize, used_paths, without_tests};

/// The length at which a chain of re-exports is no longer followed.
const MAX_REEXPORTS: usize = 8;

/// The path of a module inside its crate: `["stages", "prune"]`; empty for the root.
type ModulePath = Vec<String>;

/// For each file, the files that it uses, with the names of the items.
pub(crate) type Edges = BTreeMap<PathBuf, BTreeMap<PathBuf, BTreeSet<String>>>;

struct SourceFile {
    path: PathBuf,
    module: ModulePath,
    tokens: Vec<String>,
    uses: Vec<UsedPath>,
}

/// The files of one crate.
struct SourceTree {
    crate_name: String,
    files: Vec<SourceFile>,
    by_module: BTreeMap<ModulePath, usize>,
}

/// The edges between the files of the crate whose sources are in `folder`.
pub(crate) fn read(folder: &Path, crate_name: &str) -> Edges {
    let mut tree = SourceTree {
        crate_name: crate_name.to_owned(),
        files: Vec::new(),
        by_module: BTreeMap::new(),
    };
    for path in super::files(folder, "rs") {
        let Some(module) = module_path(folder, &path) else {
            continue;
        };
        let tokens = without_tests(tokenize(&std::fs::read_to_string(&path).unwrap()));
        let uses = used_paths(&tokens);
        // A binary beside a library is a second root: its modules are found through the first.
        let is_second_root = module.is_empty() && path.ends_with("main.rs");
        if !is_second_root || !folder.join("lib.rs").exists() {
            tree.by_module.insert(module.clone(), tree.files.len());
        }
        tree.files.push(SourceFile {
            path,
            module,
            tokens,
            uses,
        });
    }
    tree.files
        .iter()
        .map(|file| (file.path.clone(), tree.edges_of(file)))
        .collect()
}

/// The groups of files that reach each other, each as the edges inside it.
pub(crate) fn cycles(edges: &Edges) -> Vec<Vec<String>> {
    let reached: BTreeMap<&PathBuf, BTreeSet<&PathBuf>> = edges
        .keys()
        .map(|file| (file, reachable(edges, file)))
        .collect();
    let mut seen = BTreeSet::new();
    let mut cycles = Vec::new();
    for file in edges.keys().filter(|file| reached[file].contains(file)) {
        if seen.contains(file) {
            continue;
        }
        let members: BTreeSet<&PathBuf> = reached[file]
            .iter()
            .copied()
            .filter(|other| reached[other].contains(file))
            .collect();
        let mut lines = Vec::new();
        for member in &members {
            for (target, names) in &edges[*member] {
                if members.contains(target) {
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    lines.push(format!(
                        "{} -> {}: {}",
                        member.display(),
                        target.display(),
                        names.join(", ")
                    ));
                }
            }
        }
        seen.extend(members);
        cycles.push(lines);
    }
    cycles
}

fn reachable<'e>(edges: &'e Edges, start: &PathBuf) -> BTreeSet<&'e PathBuf> {
    let mut found = BTreeSet::new();
    let mut pending: Vec<&PathBuf> = edges[start].keys().collect();
    while let Some(file) = pending.pop() {
        if found.insert(file) {
            pending.extend(edges[file].keys());
        }
    }
    found
}

/// `src/stages/prune.rs` and `src/stages/prune/mod.rs` are the module `stages::prune`; `None` for
/// the files of tests.
fn module_path(folder: &Path, file: &Path) -> Option<ModulePath> {
    let inside = file.strip_prefix(folder).unwrap().with_extension("");
    let mut module: ModulePath = inside
        .components()
        .map(|part| part.as_os_str().to_str().unwrap().to_owned())
        .collect();
    if module.iter().any(|part| part == "tests") {
        return None;
    }
    let is_root = module.len() == 1 && ["lib", "main"].contains(&module[0].as_str());
    if is_root || module.last().is_some_and(|part| part == "mod") {
        module.pop();
    }
    Some(module)
}

impl SourceTree {
    fn edges_of(&self, file: &SourceFile) -> BTreeMap<PathBuf, BTreeSet<String>> {
        let mut edges: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
        for used in &file.uses {
            let Some(path) = self.absolute(file, &used.segments) else {
                continue;
            };
            let Some((target, rest)) = self.resolve(&path, 0) else {
                continue;
            };
            let target = &self.files[target];
            let is_reexport = used.is_public_use && is_below(&target.module, &file.module);
            let is_used_here = used
                .bound_name
                .as_ref()
                .is_some_and(|name| file.mentions_outside_use(name));
            let is_part_of_target =
                !target.module.is_empty() && is_below(&file.module, &target.module);
            if target.path == file.path || is_part_of_target || (is_reexport && !is_used_here) {
                continue;
            }
            let name = if rest.is_empty() {
                "(the module)".to_owned()
            } else {
                rest.join("::")
            };
            edges.entry(target.path.clone()).or_default().insert(name);
        }
        edges
    }

    /// A path of the code as a path from the crate's root; `None` where it leads out of the crate.
    fn absolute(&self, file: &SourceFile, segments: &[String]) -> Option<Vec<String>> {
        let (first, mut rest) = segments.split_first()?;
        let mut start = file.module.clone();
        match first.as_str() {
            "crate" => start.clear(),
            name if name == self.crate_name => start.clear(),
            "self" => {}
            "super" => {
                start.pop()?;
                while rest.first().is_some_and(|segment| segment == "super") {
                    start.pop()?;
                    rest = &rest[1..];
                }
            }
            name => {
                start.push(name.to_owned());
                if !self.by_module.contains_key(&start) {
                    start = self.imported_module(file, name)?;
                }
            }
        }
        start.extend(rest.iter().cloned());
        Some(start)
    }

    /// The module that the file imported under this name.
    fn imported_module(&self, file: &SourceFile, name: &str) -> Option<ModulePath> {
        let import = file.uses.iter().find(|used| {
            let starts_elsewhere = used.segments.first().is_some_and(|first| first != name);
            starts_elsewhere && used.bound_name.as_deref() == Some(name)
        })?;
        let path = self.absolute(file, &import.segments)?;
        self.by_module.contains_key(&path).then_some(path)
    }

    /// The file that defines an item, and the rest of the path inside that file. `depth` is the
    /// number of re-exports that were followed.
    fn resolve(&self, path: &[String], depth: usize) -> Option<(usize, Vec<String>)> {
        let mut module = ModulePath::new();
        let mut index = *self.by_module.get(&module)?;
        for (position, segment) in path.iter().enumerate() {
            module.push(segment.clone());
            if let Some(&child) = self.by_module.get(&module) {
                index = child;
                continue;
            }
            let rest = path[position..].to_vec();
            if depth < MAX_REEXPORTS
                && let Some(target) = self.reexported(&self.files[index], segment)
            {
                let target_path: Vec<String> =
                    target.into_iter().chain(rest[1..].to_vec()).collect();
                return self
                    .resolve(&target_path, depth + 1)
                    .or(Some((index, rest)));
            }
            return Some((index, rest));
        }
        Some((index, Vec::new()))
    }

    /// Where a module re-exports a name from: `pub use child::Item`, or `pub use child::*` where
    /// the child defines the name.
    fn reexported(&self, file: &SourceFile, name: &str) -> Option<Vec<String>> {
        for used in file.uses.iter().filter(|used| used.is_public_use) {
            let Some(path) = self.absolute(file, &used.segments) else {
                continue;
            };
            if used.bound_name.as_deref() == Some(name) {
                return Some(path);
            }
            if path.last().is_some_and(|last| last == "*") {
                let module = &path[..path.len() - 1];
                let child = self.by_module.get(module).map(|&index| &self.files[index]);
                if child.is_some_and(|child| child.defines(name)) {
                    return Some(module.iter().cloned().chain([name.to_owned()]).collect());
                }
            }
        }
        None
    }
}

fn is_below(module: &[String], ancestor: &[String]) -> bool {
    module.len() > ancestor.len() && module.starts_with(ancestor)
}

impl SourceFile {
    /// Whether a name occurs in the code apart from `use` and `mod` declarations.
    fn mentions_outside_use(&self, name: &str) -> bool {
        let mut in_declaration = false;
        let mut previous = "";
        for token in &self.tokens {
            match token.as_str() {
                "use" | "mod" => in_declaration = true,
                ";" => in_declaration = false,
                other if other == name && !in_declaration && previous != "." => return true,
                _ => {}
            }
            previous = token;
        }
        false
    }

    fn defines(&self, name: &str) -> bool {
        const KEYWORDS: [&str; 8] = [
            "fn", "struct", "enum", "trait", "type", "const", "static", "union",
        ];
        self.tokens
            .windows(2)
            .any(|pair| KEYWORDS.contains(&pair[0].as_str()) && pair[1] == name)
    }
}

test!(cycles_are_found_through_reexports_and_expression_paths);
fn cycles_are_found_through_reexports_and_expression_paths() {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| {
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("lib.rs", "pub mod a;\nmod b;\nmod c;\nmod d;\n");
    // a -> a/inner through an expression, and a/inner -> b/item through the re-export in `b`.
    write(
        "a/mod.rs",
        "mod inner;\npub fn f() { inner::g(\"crate::d\") } // crate::d::x()\n",
    );
    write(
        "a/inner.rs",
        "use super::f as _;\nuse crate::b::{Item as _};\npub fn g(_: &'static str) {}\n",
    );
    write("b/mod.rs", "mod item;\npub use item::Item;\n");
    write(
        "b/item.rs",
        "use crate::c;\npub struct Item;\nfn f() { c::h('\\'', '\"') }\n",
    );
    // c -> a closes the cycle.
    write(
        "c.rs",
        "use super::a::f;\npub fn h(_: char, _: char) { f() }\n",
    );
    // d uses a and b, and only its own tests use d.
    write(
        "d.rs",
        "use crate::{a, b::Item};\n#[cfg(test)]\nmod tests { use crate::d; }\n",
    );
    let edges = read(folder.path(), "example");
    let path = |file: &str| folder.path().join(file);
    let targets = |file: &str| edges[&path(file)].keys().cloned().collect::<Vec<_>>();
    assert_eq!(targets("lib.rs"), Vec::<PathBuf>::new());
    assert_eq!(targets("a/mod.rs"), [path("a/inner.rs")]);
    assert_eq!(targets("a/inner.rs"), [path("b/item.rs")]);
    assert_eq!(targets("b/mod.rs"), Vec::<PathBuf>::new());
    assert_eq!(targets("b/item.rs"), [path("c.rs")]);
    assert_eq!(targets("c.rs"), [path("a/mod.rs")]);
    assert_eq!(targets("d.rs"), [path("a/mod.rs"), path("b/item.rs")]);
    let cycles = cycles(&edges);
    assert_eq!(cycles.len(), 1);
    assert_eq!(cycles[0].len(), 4, "{cycles:?}");
}
