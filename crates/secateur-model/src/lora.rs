//! Low-rank adapters (Hu et al. 2021; LLM-Pruner, equation 6):
//! y = x·Wᵀ + (alpha / rank) · dropout(x)·Aᵀ·Bᵀ, in PEFT's names and layout, so that an adapter moves
//! between the two programs.
//!
//! An adapter stands beside a logical matrix. PEFT adapts stored modules: where a module stores several
//! matrices fused, their n adapters of rank r are written as one of rank n·r. Its A is their A stacked;
//! row i of its B is the row of the part's B that belongs to row i of the fused matrix, in the r columns
//! of that part, and zero elsewhere. B·A then has the rows of each part's product in the fused order.

use std::collections::BTreeMap;
use std::path::Path;

use rand::RngExt;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};

use crate::Model;
use crate::family::{Family, FusedModule};
use crate::stored::{self, SafetensorsWriteError, StorageDtype, TensorToWrite};
use crate::wiring::{BlockTensor, TensorId};
use secateur_base::random::Seed;
use secateur_tensor::{LowRank, Weight};

/// The two factors beside one matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraFactors {
    /// (rank, inputs)
    pub a: Weight,
    /// (outputs, rank)
    pub b: Weight,
}

/// Adapters beside the matrices of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adapter {
    pub(crate) family: &'static Family,
    /// Width of a head of the model, which fused rows are ordered by.
    head_dim: usize,
    pub rank: usize,
    pub alpha: f64,
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
        "`{path}`: `{name}` has shape {found:?} of {dtype}, the model and the rank ask for {expected:?} of F32"
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
        "`{path}`: `{name}` mixes {parts}: row {row} has a value in column {col}, which belongs to another \
         of them; only an adapter whose ranks are split between them can be read"
    )]
    NotBlockStructured {
        path: String,
        name: String,
        parts: String,
        row: usize,
        col: usize,
    },
}

/// Adapters of the parts of one fused module that have one, in the order of the parts.
struct FusedTargets {
    module: &'static FusedModule,
    /// The parts that have an adapter.
    targets: Vec<BlockTensor>,
}

impl FusedTargets {
    /// For each row of the fused tensor the target that it belongs to, if any, and its row there.
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

/// The targets of a family, fused modules apart.
fn split_targets(
    family: &Family,
    targets: impl Iterator<Item = BlockTensor> + Clone,
) -> (Vec<BlockTensor>, Vec<FusedTargets>) {
    let alone = targets
        .clone()
        .filter(|&target| family.fused_module(target).is_none())
        .collect();
    let in_module = |module: &'static FusedModule| FusedTargets {
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
        .map(in_module)
        .filter(|fused| !fused.targets.is_empty())
        .collect();
    (alone, fused)
}

/// A safetensors file of factors while it is read.
struct AdapterFile<'a> {
    path: String,
    tensors: SafeTensors<'a>,
    used: Vec<String>,
}

impl AdapterFile<'_> {
    /// A factor of this shape.
    fn read(&mut self, name: String, rows: usize, cols: usize) -> Result<Weight, AdapterError> {
        let tensor = self
            .tensors
            .tensor(&name)
            .map_err(|_| AdapterError::MissingTensor {
                path: self.path.clone(),
                name: name.clone(),
            })?;
        if tensor.dtype() != Dtype::F32 || tensor.shape() != [rows, cols] {
            return Err(AdapterError::Shape {
                path: self.path.clone(),
                found: tensor.shape().to_vec(),
                dtype: format!("{:?}", tensor.dtype()),
                name,
                expected: [rows, cols],
            });
        }
        let values = tensor
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        self.used.push(name);
        Ok(Weight::new(values, rows, cols))
    }

    /// The factors of a fused module, one pair for each target.
    fn read_fused(
        &mut self,
        model: &Model,
        layer: usize,
        fused: &FusedTargets,
        rank: usize,
    ) -> Result<Vec<(BlockTensor, LoraFactors)>, AdapterError> {
        let block = &model.blocks[layer];
        let part_rows: Vec<usize> = fused
            .module
            .parts
            .iter()
            .map(|&part| block[part].rows())
            .collect();
        let (count, inputs) = (fused.targets.len(), block[fused.targets[0]].cols());
        let name = |factor| peft_tensor_name(model.family, layer, fused.targets[0], factor);
        let stacked_a = self.read(name('A'), count * rank, inputs)?;
        let fused_b = self.read(name('B'), part_rows.iter().sum(), count * rank)?;
        let (a_values, b_values) = (stacked_a.values(), fused_b.values());
        let mut b_of_target: Vec<Vec<f32>> = fused
            .targets
            .iter()
            .map(|&target| vec![0.0; block[target].rows() * rank])
            .collect();
        let order = fused.row_order(&part_rows, model.config.head_dim);
        let rows = b_values.chunks_exact(count * rank);
        for (row, (values, (owner, part_row))) in rows.zip(order).enumerate() {
            for (col, &value) in values.iter().enumerate() {
                if owner == Some(col / rank) {
                    b_of_target[col / rank][part_row * rank + col % rank] = value;
                } else if value != 0.0 {
                    let roles: Vec<&str> = fused.targets.iter().map(|part| part.role()).collect();
                    return Err(AdapterError::NotBlockStructured {
                        path: self.path.clone(),
                        name: name('B'),
                        parts: roles.join(", "),
                        row,
                        col,
                    });
                }
            }
        }
        let factors = fused.targets.iter().zip(b_of_target).enumerate();
        Ok(factors
            .map(|(index, (&target, b))| {
                let len = rank * inputs;
                let a = a_values[index * len..(index + 1) * len].to_vec();
                let factors = LoraFactors {
                    a: Weight::new(a, rank, inputs),
                    b: Weight::new(b, block[target].rows(), rank),
                };
                (target, factors)
            })
            .collect())
    }

    /// An error if the file holds a tensor that was not read.
    fn check_all_used(&self) -> Result<(), AdapterError> {
        let is_unused = |name: &&str| !self.used.iter().any(|used| used == name);
        match self.tensors.names().into_iter().find(is_unused) {
            Some(name) => Err(AdapterError::UnusedTensor {
                path: self.path.clone(),
                name: name.to_owned(),
            }),
            None => Ok(()),
        }
    }
}

impl Adapter {
    /// A drawn uniformly within ±1/√inputs (Kaiming with a = √5, PEFT's default), B zero: the model is
    /// unchanged.
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

    /// Reads safetensors in PEFT's layout; every factor must be there and fit, and nothing else may be.
    pub fn load(
        path: &Path,
        model: &Model,
        targets: &[BlockTensor],
        rank: usize,
        alpha: f64,
    ) -> Result<Self, AdapterError> {
        let shown = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| AdapterError::Read {
            path: shown.clone(),
            source,
        })?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| AdapterError::Safetensors {
            path: shown.clone(),
            message: e.to_string(),
        })?;
        let mut file = AdapterFile {
            path: shown,
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

    /// One pair of factors for the targets of a fused module.
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
        // All parts of a fused module have equally many rows where some have no adapter to read them off.
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

    /// PEFT's `adapter_config.json`. The adapter of a fused module has a rank and an alpha of its own,
    /// with the same alpha / rank.
    pub fn peft_config(&self) -> serde_json::Value {
        let (_, fused) = split_targets(self.family, self.targets());
        let mut modules: Vec<&str> = self
            .targets()
            .map(|tensor| self.family.peft_module(tensor))
            .collect();
        modules.sort_unstable();
        modules.dedup();
        let mut config = serde_json::json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": self.rank, "lora_alpha": self.alpha, "lora_dropout": 0.0,
            "bias": "none", "fan_in_fan_out": false, "inference_mode": true, "target_modules": modules,
        });
        let (mut ranks, mut alphas) = (serde_json::Map::new(), serde_json::Map::new());
        for module in fused.iter().filter(|module| module.targets.len() > 1) {
            let (name, count) = (
                self.family.peft_module(module.targets[0]),
                module.targets.len(),
            );
            ranks.insert(name.to_owned(), (count * self.rank).into());
            alphas.insert(name.to_owned(), (count as f64 * self.alpha).into());
        }
        if !ranks.is_empty() {
            config["rank_pattern"] = ranks.into();
            config["alpha_pattern"] = alphas.into();
        }
        config
    }

    /// alpha / rank
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

/// PEFT's name of a factor.
fn peft_tensor_name(family: &Family, layer: usize, tensor: BlockTensor, factor: char) -> String {
    let matrix = family.stored_name(TensorId::Block(layer, tensor));
    format!(
        "base_model.model.{}.lora_{factor}.weight",
        matrix.trim_end_matches(".weight")
    )
}
