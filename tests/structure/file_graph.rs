//! Which source file of a crate uses which: the graph of files, read from the paths in the code.
//!
//! A path counts wherever it stands, in a `use` declaration or in an expression, if it starts at
//! `crate`, `super`, `self`, the crate's own name, a child module, or a module that the file
//! imported. A path is followed to the file that defines the item:
//!
//! - `mod child;` alone is no edge: it says where the file is, not that its items are used.
//! - A re-export of a descendant (`pub use child::Item;`) is no edge either, unless the file also
//!   uses the item. Whoever imports the item through the re-export gets an edge to `child`.
//! - Code under `#[cfg(test)]` and files named `tests` are left out: a test may use everything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The path of a module inside its crate: `["stages", "prune"]`; empty for the root.
type ModulePath = Vec<String>;

/// For each file, the files that it uses, with the names of the items.
pub type Edges = BTreeMap<PathBuf, BTreeMap<PathBuf, BTreeSet<String>>>;

/// A path in the code with its braces expanded: `use a::{b, c as d}` is `a::b` and `a::c as d`.
#[derive(Debug)]
struct UsedPath {
    segments: Vec<String>,
    /// The name that a `use` declaration binds: the last segment, or what follows `as`.
    bound_name: Option<String>,
    is_public_use: bool,
}

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
pub fn read(folder: &Path, crate_name: &str) -> Edges {
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
pub fn circles(edges: &Edges) -> Vec<Vec<String>> {
    let reached: BTreeMap<&PathBuf, BTreeSet<&PathBuf>> = edges
        .keys()
        .map(|file| (file, reachable(edges, file)))
        .collect();
    let mut seen = BTreeSet::new();
    let mut circles = Vec::new();
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
        circles.push(lines);
    }
    circles
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
            if target.path == file.path || (is_reexport && !is_used_here) {
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

    /// The file that defines an item, and the rest of the path inside that file. `depth` bounds
    /// chains of re-exports.
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
            if depth < 8
                && let Some(target) = self.reexported(&self.files[index], segment)
            {
                let through: Vec<String> = target.into_iter().chain(rest[1..].to_vec()).collect();
                return self.resolve(&through, depth + 1).or(Some((index, rest)));
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

/// Identifiers, `::` and single characters; comments, texts and lifetimes are left out.
fn tokenize(text: &str) -> Vec<String> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut position = 0;
    while position < bytes.len() {
        let rest = &bytes[position..];
        let length = match rest[0] {
            b'/' if rest.starts_with(b"//") => length_until(rest, b"\n"),
            b'/' if rest.starts_with(b"/*") => length_until(rest, b"*/"),
            b'"' => string_length(rest),
            b'r' | b'b' | b'c' if raw_string_length(rest).is_some() => {
                raw_string_length(rest).unwrap()
            }
            b'\'' => quote_length(rest),
            first if first.is_ascii_alphabetic() || first == b'_' => {
                let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
                let length = rest.iter().take_while(|byte| is_part(byte)).count();
                tokens.push(text[position..position + length].to_owned());
                length
            }
            b':' if rest.starts_with(b"::") => {
                tokens.push("::".to_owned());
                2
            }
            first if first.is_ascii_whitespace() || !first.is_ascii() => 1,
            first => {
                tokens.push(char::from(first).to_string());
                1
            }
        };
        position += length;
    }
    tokens
}

fn length_until(rest: &[u8], end: &[u8]) -> usize {
    rest.windows(end.len())
        .position(|window| window == end)
        .map_or(rest.len(), |start| start + end.len())
}

/// The length of `"…"`, where a backslash escapes the next character.
fn string_length(rest: &[u8]) -> usize {
    let mut position = 1;
    while position < rest.len() && rest[position] != b'"' {
        position += if rest[position] == b'\\' { 2 } else { 1 };
    }
    position + 1
}

/// The length of `r"…"`, `r#"…"#`, `br"…"` and the like.
fn raw_string_length(rest: &[u8]) -> Option<usize> {
    let prefix = rest.iter().take_while(|byte| b"rbc".contains(byte)).count();
    if !rest[..prefix].contains(&b'r') {
        return None;
    }
    let hashes = rest[prefix..]
        .iter()
        .take_while(|&&byte| byte == b'#')
        .count();
    let start = prefix + hashes;
    if rest.get(start) != Some(&b'"') {
        return None;
    }
    let end = [&b"\""[..], &vec![b'#'; hashes]].concat();
    Some(start + 1 + length_until(&rest[start + 1..], &end))
}

/// The length of a character such as `'a'` or `'\n'`; of the quote alone where a lifetime follows.
fn quote_length(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        return 2 + length_until(&rest[2..], b"'").max(2);
    }
    // A character of up to four bytes and its closing quote.
    let end = rest.iter().skip(2).take(4).position(|&byte| byte == b'\'');
    match end {
        Some(0) => 3,
        Some(more) if !rest[1].is_ascii() => 3 + more,
        _ => 1,
    }
}

/// Leaves out what follows `#[cfg(test)]`, up to the end of that item.
fn without_tests(tokens: Vec<String>) -> Vec<String> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut position = 0;
    while position < tokens.len() {
        let is_mark = tokens[position..].iter().take(MARK.len()).eq(MARK.iter());
        if !is_mark {
            kept.push(tokens[position].clone());
            position += 1;
            continue;
        }
        let mut depth = 0;
        position += MARK.len();
        while position < tokens.len() {
            match tokens[position].as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            let token = &tokens[position];
            position += 1;
            if depth == 0 && (token == "}" || token == ";") {
                break;
            }
        }
    }
    kept
}

/// All paths of at least two segments, and the bound names of `use` declarations.
fn used_paths(tokens: &[String]) -> Vec<UsedPath> {
    let mut paths = Vec::new();
    let mut position = 0;
    while position < tokens.len() {
        let token = tokens[position].as_str();
        let before = position.checked_sub(1).map_or("", |index| &tokens[index]);
        if token == "use" {
            let is_public_use = before == "pub" || before == ")";
            position += 1;
            let start = paths.len();
            read_tree(tokens, &mut position, &[], &mut paths);
            for path in &mut paths[start..] {
                path.is_public_use = is_public_use;
            }
        } else if is_identifier(token)
            && before != "::"
            && tokens.get(position + 1).is_some_and(|next| next == "::")
        {
            // `$crate::…` in a macro belongs to the place that calls the macro.
            let is_macro_path = before == "$";
            let mut segments = Vec::new();
            while tokens.get(position).is_some_and(|next| is_identifier(next)) {
                segments.push(tokens[position].clone());
                position += 1;
                if tokens.get(position).is_none_or(|next| next != "::") {
                    break;
                }
                position += 1;
            }
            if !is_macro_path {
                paths.push(UsedPath {
                    segments,
                    bound_name: None,
                    is_public_use: false,
                });
            }
        } else {
            position += 1;
        }
    }
    paths
}

/// Reads the tree of a `use` declaration: `a::{b, c::*}`.
fn read_tree(
    tokens: &[String],
    position: &mut usize,
    prefix: &[String],
    paths: &mut Vec<UsedPath>,
) {
    let mut segments = prefix.to_vec();
    while let Some(token) = tokens.get(*position) {
        match token.as_str() {
            "::" => *position += 1,
            "{" => {
                *position += 1;
                while tokens.get(*position).is_some_and(|token| token != "}") {
                    read_tree(tokens, position, &segments, paths);
                    if tokens.get(*position).is_some_and(|token| token == ",") {
                        *position += 1;
                    }
                }
                *position += 1;
                return;
            }
            "as" => {
                let name = tokens.get(*position + 1).cloned();
                *position += 2;
                paths.push(UsedPath {
                    segments,
                    bound_name: name,
                    is_public_use: false,
                });
                return;
            }
            // `a::{self}` is `a`
            "self" if segments.len() == prefix.len() && !prefix.is_empty() => *position += 1,
            token if token == "*" || is_identifier(token) => {
                segments.push(token.to_owned());
                *position += 1;
            }
            _ => break,
        }
    }
    if !segments.is_empty() {
        let bound_name = segments.last().cloned();
        paths.push(UsedPath {
            segments,
            bound_name,
            is_public_use: false,
        });
    }
}

fn is_identifier(token: &str) -> bool {
    token.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
}

test!(circles_are_found_through_reexports_and_expression_paths);
fn circles_are_found_through_reexports_and_expression_paths() {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| {
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("lib.rs", "pub mod a;\nmod b;\nmod c;\nmod d;\n");
    // a -> a/inner through an expression, and a/inner -> b through the re-export in `b`
    write(
        "a/mod.rs",
        "mod inner;\npub fn f() { inner::g(\"crate::d\") } // crate::d::x()\n",
    );
    write(
        "a/inner.rs",
        "use crate::b::{Item as _};\npub fn g(_: &'static str) {}\n",
    );
    write("b/mod.rs", "mod item;\npub use item::Item;\n");
    write(
        "b/item.rs",
        "use crate::c;\npub struct Item;\nfn f() { c::h('\\'', '\"') }\n",
    );
    // c -> a closes the circle
    write(
        "c.rs",
        "use super::a::f;\npub fn h(_: char, _: char) { f() }\n",
    );
    // d uses everything, and only its tests are used
    write(
        "d.rs",
        "use crate::{a, b::Item};\n#[cfg(test)]\nmod tests { use crate::d; }\n",
    );
    let edges = read(folder.path(), "example");
    let path = |file: &str| folder.path().join(file);
    let targets = |file: &str| edges[&path(file)].keys().cloned().collect::<Vec<_>>();
    assert_eq!(targets("lib.rs"), [path(""); 0]);
    assert_eq!(targets("a/mod.rs"), [path("a/inner.rs")]);
    assert_eq!(targets("a/inner.rs"), [path("b/item.rs")]);
    assert_eq!(targets("b/mod.rs"), [path(""); 0]);
    assert_eq!(targets("b/item.rs"), [path("c.rs")]);
    assert_eq!(targets("c.rs"), [path("a/mod.rs")]);
    assert_eq!(targets("d.rs"), [path("a/mod.rs"), path("b/item.rs")]);
    let circles = circles(&edges);
    assert_eq!(circles.len(), 1);
    assert_eq!(circles[0].len(), 4, "{circles:?}");
}
