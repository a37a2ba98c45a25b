//! Writes a Hugging Face folder: one safetensors file, `config.json`, and the other files of the
//! folder that the model was read from, unchanged.

use std::collections::BTreeSet;
use std::path::Path;

use crate::checkpoint::{CONFIG_FILE, WEIGHTS_FILE};
use crate::family::{BiasCondition, BlockShape, FusedModule, ModelClass};
use crate::stored::{self, StorageDtype, TensorToWrite, ValuesToWrite};
use crate::wiring::{BlockTensor, TensorId};
use crate::{Block, Model};
use secateur_base::files::FileError;

mod config_json;

/// What an export leaves out of the folder that the model was read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaveReport {
    /// Keys of `config.json` that do not describe the model that is written.
    pub removed_keys: Vec<String>,
    /// Files and folders that describe the source alone.
    pub left_behind: Vec<String>,
}

impl Model {
    /// Writes the model as transformers does, with the files that it has carried from its folder. In
    /// float32 [`Model::load`] reads back the same bits.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: &Path, dtype: StorageDtype) -> Result<SaveReport, FileError> {
        let failed = |path: &Path, source: std::io::Error| FileError::write(path, source);
        let write = |relative: &Path, content: &[u8]| {
            let path = folder.join(relative);
            let parent = path.parent().unwrap_or(folder);
            std::fs::create_dir_all(parent).map_err(|e| failed(parent, e))?;
            std::fs::write(&path, content).map_err(|e| failed(&path, e))
        };
        std::fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
        let layout = ExportLayout::new(self);
        let weights = folder.join(WEIGHTS_FILE);
        stored::write_safetensors(&weights, dtype, layout.tensors(self))
            .map_err(|e| failed(&weights, std::io::Error::other(e)))?;
        let config = config_json::write(self, &layout, dtype);
        write(Path::new(CONFIG_FILE), config.text.as_bytes())?;
        // A tokenizer that was trained here was not read from a folder.
        for (name, content) in self.tokenizer.iter().flat_map(|t| t.files()) {
            write(Path::new(name), content)?;
        }
        for (relative, content) in &self.source.files.carried {
            write(relative, content)?;
        }
        Ok(SaveReport {
            removed_keys: config.removed_keys,
            left_behind: self.source.files.left_behind.clone(),
        })
    }
}

/// How a model is written: in which class of transformers, and with which biases.
struct ExportLayout {
    class: &'static ModelClass,
    /// The tensors of a block that get a bias, zeros where a block has none: where one matrix has a
    /// bias, transformers gives one to all matrices of its rule.
    biased: BTreeSet<BlockTensor>,
    /// For each width the largest of all blocks.
    widest: BlockShape,
}

impl ExportLayout {
    fn new(model: &Model) -> Self {
        let shapes = block_shapes(model);
        let largest = |width: fn(&BlockShape) -> usize| shapes.iter().map(width).max().unwrap_or(0);
        let widest = BlockShape {
            query_heads: largest(|shape| shape.query_heads),
            key_value_heads: largest(|shape| shape.key_value_heads),
            mlp_channels: largest(|shape| shape.mlp_channels),
        };
        let present: BTreeSet<BlockTensor> = model
            .blocks
            .iter()
            .flat_map(Block::biases)
            .map(|(tensor, _)| tensor)
            .collect();
        let is_width_divisible = model
            .config
            .hidden
            .is_multiple_of(widest.query_heads.max(1));
        // The biases of norms are part of the family; those of matrices depend on the class.
        let can_hold_bias = |class: &ModelClass, tensor: BlockTensor| {
            let mut rules = class.biases.iter();
            !tensor.is_matrix() || rules.any(|rule| rule.tensors.contains(&tensor))
        };
        let can_hold = |class: &&ModelClass| {
            let can_hold_width = is_width_divisible || !class.requires_divisible_width;
            can_hold_width && present.iter().all(|&tensor| can_hold_bias(class, tensor))
        };
        let class = model
            .family
            .export_classes()
            .find(can_hold)
            .unwrap_or(&model.family.classes[0]);
        let mut biased = present.clone();
        for rule in class.biases {
            let is_present = rule.tensors.iter().any(|tensor| present.contains(tensor));
            if is_present || matches!(rule.when, BiasCondition::Always) {
                biased.extend(rule.tensors);
            }
        }
        Self {
            class,
            biased,
            widest,
        }
    }

    /// Every stored tensor; parts of a fused one together.
    fn tensors<'a>(&'a self, model: &'a Model) -> impl Iterator<Item = TensorToWrite<'a>> {
        let weights = model
            .tensor_ids()
            .into_iter()
            .filter_map(|id| weight_to_write(model, id));
        let block_biases = (0..model.blocks.len()).flat_map(move |layer| {
            self.biased
                .iter()
                .filter_map(move |&tensor| bias_to_write(model, layer, tensor))
        });
        let final_norm_bias = model
            .final_norm_bias
            .iter()
            .map(|bias| TensorToWrite::vector(model.family.final_norm_bias_name(), bias));
        weights.chain(block_biases).chain(final_norm_bias)
    }
}

fn block_shapes(model: &Model) -> Vec<BlockShape> {
    let head_dim = model.config.head_dim;
    model
        .blocks
        .iter()
        .map(|block| block.shape(head_dim))
        .collect()
}

/// A weight as it is stored. For the first part of a fused module: the fused tensor; for its other
/// parts: None.
fn weight_to_write(model: &Model, id: TensorId) -> Option<TensorToWrite<'_>> {
    let (weight, name) = (model.weight(id), model.family.stored_name(id));
    match id {
        TensorId::FinalNorm => Some(TensorToWrite::vector(name, weight)),
        TensorId::Block(_, tensor) if !tensor.is_matrix() => {
            Some(TensorToWrite::vector(name, weight))
        }
        TensorId::Block(layer, tensor) => match model.family.fused_module(tensor) {
            None => Some(TensorToWrite::matrix(name, weight)),
            Some((module, 0)) => {
                let block = &model.blocks[layer];
                let parts = module
                    .parts
                    .iter()
                    .map(|&part| Some(&block[part]))
                    .collect();
                let values = fused_values(model, block, module, parts, weight.cols());
                let rows = module.parts.iter().map(|&part| block[part].rows()).sum();
                Some(TensorToWrite {
                    name,
                    shape: vec![rows, weight.cols()],
                    values,
                })
            }
            Some(_) => None,
        },
        TensorId::Embedding | TensorId::LmHead => Some(TensorToWrite::matrix(name, weight)),
    }
}

/// The bias of a block's tensor as it is stored, zeros if the block has none. For the first part of
/// a fused module: the fused bias; for its other parts: None.
fn bias_to_write(model: &Model, layer: usize, tensor: BlockTensor) -> Option<TensorToWrite<'_>> {
    let block = &model.blocks[layer];
    let name = model.family.stored_bias_name(layer, tensor);
    match model.family.fused_module(tensor) {
        None => Some(match block.bias(tensor) {
            Some(bias) => TensorToWrite::vector(name, bias),
            None => TensorToWrite::zeros(name, block[tensor].rows()),
        }),
        Some((module, 0)) => {
            let parts = module.parts.iter().map(|&part| block.bias(part)).collect();
            let rows = module.parts.iter().map(|&part| block[part].rows()).sum();
            Some(TensorToWrite {
                name,
                shape: vec![rows],
                values: fused_values(model, block, module, parts, 1),
            })
        }
        Some(_) => None,
    }
}

/// The rows of the parts in the order of the fused tensor, `row_len` values each.
fn fused_values<'a>(
    model: &Model,
    block: &Block,
    module: &FusedModule,
    parts: Vec<Option<&'a crate::Weight>>,
    row_len: usize,
) -> ValuesToWrite<'a> {
    let part_rows: Vec<usize> = module
        .parts
        .iter()
        .map(|&part| block[part].rows())
        .collect();
    ValuesToWrite::Fused {
        parts,
        row_order: module.row_order(&part_rows, model.config.head_dim),
        row_len,
    }
}
