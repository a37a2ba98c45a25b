//! Low-rank adapters (Hu et al. 2021; LLM-Pruner, equation 6): y = x·Wᵀ + (alpha / rank) · dropout(x)·Aᵀ·Bᵀ, in PEFT's
//! names and layout, so that an adapter moves between the two.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rand::{Rng, RngExt};
use rayon::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};

use super::Model;
use super::hooks::BlockHooks;
use super::stored::{self, SafetensorsWriteError, StorageDtype, TensorToWrite};
use super::wiring::{BlockTensor, LLAMA, TensorId};
use secateur_base::random::Seed;
use secateur_tensor::ops::{self, AdapterInput, DropoutMaskFn, GradientRequest};
use secateur_tensor::{Activations, AnyTape, LowRank, Weight};

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
}

impl Adapter {
    /// A drawn uniformly within ±1/√inputs (Kaiming with a = √5, PEFT's default), B zero: the model is unchanged.
    pub fn new(
        model: &Model,
        targets: &[BlockTensor],
        rank: usize,
        alpha: f64,
        seed: Seed,
    ) -> Self {
        let mut factors = BTreeMap::new();
        for (layer, block) in model.blocks.iter().enumerate() {
            for &part in targets {
                let (outputs, inputs) = (block[part].rows(), block[part].cols());
                let mut stream = seed
                    .derive(&LLAMA.tensor_name(TensorId::Block(layer, part)))
                    .rng();
                let bound = 1.0 / (inputs as f32).sqrt();
                let a = (0..rank * inputs)
                    .map(|_| stream.random_range(-bound..bound))
                    .collect();
                let b = vec![0.0; outputs * rank];
                factors.insert(
                    (layer, part),
                    LoraFactors {
                        a: Weight::new(a, rank, inputs),
                        b: Weight::new(b, outputs, rank),
                    },
                );
            }
        }
        Self {
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
        let file = SafeTensors::deserialize(&bytes).map_err(|e| AdapterError::Safetensors {
            path: shown.clone(),
            message: e.to_string(),
        })?;
        let mut used = Vec::new();
        let mut read = |name: String, rows: usize, cols: usize| {
            let tensor = file
                .tensor(&name)
                .map_err(|_| AdapterError::MissingTensor {
                    path: shown.clone(),
                    name: name.clone(),
                })?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != [rows, cols] {
                let (found, dtype) = (tensor.shape().to_vec(), format!("{:?}", tensor.dtype()));
                return Err(AdapterError::Shape {
                    path: shown.clone(),
                    name,
                    found,
                    dtype,
                    expected: [rows, cols],
                });
            }
            used.push(name);
            Ok(Weight::new(
                tensor
                    .data()
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect(),
                rows,
                cols,
            ))
        };
        let mut factors = BTreeMap::new();
        for (layer, block) in model.blocks.iter().enumerate() {
            for &part in targets {
                let a = read(peft_tensor_name(layer, part, 'A'), rank, block[part].cols())?;
                let b = read(peft_tensor_name(layer, part, 'B'), block[part].rows(), rank)?;
                factors.insert((layer, part), LoraFactors { a, b });
            }
        }
        match file
            .names()
            .into_iter()
            .find(|name| !used.iter().any(|u| u == name))
        {
            Some(name) => Err(AdapterError::UnusedTensor {
                path: shown,
                name: name.to_owned(),
            }),
            None => Ok(Self {
                rank,
                alpha,
                factors,
            }),
        }
    }

    /// Writes the adapter as safetensors in PEFT's layout.
    pub fn save(&self, path: &Path) -> Result<(), SafetensorsWriteError> {
        let tensors = self.factors.iter().flat_map(|(at, LoraFactors { a, b })| {
            [
                TensorToWrite::matrix(peft_tensor_name(at.0, at.1, 'A'), a),
                TensorToWrite::matrix(peft_tensor_name(at.0, at.1, 'B'), b),
            ]
        });
        stored::write_safetensors(path, StorageDtype::Float32, tensors)
    }

    /// PEFT's `adapter_config.json`.
    pub fn peft_config(&self) -> serde_json::Value {
        let mut targets: Vec<&str> = self
            .factors
            .keys()
            .map(|&(_, part)| peft_module_name(part))
            .collect();
        targets.sort_unstable();
        targets.dedup();
        serde_json::json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": self.rank, "lora_alpha": self.alpha, "lora_dropout": 0.0,
            "bias": "none", "fan_in_fan_out": false, "inference_mode": true, "target_modules": targets,
        })
    }

    /// alpha / rank
    pub fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }

    /// The model with W + (alpha / rank) · B·A in place of W.
    pub fn merge_into(&self, model: &Model) -> Model {
        let mut merged = model.clone();
        for (&(layer, part), LoraFactors { a, b }) in &self.factors {
            let low_rank = LowRank {
                a: a.clone(),
                b: b.clone(),
                scale: self.scale(),
            };
            merged.blocks[layer][part] = model.blocks[layer][part].add_low_rank(low_rank);
        }
        merged
    }
}

/// The gradients of the factors of one block: A's, then B's.
pub type LoraGradients = Vec<(BlockTensor, Vec<f32>, Vec<f32>)>;

/// What is dropped of the adapters' inputs in one pack.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// 0 to below 1.
    pub probability: f64,
    /// For each sequence its seed and its tokens. Which inputs are dropped follows from the seed and the matrix alone, so that
    /// a recomputed block drops the same.
    pub sequences: Vec<(Seed, usize)>,
}

/// A block seen with its adapters beside it, in training.
pub struct LoraHooks<'a> {
    adapter: &'a Adapter,
    layer: usize,
    dropout: Dropout,
    gradient_requests: BTreeMap<BlockTensor, (GradientRequest, GradientRequest)>,
}

impl<'a> LoraHooks<'a> {
    pub fn new(adapter: &'a Adapter, layer: usize, dropout: Dropout) -> Self {
        let parts = adapter.factors.keys().filter(|(at, _)| *at == layer);
        let slots = parts.map(|&(_, part)| {
            (
                part,
                (
                    GradientRequest::for_gradient(),
                    GradientRequest::for_gradient(),
                ),
            )
        });
        Self {
            adapter,
            layer,
            dropout,
            gradient_requests: slots.collect(),
        }
    }

    /// What a tape left in the slots.
    pub fn into_gradients(self) -> LoraGradients {
        self.gradient_requests
            .into_iter()
            .filter_map(|(part, (a, b))| Some((part, a.take_gradient()?, b.take_gradient()?)))
            .collect()
    }

    /// What the inputs of a matrix are multiplied by: a share of them by 0, the others scaled up. Every sequence has a stream
    /// of its own, so what it loses does not depend on the pack that it lies in.
    fn dropout_mask(&self, part: BlockTensor, inputs: usize) -> Option<DropoutMaskFn> {
        if self.dropout.probability == 0.0 {
            return None;
        }
        let Dropout {
            probability: share,
            sequences,
        } = self.dropout.clone();
        let (threshold, kept) = (
            (share * f64::from(u32::MAX)) as u32,
            1.0 / (1.0 - share) as f32,
        );
        let name = LLAMA.tensor_name(TensorId::Block(self.layer, part));
        Some(Arc::new(move || {
            let mut masks: Vec<Vec<f32>> = sequences
                .iter()
                .map(|(_, len)| vec![0.0; len * inputs])
                .collect();
            masks
                .par_iter_mut()
                .zip(&sequences)
                .for_each(|(mask, (seed, _))| {
                    let mut stream = seed.derive(&name).rng();
                    mask.iter_mut().for_each(|m| {
                        *m = if stream.next_u32() < threshold {
                            0.0
                        } else {
                            kept
                        }
                    });
                });
            masks.concat()
        }))
    }
}

impl BlockHooks for LoraHooks<'_> {
    fn linear<T: AnyTape>(
        &self,
        part: BlockTensor,
        weight: &Weight,
        x: Activations<T>,
    ) -> Activations<T> {
        let Some(LoraFactors { a, b }) = self.adapter.factors.get(&(self.layer, part)) else {
            return ops::linear(x, weight, None);
        };
        let slots = self.gradient_requests.get(&part).map(|(a, b)| (a, b));
        let mask = self.dropout_mask(part, x.width());
        ops::linear_with_adapter(
            x,
            weight,
            AdapterInput {
                a,
                b,
                scale: self.adapter.scale(),
                dropout_mask: mask,
                gradient_requests: slots,
            },
        )
    }
}

/// The matrix's module name, as PEFT's `target_modules` has it.
fn peft_module_name(part: BlockTensor) -> &'static str {
    match part {
        BlockTensor::Q => "q_proj",
        BlockTensor::K => "k_proj",
        BlockTensor::V => "v_proj",
        BlockTensor::O => "o_proj",
        BlockTensor::Gate => "gate_proj",
        BlockTensor::Up => "up_proj",
        BlockTensor::Down => "down_proj",
        BlockTensor::InputNorm | BlockTensor::PostAttentionNorm => "norm",
    }
}

/// PEFT's name of a factor.
fn peft_tensor_name(layer: usize, part: BlockTensor, factor: char) -> String {
    let matrix = LLAMA.tensor_name(TensorId::Block(layer, part));
    format!(
        "base_model.model.{}.lora_{factor}.weight",
        matrix.trim_end_matches(".weight")
    )
}
