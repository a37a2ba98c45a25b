//! Writes a Hugging Face folder: one safetensors file, `config.json`, and the tokenizer's files
//! unchanged.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::checkpoint::{CONFIG_FILE, WEIGHTS_FILE};
use crate::config::RopeScaling;
use crate::family::{
    BiasCondition, BlockShape, FusedModule, ModelClass, Positions, Residual, ResidualRule,
    RotaryShare,
};
use crate::stored::{self, StorageDtype, TensorToWrite, ValuesToWrite};
use crate::wiring::{BlockTensor, TensorId};
use crate::{Block, Model};
use secateur_base::files::FileError;

impl Model {
    /// Writes the model as transformers does. In float32 [`Model::load`] reads back the same bits.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: &Path, precision: StorageDtype) -> Result<(), FileError> {
        let failed = |path: &Path, source| FileError {
            path: path.to_owned(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
        let layout = ExportLayout::new(self);
        let weights = folder.join(WEIGHTS_FILE);
        stored::write_safetensors(&weights, precision, layout.tensors(self))
            .map_err(|e| failed(&weights, std::io::Error::other(e)))?;
        let config_path = folder.join(CONFIG_FILE);
        let config = serde_json::to_string_pretty(&layout.config_json(self, precision))
            .map_err(|e| failed(&config_path, e.into()))?;
        std::fs::write(&config_path, config + "\n").map_err(|e| failed(&config_path, e))?;
        for (name, bytes) in self.tokenizer.iter().flat_map(|t| t.files()) {
            let path = folder.join(name);
            std::fs::write(&path, bytes).map_err(|e| failed(&path, e))?;
        }
        Ok(())
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

    /// The config that was read, with the sizes of the model that is written. Where layers differ,
    /// `per_layer_config` has their widths, as in transformers' heterogeneous configurations.
    fn config_json(&self, model: &Model, precision: StorageDtype) -> Map<String, Value> {
        let (config, family, keys) = (&model.config, model.family, &model.family.keys);
        let mut out = config.raw.clone();
        for key in self.stale_keys(model) {
            out.shift_remove(key);
        }
        let (epsilon_key, default_epsilon) = keys.norm_epsilon;
        // the shortest decimal number that is this f32
        let epsilon = config.norm_epsilon.to_string().parse::<f64>();
        let Positions::RotaryHalves { base_keys, share } = family.positions;
        let mut set = |key: &str, value: Value| drop(out.insert(key.to_owned(), value));
        set("architectures", json!([self.class.architecture]));
        set("model_type", json!(self.class.model_type));
        set(keys.hidden, json!(config.hidden));
        set(keys.mlp_channels, json!(self.widest.mlp_channels));
        set(keys.layers, json!(model.blocks.len()));
        set(keys.query_heads, json!(self.widest.query_heads));
        if let Some(key) = keys.key_value_heads {
            set(key, json!(self.widest.key_value_heads));
        }
        set("head_dim", json!(config.head_dim));
        set(keys.vocab, json!(config.vocab));
        set(keys.max_positions.0, json!(config.max_positions));
        set(epsilon_key, json!(epsilon.unwrap_or(default_epsilon)));
        set(base_keys[0], json!(config.rope.theta));
        if let RotaryShare::Keys { keys, .. } = share {
            set(keys[0], json!(config.rope.rotated_share));
        }
        set("rope_scaling", rope_scaling_json(&config.rope.scaling));
        set(keys.activation.0, json!(keys.activation.1));
        for (key, tensors) in self.bias_keys(model) {
            let is_biased = tensors.iter().any(|tensor| self.biased.contains(tensor));
            set(key, json!(is_biased));
        }
        if let ResidualRule::ParallelIf { key, .. } = family.residual {
            set(key, json!(config.residual == Residual::Parallel));
        }
        set("tie_word_embeddings", json!(model.lm_head.is_none()));
        set("torch_dtype", json!(precision.torch_name()));
        for &(key, constant) in self.class.constants {
            let value = constant.number(config.head_dim);
            set(key, value.map_or(Value::Null, |number| json!(number)));
        }
        let layers = self.differing_layers(model);
        if !layers.is_empty() {
            set("per_layer_config", Value::Object(layers));
        }
        out
    }

    /// Keys that are removed from the config that was read: they do not describe the model that is
    /// written, or have another name in it.
    fn stale_keys(&self, model: &Model) -> Vec<&'static str> {
        let Positions::RotaryHalves { base_keys, share } = model.family.positions;
        let other_share_keys: &[&'static str] = match share {
            RotaryShare::Whole => &[],
            RotaryShare::Keys { keys, .. } => &keys[1..],
        };
        let class_keys = model
            .family
            .classes
            .iter()
            .flat_map(|class| class.constants)
            .map(|(key, _)| *key);
        [
            "rope_parameters",
            "dtype",
            "per_layer_config",
            "quantization_config",
            "layer_types",
        ]
        .into_iter()
        .chain(class_keys)
        .chain(base_keys[1..].iter().copied())
        .chain(other_share_keys.iter().copied())
        .collect()
    }

    /// The keys that say which matrices have biases, each with its matrices: those of the family
    /// and of the class that is written.
    fn bias_keys(&self, model: &Model) -> Vec<(&'static str, &'static [BlockTensor])> {
        let mut keys: Vec<(&'static str, &'static [BlockTensor])> = Vec::new();
        for rule in model.family.biases.iter().chain(self.class.biases) {
            if let BiasCondition::Key { key, .. } = rule.when
                && keys.iter().all(|(known, _)| *known != key)
            {
                keys.push((key, rule.tensors));
            }
        }
        keys
    }

    /// The widths of the layers that differ from the largest.
    fn differing_layers(&self, model: &Model) -> Map<String, Value> {
        let keys = &model.family.keys;
        let mut layers = Map::new();
        for (layer, shape) in block_shapes(model).into_iter().enumerate() {
            if shape == self.widest {
                continue;
            }
            let mut widths = Map::new();
            widths.insert(keys.query_heads.to_owned(), json!(shape.query_heads));
            if let Some(key) = keys.key_value_heads {
                widths.insert(key.to_owned(), json!(shape.key_value_heads));
            }
            widths.insert(keys.mlp_channels.to_owned(), json!(shape.mlp_channels));
            layers.insert(layer.to_string(), Value::Object(widths));
        }
        layers
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

fn rope_scaling_json(scaling: &RopeScaling) -> Value {
    match *scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_positions,
        }),
    }
}
