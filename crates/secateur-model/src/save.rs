//! A Hugging Face folder out: one safetensors file, `config.json`, and the tokenizer's files as they came.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{BiasFlags, GRANITE_UNIT_MULTIPLIERS, RopeScaling};
use super::stored::{self, StorageDtype, TensorToWrite};
use super::wiring::{BlockTensor, LLAMA, TensorId};
use super::{Block, Model};
use secateur_base::files::FileError;

impl Model {
    /// Writes the model as transformers does; what [`Model::load`] reads back from float32 has the same bits.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: &Path, precision: StorageDtype) -> Result<(), FileError> {
        let failed = |path: &Path, source| FileError {
            path: path.to_owned(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
        let tensors = self.tensor_ids().into_iter().map(|place| {
            let weight = self.weight(place);
            let vector = matches!(
                place,
                TensorId::FinalNorm
                    | TensorId::Block(_, BlockTensor::InputNorm | BlockTensor::PostAttentionNorm)
            );
            let name = LLAMA.tensor_name(place);
            if vector {
                TensorToWrite::vector(name, weight)
            } else {
                TensorToWrite::matrix(name, weight)
            }
        });
        // Where one matrix has a bias, transformers gives one to all of its kind.
        let biases = self.bias_flags();
        let kinds = [
            (biases.attention, &BlockTensor::ATTENTION[..]),
            (biases.mlp, &BlockTensor::MLP[..]),
        ];
        let parts: Vec<BlockTensor> = kinds
            .into_iter()
            .filter(|(has, _)| *has)
            .flat_map(|(_, parts)| parts)
            .copied()
            .collect();
        let beside = |layer: usize| {
            let block = &self.blocks[layer];
            parts.iter().map(move |&part| {
                let name = LLAMA.bias_name(layer, part);
                match block.bias(part) {
                    Some(bias) => TensorToWrite::vector(name, bias),
                    None => TensorToWrite::zeros(name, block[part].rows()),
                }
            })
        };
        let tensors = tensors.chain((0..self.blocks.len()).flat_map(beside));
        let weights = folder.join("model.safetensors");
        stored::write_safetensors(&weights, precision, tensors)
            .map_err(|e| failed(&weights, std::io::Error::other(e)))?;
        let path = folder.join("config.json");
        let config = serde_json::to_string_pretty(&config_json(self, precision))
            .map_err(|e| failed(&path, e.into()))?;
        std::fs::write(&path, config + "\n").map_err(|e| failed(&path, e))?;
        for (name, bytes) in self.tokenizer.iter().flat_map(|t| t.files()) {
            let path = folder.join(name);
            std::fs::write(&path, bytes).map_err(|e| failed(&path, e))?;
        }
        Ok(())
    }
}

impl Model {
    /// Which kinds of matrices have biases.
    fn bias_flags(&self) -> BiasFlags {
        let has = |parts: &[BlockTensor]| {
            self.blocks
                .iter()
                .flat_map(Block::biases)
                .any(|(part, _)| parts.contains(&part))
        };
        BiasFlags {
            attention: has(&BlockTensor::ATTENTION),
            mlp: has(&BlockTensor::MLP),
        }
    }
}

/// The config that came, with the sizes of the model as it is. Where layers differ, `per_layer_config` says how, as
/// transformers' heterogeneous configurations write it.
fn config_json(model: &Model, precision: StorageDtype) -> Map<String, Value> {
    let (config, biases) = (&model.config, model.bias_flags());
    let widths: Vec<(usize, usize, usize)> = model
        .blocks
        .iter()
        .map(|block| {
            let heads = block.attention_heads(config.head_dim);
            (
                heads.query_heads,
                heads.key_value_heads,
                block[BlockTensor::Gate].rows(),
            )
        })
        .collect();
    let widest =
        |width: fn(&(usize, usize, usize)) -> usize| widths.iter().map(width).max().unwrap_or(0);
    let common = (widest(|w| w.0), widest(|w| w.1), widest(|w| w.2));
    let uniform = widths.iter().all(|w| *w == common);
    // LlamaConfig wants the width to be a multiple of the heads. Mistral, the same without a sliding window, does not, but
    // has no biases; Granite, the same with all its multipliers at rest, has.
    let (class, kind) = match (
        config.hidden.is_multiple_of(common.0),
        biases.attention || biases.mlp,
    ) {
        (true, _) => ("LlamaForCausalLM", "llama"),
        (false, false) => ("MistralForCausalLM", "mistral"),
        (false, true) => ("GraniteForCausalLM", "granite"),
    };
    let rope = match config.rope.scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_positions: original,
        } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }),
    };
    let mut out = config.raw.clone();
    let stale = [
        "rope_parameters",
        "dtype",
        "per_layer_config",
        "quantization_config",
        "sliding_window",
        "attention_multiplier",
    ];
    for key in stale.into_iter().chain(GRANITE_UNIT_MULTIPLIERS) {
        out.shift_remove(key);
    }
    let said = json!({
        "architectures": [class],
        "model_type": kind,
        "hidden_size": config.hidden,
        "intermediate_size": common.2,
        "num_hidden_layers": model.blocks.len(),
        "num_attention_heads": common.0,
        "num_key_value_heads": common.1,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon.to_string().parse::<f64>().unwrap_or(1e-6),
        "rope_theta": config.rope.theta,
        "rope_scaling": rope,
        "hidden_act": "silu",
        "attention_bias": biases.attention,
        "mlp_bias": biases.mlp,
        "tie_word_embeddings": model.lm_head.is_none(),
        "torch_dtype": precision.torch_name(),
    });
    if let Value::Object(said) = said {
        out.extend(said);
    }
    match kind {
        "mistral" => drop(out.insert("sliding_window".to_owned(), Value::Null)),
        "granite" => {
            out.extend(GRANITE_UNIT_MULTIPLIERS.map(|key| (key.to_owned(), json!(1.0))));
            out.insert(
                "attention_multiplier".to_owned(),
                json!((config.head_dim as f64).powf(-0.5)),
            );
        }
        _ => {}
    }
    if !uniform {
        let layers = widths.iter().enumerate().filter(|(_, w)| **w != common).map(|(layer, w)| {
            (layer.to_string(), json!({ "num_attention_heads": w.0, "num_key_value_heads": w.1, "intermediate_size": w.2 }))
        });
        out.insert(
            "per_layer_config".to_owned(),
            Value::Object(layers.collect()),
        );
    }
    out
}
