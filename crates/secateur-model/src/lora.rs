//! Low-rank adapters (Hu et al. 2021; LLM-Pruner, equation 6): y = x·Wᵀ + (alpha / rank) ·
//! dropout(x)·Aᵀ·Bᵀ, in PEFT's names and layout, so that an adapter moves between the two programs.
//!
//! An adapter belongs to a logical matrix. PEFT adapts stored modules: where a module stores
//! several matrices fused, their n adapters of rank r are written as one of rank n·r. Its A is
//! their A stacked; row i of its B is the row of the part's B that belongs to row i of the fused
//! matrix, in the r columns of that part, and zero elsewhere. B·A then has the rows of each part's
//! product in the fused order.

use std::collections::BTreeMap;
use std::path::Path;

use rand::RngExt;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::Model;
use crate::family::{Family, FusedModule};
use crate::stored::{self, SafetensorsWriteError, StorageDtype, TensorToWrite};
use crate::wiring::{BlockTensor, TensorId};
use secateur_base::random::Seed;
use secateur_tensor::{LowRank, Weight};

mod adapter_file;
use adapter_file::AdapterFile;

/// The two factors of the adapter of one matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraFactors {
    /// (rank, inputs)
    pub a: Weight,
    /// (outputs, rank)
    pub b: Weight,
}

/// The adapters of a model's matrices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adapter {
    pub(crate) family: &'static Family,
    /// Width of a head of the model; the order of the rows of fused tensors depends on it.
    head_dim: usize,
    /// Rows of every A and columns of every B.
    pub rank: usize,
    /// The adapters' output is scaled by alpha / rank.
    pub alpha: f64,
    /// By layer and matrix.
    pub factors: BTreeMap<(usize, BlockTensor), LoraFactors>,
}

/// An adapter file does not fit.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error("cannot read `{path}`: {source}")]
    Read {
        path: String,
        source: std::io::Error,
    },
    #[error("`{path}` is not a whole safetensors file: {message}")]
    Safetensors { path: String, message: String },
    #[error("`{path}` has no tensor `{name}`")]
    MissingTensor { path: String, name: String },
    #[error(
        "`{path}`: `{name}` has shape {found:?} of {dtype}, the model and the rank ask for \
         {expected:?} of F32"
    )]
    Shape {
        path: String,
        name: String,
        found: Vec<usize>,
        dtype: String,
        expected: [usize; 2],
    },
    #[error("`{path}` holds the tensor `{name}`, which no target of this stage uses")]
    UnusedTensor { path: String, name: String },
    #[error(
        "`{path}`: `{name}` mixes {parts}: row {row} has a value in column {col}, which belongs to \
         another of them; only an adapter whose ranks are split between them can be read"
    )]
    NotBlockStructured {
        path: String,
        name: String,
        parts: String,
        row: usize,
        col: usize,
    },
}

/// A fused module with those of its parts that have an adapter.
struct FusedTargets {
    module: &'static FusedModule,
    /// The parts that have an adapter, in the order of the parts; at least one.
    targets: Vec<BlockTensor>,
}

impl FusedTargets {
    /// For each row of the fused tensor the index of the target that it belongs to, if any, and its
    /// row in its part.
    fn row_order(&self, part_rows: &[usize], head_dim: usize) -> Vec<(Option<usize>, usize)> {
        let target_of_part = |part: usize| {
            let tensor = self.module.parts[part];
            self.targets.iter().position(|&target| target == tensor)
        };
        self.module
            .row_order(part_rows, head_dim)
            .into_iter()
            .map(|(part, row)| (target_of_part(part), row))
            .collect()
    }
}

/// Splits targets into matrices that are stored alone, and parts of fused modules.
fn split_targets(
    family: &Family,
    targets: impl Iterator<Item = BlockTensor> + Clone,
) -> (Vec<BlockTensor>, Vec<FusedTargets>) {
    let alone = targets
        .clone()
        .filter(|&target| family.fused_module(target).is_none())
        .collect();
    let targets_in_module = |module: &'static FusedModule| FusedTargets {
        module,
        targets: module
            .parts
            .iter()
            .copied()
            .filter(|&part| targets.clone().any(|target| target == part))
            .collect(),
    };
    let fused = family
        .fused
        .iter()
        .map(targets_in_module)
        .filter(|fused| !fused.targets.is_empty())
        .collect();
    (alone, fused)
}

impl Adapter {
    /// A is drawn uniformly within ±1/√inputs (Kaiming with a = √5, PEFT's default) and B is zero,
    /// so the adapters change nothing before they are trained.
    pub fn new(
        model: &Model,
        targets: &[BlockTensor],
        rank: usize,
        alpha: f64,
        seed: Seed,
    ) -> Self {
        let mut factors = BTreeMap::new();
        for (layer, block) in model.blocks.iter().enumerate() {
            for &tensor in targets {
                let (outputs, inputs) = (block[tensor].rows(), block[tensor].cols());
                let name = model.family.tensor_name(TensorId::Block(layer, tensor));
                let mut stream = seed.derive(&name).rng();
                let bound = 1.0 / (inputs as f32).sqrt();
                let a = (0..rank * inputs)
                    .map(|_| stream.random_range(-bound..bound))
                    .collect();
                let b = vec![0.0; outputs * rank];
                factors.insert(
                    (layer, tensor),
                    LoraFactors {
                        a: Weight::new(a, rank, inputs),
                        b: Weight::new(b, outputs, rank),
                    },
                );
            }
        }
        Self::from_factors(model, rank, alpha, factors)
    }

    /// An adapter of a model from its factors.
    fn from_factors(
        model: &Model,
        rank: usize,
        alpha: f64,
        factors: BTreeMap<(usize, BlockTensor), LoraFactors>,
    ) -> Self {
        Self {
            family: model.family,
            head_dim: model.config.head_dim,
            rank,
            alpha,
            factors,
        }
    }

    /// Reads safetensors in PEFT's layout. The file must hold every factor in its shape, and no
    /// other tensors.
    pub fn load(
        path: &Path,
        model: &Model,
        targets: &[BlockTensor],
        rank: usize,
        alpha: f64,
    ) -> Result<Self, AdapterError> {
        let path_text = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| AdapterError::Read {
            path: path_text.clone(),
            source,
        })?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| AdapterError::Safetensors {
            path: path_text.clone(),
            message: e.to_string(),
        })?;
        let mut file = AdapterFile {
            path: path_text,
            tensors,
            used: Vec::new(),
        };
        let family = model.family;
        let (alone, fused) = split_targets(family, targets.iter().copied());
        let mut factors = BTreeMap::new();
        for (layer, block) in model.blocks.iter().enumerate() {
            for &tensor in &alone {
                let (outputs, inputs) = (block[tensor].rows(), block[tensor].cols());
                let name = |factor| peft_tensor_name(family, layer, tensor, factor);
                let a = file.read(name('A'), rank, inputs)?;
                let b = file.read(name('B'), outputs, rank)?;
                factors.insert((layer, tensor), LoraFactors { a, b });
            }
            for module in &fused {
                for (tensor, pair) in file.read_fused(model, layer, module, rank)? {
                    factors.insert((layer, tensor), pair);
                }
            }
        }
        file.check_all_used()?;
        Ok(Self::from_factors(model, rank, alpha, factors))
    }

    /// The matrices that have adapters in any layer.
    fn targets(&self) -> impl Iterator<Item = BlockTensor> + Clone {
        let is_target =
            |tensor: &BlockTensor| self.factors.keys().any(|(_, target)| target == tensor);
        self.family.matrices().filter(is_target)
    }

    /// Writes the adapter as safetensors in PEFT's layout.
    pub fn save(&self, path: &Path) -> Result<(), SafetensorsWriteError> {
        let (_, fused) = split_targets(self.family, self.targets());
        let layers = self.factors.keys().map(|(layer, _)| layer + 1).max();
        // A fused adapter has the name of its module, which every target of the module yields.
        let mut combined: Vec<(usize, BlockTensor, LoraFactors)> = Vec::new();
        for layer in 0..layers.unwrap_or(0) {
            for module in &fused {
                let factors = self.fuse(layer, module);
                combined.extend(factors.map(|factors| (layer, module.targets[0], factors)));
            }
        }
        let is_alone = |tensor: BlockTensor| self.family.fused_module(tensor).is_none();
        let alone = self
            .factors
            .iter()
            .filter(|((_, tensor), _)| is_alone(*tensor))
            .map(|(&(layer, tensor), factors)| (layer, tensor, factors));
        let fused_factors = combined
            .iter()
            .map(|(layer, tensor, factors)| (*layer, *tensor, factors));
        let tensors = alone
            .chain(fused_factors)
            .flat_map(|(layer, tensor, factors)| {
                let name = |factor| peft_tensor_name(self.family, layer, tensor, factor);
                [
                    TensorToWrite::matrix(name('A'), &factors.a),
                    TensorToWrite::matrix(name('B'), &factors.b),
                ]
            });
        stored::write_safetensors(path, StorageDtype::Float32, tensors)
    }

    /// One pair of factors for the n targets of a fused module in a layer, as `read_fused` reads
    /// it: A is (n·rank, inputs), B is (fused rows, n·rank). None if a target has no adapter there.
    fn fuse(&self, layer: usize, fused: &FusedTargets) -> Option<LoraFactors> {
        let pairs: Vec<&LoraFactors> = fused
            .targets
            .iter()
            .map(|&target| self.factors.get(&(layer, target)))
            .collect::<Option<_>>()?;
        let (rank, inputs) = (self.rank, pairs[0].a.cols());
        let fused_rank = pairs.len() * rank;
        let a: Vec<f32> = pairs
            .iter()
            .flat_map(|pair| pair.a.values())
            .copied()
            .collect();
        // The rows of a part are those of its B. A part without an adapter has no B; it has as many
        // rows as the other parts.
        let rows_of_part = |part: &BlockTensor| {
            let target = fused.targets.iter().position(|target| target == part);
            pairs[target.unwrap_or(0)].b.rows()
        };
        let part_rows: Vec<usize> = fused.module.parts.iter().map(rows_of_part).collect();
        let order = fused.row_order(&part_rows, self.head_dim);
        let mut b = vec![0.0; order.len() * fused_rank];
        for (values, (owner, row)) in b.chunks_exact_mut(fused_rank).zip(&order) {
            if let Some(target) = *owner {
                let source = pairs[target].b.values();
                values[target * rank..(target + 1) * rank]
                    .copy_from_slice(&source[row * rank..(row + 1) * rank]);
            }
        }
        Some(LoraFactors {
            a: Weight::new(a, fused_rank, inputs),
            b: Weight::new(b, order.len(), fused_rank),
        })
    }

    /// PEFT's `adapter_config.json`, with its keys and in its order. For the adapter of a fused
    /// module with n targets the patterns set the rank n·rank and the alpha n·alpha, so that alpha /
    /// rank is the same.
    ///
    /// `base_model`: the folder of the model that the adapter was trained on, if it has one.
    /// `dropout`: the share of an adapter's inputs that was set to zero in training.
    pub fn peft_config(&self, base_model: Option<&str>, dropout: f64) -> serde_json::Value {
        let (_, fused) = split_targets(self.family, self.targets());
        let mut modules: Vec<&str> = self
            .targets()
            .map(|tensor| self.family.peft_module(tensor))
            .collect();
        modules.sort_unstable();
        modules.dedup();
        let (mut ranks, mut alphas) = (serde_json::Map::new(), serde_json::Map::new());
        for module in fused.iter().filter(|module| module.targets.len() > 1) {
            let (name, count) = (
                self.family.peft_module(module.targets[0]),
                module.targets.len(),
            );
            ranks.insert(name.to_owned(), (count * self.rank).into());
            alphas.insert(name.to_owned(), json_number(count as f64 * self.alpha));
        }
        serde_json::json!({
            "alpha_pattern": alphas,
            "auto_mapping": null,
            "base_model_name_or_path": base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": json_number(self.alpha),
            "lora_dropout": dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": ranks,
            "revision": null,
            "target_modules": modules,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": false,
        })
    }

    /// The factor of B·A: alpha / rank.
    pub fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }

    /// The model with W + (alpha / rank) · B·A in place of W.
    pub fn merge_into(&self, model: &Model) -> Model {
        let mut merged = model.clone();
        for (&(layer, tensor), LoraFactors { a, b }) in &self.factors {
            let low_rank = LowRank {
                a: a.clone(),
                b: b.clone(),
                scale: self.scale(),
            };
            merged.blocks[layer][tensor] = model.blocks[layer][tensor].add_low_rank(low_rank);
        }
        merged
    }
}

/// A number as PEFT writes it: whole if it is.
fn json_number(number: f64) -> serde_json::Value {
    match number.fract() == 0.0 && number.abs() < 1e15 {
        true => (number as i64).into(),
        false => number.into(),
    }
}

/// PEFT's name of a factor of a matrix's adapter. `factor`: `A` or `B`.
fn peft_tensor_name(family: &Family, layer: usize, tensor: BlockTensor, factor: char) -> String {
    let matrix = family.stored_name(TensorId::Block(layer, tensor));
    format!(
        "base_model.model.{}.lora_{factor}.weight",
        matrix.trim_end_matches(".weight")
    )
}
