//! What a stage's outcome depends on, and the key that follows: the hash of its options, its code, the files it reads,
//! its random streams, the arithmetic of the machine, and the keys of the stages whose values it takes.
//!
//! Options that only earlier stages of no concern have are not in it: another `limit` of the dense evaluation leaves the
//! importance as it was.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::plan::ids::{NodeId, PerNode};
use crate::plan::{Plan, Variant};
use crate::stages::registry::{Stage, Step, ValueKind};
use secateur_base::files::Fingerprint;
use secateur_data::InputFile;
use secateur_tensor::{self, Device};

/// Raised whenever a kept product would be read differently, or a stage's surroundings change what it makes.
const KEY_FORMAT_VERSION: u32 = 1;

/// Hexadecimal digits of a key.
pub use secateur_store::cache::KEY_HEX_DIGITS;

/// The version of each stage's code: its name, and a hash of its sources (`build.rs`).
const CODE_VERSIONS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/code_versions.rs"));

/// The program, by name and version.
pub const PROGRAM_VERSION: &str = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));

/// The version of a stage's code.
pub fn code_version(tag: &str) -> &'static str {
    CODE_VERSIONS
        .iter()
        .find(|(name, _)| *name == tag)
        .map_or("", |(_, version)| version)
}

/// The recipe of one stage.
#[derive(Clone, Debug)]
pub struct ProductKey {
    pub key: String,
    /// The files that it reads, and their hashes; what is built in has a name instead of a path.
    pub input_hashes: BTreeMap<String, String>,
    /// The products that it takes, each with the node that makes it.
    pub input_nodes: Vec<(ValueKind, NodeId)>,
}

/// The recipes of a plan, by node.
#[derive(Clone, Debug)]
pub struct ProductKeys {
    by_node: PerNode<ProductKey>,
    files: HashedFiles,
}

/// Files already read, and how they looked then.
#[derive(Clone, Debug, Default)]
struct HashedFiles {
    by_path: HashMap<PathBuf, (Fingerprint, FileStamp)>,
}

/// What changes when a file is written.
type FileStamp = (u64, Option<SystemTime>);

/// A file that a stage reads is gone.
#[derive(Debug, thiserror::Error)]
#[error("cannot read `{}`: {source}", .path.display())]
pub struct InputError {
    pub path: PathBuf,
    pub source: std::io::Error,
}

impl ProductKeys {
    /// Reads every file that a stage of the plan reads, and hashes what follows.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn from_plan(plan: &Plan) -> Result<Self, InputError> {
        let arithmetic = arithmetic_description(plan.settings.run.device);
        let mut files = HashedFiles::default();
        let mut nodes: PerNode<Option<ProductKey>> = plan.nodes.iter().map(|_| None).collect();
        for variant in &plan.variants {
            let mut makers: BTreeMap<ValueKind, NodeId> = BTreeMap::new();
            for (&node, step) in variant.nodes.iter().zip(&variant.steps) {
                if nodes[node].is_none() {
                    let takes: Vec<(ValueKind, NodeId)> = step
                        .stage
                        .all_inputs()
                        .filter_map(|product| Some((product, *makers.get(&product)?)))
                        .collect();
                    let from = takes.iter().map(|&(product, maker)| {
                        let key = nodes[maker].as_ref().map_or("", |recipe| &recipe.key);
                        json!([product.phrase_and_maker().0, key])
                    });
                    let from: Vec<Value> = from.collect();
                    nodes[node] = Some(compute_key(
                        step,
                        plan,
                        from,
                        takes,
                        &arithmetic,
                        &mut files,
                    )?);
                }
                makers.retain(|product, _| !step.stage.spends().contains(product));
                makers.extend(step.stage.makes().iter().map(|&product| (product, node)));
            }
        }
        Ok(Self {
            by_node: nodes.iter().flatten().cloned().collect(),
            files,
        })
    }

    pub fn get(&self, node: NodeId) -> &ProductKey {
        &self.by_node[node]
    }

    /// The keys of a variant's stages, in their order.
    pub fn stage_keys(&self, variant: &Variant) -> Vec<&str> {
        variant
            .nodes
            .iter()
            .map(|&node| self.by_node[node].key.as_str())
            .collect()
    }

    /// Every file that is read, and its hash.
    pub fn input_hashes(&self) -> BTreeMap<String, String> {
        self.by_node
            .iter()
            .flat_map(|recipe| recipe.input_hashes.clone())
            .collect()
    }

    /// A file of those that a node reads that is not what was hashed, was not there, or is gone.
    pub fn changed_input(&self, plan: &Plan, node: NodeId) -> Option<String> {
        let is_changed = |path: &str| {
            let Some((before, then)) = self.files.by_path.get(Path::new(path)) else {
                return false;
            };
            // touched is not changed
            file_stamp(Path::new(path)) != Some(*then) && !before.matches_file(Path::new(path))
        };
        let known = &self.by_node[node].input_hashes;
        let now = plan.nodes[node]
            .step
            .stage
            .input_files(plan.settings.run.data.as_deref());
        let now: BTreeSet<String> = now.into_iter().map(|input| input.name()).collect();
        let other = now
            .iter()
            .find(|name| !known.contains_key(*name))
            .or_else(|| known.keys().find(|name| !now.contains(*name)));
        other
            .or_else(|| known.keys().find(|path| is_changed(path)))
            .cloned()
    }
}

fn compute_key(
    step: &Step,
    plan: &Plan,
    from: Vec<Value>,
    takes: Vec<(ValueKind, NodeId)>,
    arithmetic: &str,
    files: &mut HashedFiles,
) -> Result<ProductKey, InputError> {
    let (mut inputs, mut contents) = (BTreeMap::new(), Vec::new());
    for input in step.stage.input_files(plan.settings.run.data.as_deref()) {
        let (name, hash) = match &input {
            InputFile::OnDisk(path) => {
                let name = path
                    .file_name()
                    .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
                (name, files.hash(path)?)
            }
            InputFile::BuiltIn { name, content } => (
                name.clone(),
                blake3::hash(content.as_bytes()).to_hex().to_string(),
            ),
        };
        contents.push(json!([name, hash]));
        inputs.insert(input.name(), hash);
    }
    let tag = step.stage.tag();
    let run = &plan.settings.run;
    // what is measured of the machine depends on how much of it there is
    let machine = || {
        format!(
            "{} {:?} {:?}",
            rayon::current_num_threads(),
            run.memory,
            run.stream
        )
    };
    let machine = matches!(step.stage, Stage::Profile(_)).then(machine);
    let all = json!({
        "format": KEY_FORMAT_VERSION, "code": code_version(tag), "arithmetic": arithmetic, "step": step.identity(),
        "seed": step.stage.uses_seed().then_some(plan.settings.run.seed), "files": contents, "from": from, "machine": machine,
    });
    Ok(ProductKey {
        key: blake3::hash(all.to_string().as_bytes()).to_hex()[..KEY_HEX_DIGITS].to_owned(),
        input_hashes: inputs,
        input_nodes: takes,
    })
}

impl HashedFiles {
    fn hash(&mut self, path: &Path) -> Result<String, InputError> {
        if let Some((found, _)) = self.by_path.get(path) {
            return Ok(found.blake3.clone());
        }
        let failed = |source| InputError {
            path: path.to_owned(),
            source,
        };
        let before = file_stamp(path).unwrap_or_default();
        let found = Fingerprint::from_file(path).map_err(failed)?;
        let hash = found.blake3.clone();
        self.by_path.insert(path.to_owned(), (found, before));
        Ok(hash)
    }
}

fn file_stamp(path: &Path) -> Option<FileStamp> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.len(), found.modified().ok()))
}

/// What sums may depend on in their last bits: the element, the device, and the processor, whose vector units and caches
/// decide how a product of matrices is cut into parts.
pub fn arithmetic_description(on: Device) -> String {
    format!(
        "float32, {}, {}, {}",
        device_description(on),
        std::env::consts::ARCH,
        cpu_description()
    )
}

/// `cpu`; or `cuda:0`, with the GPU's name, cuBLAS's version, and its driver's as far as the system tells.
pub fn device_description(on: Device) -> String {
    let found = secateur_tensor::resolve_device(on).unwrap_or(on);
    let Some(description) = secateur_tensor::device_description(found) else {
        return found.to_string();
    };
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let driver = driver
        .lines()
        .find_map(|line| line.strip_prefix("NVRM version:"))
        .unwrap_or_default()
        .trim();
    format!("{found} ({description}; {driver})")
}

/// The processor's name, as far as the system tells, and the vector instructions that it has.
pub fn cpu_description() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(detect_cpu)
}

fn detect_cpu() -> String {
    let cpu = sysinfo::RefreshKind::nothing().with_cpu(sysinfo::CpuRefreshKind::nothing());
    let system = sysinfo::System::new_with_specifics(cpu);
    let name = system
        .cpus()
        .first()
        .map(|cpu| cpu.brand().trim().to_owned())
        .filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    match vector_extensions() {
        Some(vectors) => format!("{name} ({vectors})"),
        None => name,
    }
}

#[cfg(target_arch = "x86_64")]
fn vector_extensions() -> Option<&'static str> {
    if is_x86_feature_detected!("avx512f") {
        Some("AVX-512")
    } else if is_x86_feature_detected!("fma") {
        Some("AVX2, FMA")
    } else {
        None
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn vectors() -> Option<&'static str> {
    None
}
