//! Product keys: for each stage the hash of everything that its outcome depends on. These are its
//! options, the version of its code, the files it reads, its random streams, the arithmetic of the
//! machine, and the keys of the stages whose values it takes.
//!
//! Stages whose values it does not take have no part in its key: a different `limit` of an
//! `evaluate` stage does not change the key of a later `importance`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Index;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::machine::arithmetic_description;
use crate::pipeline::settings::RunSettings;
use crate::plan::ids::{NodeId, PerNode};
use crate::plan::{Plan, Variant};
use crate::stages::Stage;
use crate::stages::step::Step;
use crate::stages::values::ValueKind;
use secateur_base::files::Fingerprint;
use secateur_data::InputFile;

pub use secateur_store::cache::KEY_HEX_DIGITS;

/// Part of every key. Increase it when the format of stored products changes, or when code outside
/// the hashed sources changes what a stage computes.
const KEY_FORMAT_VERSION: u32 = 1;

/// For each stage type the hash of the sources that its outcome depends on; `build.rs` writes it.
const CODE_VERSIONS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/code_versions.rs"));

/// The version of the code of a stage type.
pub(crate) fn code_version(tag: &str) -> &'static str {
    let mut versions = CODE_VERSIONS.iter();
    versions
        .find(|(name, _)| *name == tag)
        .map_or("", |(_, version)| version)
}

/// The key of one node, and what it was computed from.
#[derive(Clone, Debug)]
pub struct ProductKey {
    pub key: String,
    /// The files that the stage reads and their hashes. A built-in file has a name instead of a
    /// path.
    pub input_hashes: BTreeMap<String, String>,
    /// The values that the stage takes, each with the node that makes it.
    pub(crate) input_nodes: Vec<(ValueKind, NodeId)>,
}

/// The key of every node of a plan.
#[derive(Clone, Debug)]
pub struct ProductKeys {
    by_node: PerNode<ProductKey>,
    files: HashedFiles,
}

/// Files that were hashed, each with its size and time before it was read.
#[derive(Clone, Debug, Default)]
struct HashedFiles {
    by_path: HashMap<PathBuf, (Fingerprint, FileStamp)>,
}

/// Size and modification time: they change when a file is written.
type FileStamp = (u64, Option<SystemTime>);

/// A file that a stage reads cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read `{}`: {source}", .path.display())]
pub struct InputError {
    pub path: PathBuf,
    pub source: std::io::Error,
}

impl Index<NodeId> for ProductKeys {
    type Output = ProductKey;

    fn index(&self, node: NodeId) -> &ProductKey {
        &self.by_node[node]
    }
}

impl ProductKeys {
    /// Hashes every file that the stages of the plan read, and computes the key of every node.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn from_plan(plan: &Plan) -> Result<Self, InputError> {
        let run = &plan.settings.run;
        let arithmetic = arithmetic_description(run.device);
        let mut files = HashedFiles::default();
        let mut by_node: PerNode<Option<ProductKey>> = plan.nodes.iter().map(|_| None).collect();
        for variant in &plan.variants {
            // The values that are valid before the current step, each with the node that made it.
            let mut makers: BTreeMap<ValueKind, NodeId> = BTreeMap::new();
            for (&node, step) in variant.nodes.iter().zip(&variant.steps) {
                if by_node[node].is_none() {
                    let input_nodes = input_nodes(step, &makers);
                    let input_keys = input_keys(&input_nodes, &by_node);
                    let (key, input_hashes) =
                        compute_key(step, run, &arithmetic, &input_keys, &mut files)?;
                    by_node[node] = Some(ProductKey {
                        key,
                        input_hashes,
                        input_nodes,
                    });
                }
                makers.retain(|value, _| !step.stage.spends().contains(value));
                makers.extend(step.stage.makes().iter().map(|&value| (value, node)));
            }
        }
        // Every node belongs to a variant, so every node has a key and `flatten` drops none.
        Ok(Self {
            by_node: by_node.iter().flatten().cloned().collect(),
            files,
        })
    }

    /// The keys of a variant's stages, in their order.
    pub(crate) fn stage_keys(&self, variant: &Variant) -> Vec<&str> {
        let nodes = variant.nodes.iter();
        nodes.map(|&node| self[node].key.as_str()).collect()
    }

    /// Every file that a stage of the plan reads, and its hash.
    pub(crate) fn input_hashes(&self) -> BTreeMap<String, String> {
        let products = self.by_node.iter();
        products
            .flat_map(|product| product.input_hashes.clone())
            .collect()
    }

    /// The first file that makes a node's key out of date: one that was added, removed or changed
    /// since it was hashed.
    pub(crate) fn changed_input(&self, plan: &Plan, node: NodeId) -> Option<String> {
        let hashed = &self[node].input_hashes;
        let stage = &plan.nodes[node].step.stage;
        let current: BTreeSet<String> = stage
            .input_files(plan.settings.run.data.as_deref())
            .iter()
            .map(InputFile::name)
            .collect();
        let added = current.iter().find(|name| !hashed.contains_key(*name));
        let removed = || hashed.keys().find(|name| !current.contains(*name));
        let changed = || {
            hashed
                .keys()
                .find(|path| self.files.has_changed(Path::new(path)))
        };
        added.or_else(removed).or_else(changed).cloned()
    }
}

/// The values that a step takes, each with the node that made it. A value that no earlier step made
/// is one that the stage can do without.
fn input_nodes(step: &Step, makers: &BTreeMap<ValueKind, NodeId>) -> Vec<(ValueKind, NodeId)> {
    let inputs = step.stage.all_inputs().into_iter();
    inputs
        .filter_map(|value| Some((value, *makers.get(&value)?)))
        .collect()
}

/// The names of the values that a step takes, each with the key of the node that made it. These
/// nodes are earlier steps of the variant, so their keys are known.
fn input_keys(
    input_nodes: &[(ValueKind, NodeId)],
    by_node: &PerNode<Option<ProductKey>>,
) -> Vec<Value> {
    let key_of = |node: NodeId| by_node[node].as_ref().map_or("", |product| &product.key);
    input_nodes
        .iter()
        .map(|&(value, node)| json!([value.phrase(), key_of(node)]))
        .collect()
}

/// The key of a step and the hashes of the files that it reads. `input_keys` are the keys of the
/// values that it takes, each with the value's name.
fn compute_key(
    step: &Step,
    run: &RunSettings,
    arithmetic: &str,
    input_keys: &[Value],
    files: &mut HashedFiles,
) -> Result<(String, BTreeMap<String, String>), InputError> {
    let mut input_hashes = BTreeMap::new();
    // The key has file names without folders, so moving a model does not change it.
    let mut names_and_hashes = Vec::new();
    for input in step.stage.input_files(run.data.as_deref()) {
        let (name, hash) = match &input {
            InputFile::OnDisk(path) => {
                let file_name = path.file_name().unwrap_or_default();
                (file_name.to_string_lossy().into_owned(), files.hash(path)?)
            }
            InputFile::BuiltIn { name, content } => {
                let hash = blake3::hash(content.as_bytes()).to_hex().to_string();
                (name.clone(), hash)
            }
        };
        names_and_hashes.push(json!([name, hash]));
        input_hashes.insert(input.name(), hash);
    }
    let stage = &step.stage;
    let key_content = json!({
        "format": KEY_FORMAT_VERSION,
        "code": code_version(stage.tag()),
        "arithmetic": arithmetic,
        "step": step.identity(),
        "seed": stage.stage_type().uses_seed.then_some(run.seed),
        "files": names_and_hashes,
        "from": input_keys,
        "machine": measured_resources(&**stage, run),
    });
    let hash = blake3::hash(key_content.to_string().as_bytes()).to_hex();
    Ok((hash[..KEY_HEX_DIGITS].to_owned(), input_hashes))
}

/// The threads and memory that a run may use, for a stage that measures time and memory; None for
/// the others, whose outcome does not depend on them.
fn measured_resources(stage: &dyn Stage, run: &RunSettings) -> Option<String> {
    stage.stage_type().depends_on_machine.then(|| {
        let threads = rayon::current_num_threads();
        format!("{threads} {:?} {:?}", run.memory, run.stream)
    })
}

impl HashedFiles {
    fn hash(&mut self, path: &Path) -> Result<String, InputError> {
        if let Some((fingerprint, _)) = self.by_path.get(path) {
            return Ok(fingerprint.blake3.clone());
        }
        // The stamp is taken before the file is read, so that a change during the read is noticed.
        let stamp = file_stamp(path).unwrap_or_default();
        let fingerprint = Fingerprint::from_file(path).map_err(|source| InputError {
            path: path.to_owned(),
            source,
        })?;
        let hash = fingerprint.blake3.clone();
        self.by_path.insert(path.to_owned(), (fingerprint, stamp));
        Ok(hash)
    }

    /// Whether the content of a hashed file has changed. It is hashed again only if its size or
    /// modification time differs. Built-in files never change.
    fn has_changed(&self, path: &Path) -> bool {
        self.by_path.get(path).is_some_and(|(fingerprint, stamp)| {
            file_stamp(path) != Some(*stamp) && !fingerprint.matches_file(path)
        })
    }
}

fn file_stamp(path: &Path) -> Option<FileStamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()))
}

/// The code that `build.rs` computes [`CODE_VERSIONS`] with, and its tests.
#[cfg(test)]
#[path = "../../build/code_versions.rs"]
mod code_versions;
