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
use super::blocks::Lens;
use super::stored::{self, Precision, Stored, WriteError};
use super::wiring::{LLAMA, Part, Place};
use crate::ops::{self, Beside, Mask, Slot};
use crate::random::Seed;
use crate::tensor::{AnyTape, Hidden, LowRank, Weight};

/// The two factors beside one matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Factors {
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
    pub factors: BTreeMap<(usize, Part), Factors>,
}

/// An adapter file does not fit.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error("cannot read `{path}`: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("`{path}` is not a whole safetensors file: {message}")]
    Safetensors { path: String, message: String },
    #[error("`{path}` has no tensor `{name}`")]
    Missing { path: String, name: String },
    #[error("`{path}`: `{name}` has shape {found:?} of {dtype}, the model and the rank ask for {expected:?} of F32")]
    Shape { path: String, name: String, found: Vec<usize>, dtype: String, expected: [usize; 2] },
    #[error("`{path}` holds the tensor `{name}`, which no target of this stage uses")]
    Unused { path: String, name: String },
}

impl Adapter {
    /// A drawn uniformly within ±1/√inputs (Kaiming with a = √5, PEFT's default), B zero: the model is unchanged.
    pub fn new(model: &Model, targets: &[Part], rank: usize, alpha: f64, seed: Seed) -> Self {
        let mut factors = BTreeMap::new();
        for (layer, block) in model.blocks.iter().enumerate() {
            for &part in targets {
                let (outputs, inputs) = (block[part].rows(), block[part].cols());
                let mut stream = seed.derive(&LLAMA.tensor(Place::Block(layer, part))).stream();
                let bound = 1.0 / (inputs as f32).sqrt();
                let a = (0..rank * inputs).map(|_| stream.random_range(-bound..bound)).collect();
                let b = vec![0.0; outputs * rank];
                factors.insert((layer, part), Factors { a: Weight::new(a, rank, inputs), b: Weight::new(b, outputs, rank) });
            }
        }
        Self { rank, alpha, factors }
    }

    /// Reads safetensors in PEFT's layout; every factor must be there and fit, and nothing else may be.
    pub fn read(path: &Path, model: &Model, targets: &[Part], rank: usize, alpha: f64) -> Result<Self, AdapterError> {
        let shown = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| AdapterError::Read { path: shown.clone(), source })?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|e| AdapterError::Safetensors { path: shown.clone(), message: e.to_string() })?;
        let mut used = Vec::new();
        let mut read = |name: String, rows: usize, cols: usize| {
            let tensor = file.tensor(&name).map_err(|_| AdapterError::Missing { path: shown.clone(), name: name.clone() })?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != [rows, cols] {
                let (found, dtype) = (tensor.shape().to_vec(), format!("{:?}", tensor.dtype()));
                return Err(AdapterError::Shape { path: shown.clone(), name, found, dtype, expected: [rows, cols] });
            }
            used.push(name);
            Ok(Weight::new(
                tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
                rows,
                cols,
            ))
        };
        let mut factors = BTreeMap::new();
        for (layer, block) in model.blocks.iter().enumerate() {
            for &part in targets {
                let a = read(name(layer, part, 'A'), rank, block[part].cols())?;
                let b = read(name(layer, part, 'B'), block[part].rows(), rank)?;
                factors.insert((layer, part), Factors { a, b });
            }
        }
        match file.names().into_iter().find(|name| !used.iter().any(|u| u == name)) {
            Some(name) => Err(AdapterError::Unused { path: shown, name: name.to_owned() }),
            None => Ok(Self { rank, alpha, factors }),
        }
    }

    /// Writes the adapter as safetensors in PEFT's layout.
    pub fn write(&self, path: &Path) -> Result<(), WriteError> {
        let tensors = self.factors.iter().flat_map(|(at, Factors { a, b })| {
            [Stored::matrix(name(at.0, at.1, 'A'), a), Stored::matrix(name(at.0, at.1, 'B'), b)]
        });
        stored::write(path, Precision::Float32, tensors)
    }

    /// PEFT's `adapter_config.json`.
    pub fn config_json(&self) -> serde_json::Value {
        let mut targets: Vec<&str> = self.factors.keys().map(|&(_, part)| module(part)).collect();
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
    pub fn merge(&self, model: &Model) -> Model {
        let mut merged = model.clone();
        for (&(layer, part), Factors { a, b }) in &self.factors {
            let low_rank = LowRank { a: a.clone(), b: b.clone(), scale: self.scale() };
            merged.blocks[layer][part] = model.blocks[layer][part].plus(low_rank);
        }
        merged
    }
}

/// The gradients of the factors of one block: A's, then B's.
pub type FactorGradients = Vec<(Part, Vec<f32>, Vec<f32>)>;

/// What is dropped of the adapters' inputs in one pack.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// 0 to below 1.
    pub share: f64,
    /// For each sequence its seed and its tokens. Which inputs are dropped follows from the seed and the matrix alone, so that
    /// a recomputed block drops the same.
    pub sequences: Vec<(Seed, usize)>,
}

/// A block seen with its adapters beside it, in training.
pub struct Adapted<'a> {
    adapter: &'a Adapter,
    layer: usize,
    dropout: Dropout,
    slots: BTreeMap<Part, (Slot, Slot)>,
}

impl<'a> Adapted<'a> {
    pub fn new(adapter: &'a Adapter, layer: usize, dropout: Dropout) -> Self {
        let parts = adapter.factors.keys().filter(|(at, _)| *at == layer);
        let slots = parts.map(|&(_, part)| (part, (Slot::gradient(), Slot::gradient())));
        Self { adapter, layer, dropout, slots: slots.collect() }
    }

    /// What a tape left in the slots.
    pub fn gradients(self) -> FactorGradients {
        self.slots.into_iter().filter_map(|(part, (a, b))| Some((part, a.take_gradient()?, b.take_gradient()?))).collect()
    }

    /// What the inputs of a matrix are multiplied by: a share of them by 0, the others scaled up. Every sequence has a stream
    /// of its own, so what it loses does not depend on the pack that it lies in.
    fn mask(&self, part: Part, inputs: usize) -> Option<Mask> {
        if self.dropout.share == 0.0 {
            return None;
        }
        let Dropout { share, sequences } = self.dropout.clone();
        let (threshold, kept) = ((share * f64::from(u32::MAX)) as u32, 1.0 / (1.0 - share) as f32);
        let name = LLAMA.tensor(Place::Block(self.layer, part));
        Some(Arc::new(move || {
            let mut masks: Vec<Vec<f32>> = sequences.iter().map(|(_, len)| vec![0.0; len * inputs]).collect();
            masks.par_iter_mut().zip(&sequences).for_each(|(mask, (seed, _))| {
                let mut stream = seed.derive(&name).stream();
                mask.iter_mut().for_each(|m| *m = if stream.next_u32() < threshold { 0.0 } else { kept });
            });
            masks.concat()
        }))
    }
}

impl Lens for Adapted<'_> {
    fn linear<T: AnyTape>(&self, part: Part, weight: &Weight, x: Hidden<T>) -> Hidden<T> {
        let Some(Factors { a, b }) = self.adapter.factors.get(&(self.layer, part)) else {
            return ops::linear(x, weight, None);
        };
        let slots = self.slots.get(&part).map(|(a, b)| (a, b));
        let mask = self.mask(part, x.width());
        ops::adapted(x, weight, Beside { a, b, scale: self.adapter.scale(), mask, slots })
    }
}

/// The matrix's module name, as PEFT's `target_modules` has it.
fn module(part: Part) -> &'static str {
    match part {
        Part::Q => "q_proj",
        Part::K => "k_proj",
        Part::V => "v_proj",
        Part::O => "o_proj",
        Part::Gate => "gate_proj",
        Part::Up => "up_proj",
        Part::Down => "down_proj",
        Part::InputNorm | Part::PostAttentionNorm => "norm",
    }
}

/// PEFT's name of a factor.
fn name(layer: usize, part: Part, factor: char) -> String {
    let matrix = LLAMA.tensor(Place::Block(layer, part));
    format!("base_model.model.{}.lora_{factor}.weight", matrix.trim_end_matches(".weight"))
}
