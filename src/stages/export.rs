//! `export`: Model → a folder that other tools load, and the plan that rebuilds it from the dense checkpoint.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Context, Fault, Input, World};
use crate::model::Model;
use crate::model::config::RopeScaling;
use crate::model::plan::PruningPlan;
use crate::model::stored::{self, Stored};
use crate::model::wiring::{LLAMA, Part, Place};

/// Writes the model.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What is written; a second export of a variant writes `hf-2`, `plan-2.json`. Default `["hf"]`.
    pub formats: Vec<Format>,
}

impl Default for Options {
    fn default() -> Self {
        Self { formats: vec![Format::Hf] }
    }
}

/// The forms of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `hf/`: a Hugging Face folder: safetensors, `config.json` with per-layer widths, the tokenizer's files.
    Hf,
    /// `plan.json`: the kept units of every group; with the dense checkpoint it rebuilds the pruned model.
    Plan,
    /// Reserved: refused by the check.
    Gguf,
    /// Reserved: refused by the check.
    Peft,
}

impl Options {
    /// What the stage reads: nothing.
    pub fn inputs(&self, _: Option<&Path>) -> Vec<Input> {
        Vec::new()
    }

    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.formats.is_empty() {
            faults.push(Fault::new("formats", "nothing to export", "name at least one of `hf`, `plan`"));
        }
        for (i, reserved) in self.formats.iter().enumerate().filter(|(_, f)| matches!(f, Format::Gguf | Format::Peft)) {
            faults.push(Fault::new(
                format!("formats[{i}]"),
                format!("`{reserved:?}` is reserved and not written yet").to_lowercase(),
                "the formats are `hf` and `plan`",
            ));
        }
        faults
    }

    pub fn world(&self, world: &mut World) -> Vec<Fault> {
        world.holds_weights(1);
        if self.formats.contains(&Format::Hf) {
            world.estimate.disk = world.estimate.memory;
        }
        Vec::new()
    }
}

/// The export failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot write `{path}`: {message}")]
    Write { path: String, message: String },
    #[error("`plan` needs a pruned model, and nothing has been pruned")]
    NoPlan,
}

/// Writes each format into the stage's folder.
pub fn run(options: &Options, context: &Context, model: &Model, plan: Option<&PruningPlan>) -> Result<(), Error> {
    for format in &options.formats {
        match format {
            Format::Hf => hugging_face(model, &context.place("hf", ""))?,
            Format::Plan => write_plan(plan.ok_or(Error::NoPlan)?, &context.place("plan", ".json"))?,
            Format::Gguf | Format::Peft => {} // refused by the check
        }
    }
    tracing::info!(formats = ?options.formats, "exported");
    Ok(())
}

/// The plan as JSON: for every group its layer, kind, dense units, and the units that stay.
fn write_plan(plan: &PruningPlan, path: &Path) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(plan).map_err(|e| failed(path, &e))?;
    std::fs::write(path, text).map_err(|e| failed(path, &e))
}

/// A Hugging Face folder: one safetensors file, `config.json`, and the tokenizer's files as they came.
fn hugging_face(model: &Model, folder: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(|e| failed(folder, &e))?;
    let tensors = model.places().into_iter().map(|place| {
        let weight = model.weight(place);
        let vector = matches!(place, Place::FinalNorm | Place::Block(_, Part::InputNorm | Part::PostAttentionNorm));
        (LLAMA.tensor(place), if vector { Stored::vector(weight) } else { Stored::matrix(weight) })
    });
    let weights = folder.join("model.safetensors");
    stored::write(&weights, tensors.collect()).map_err(|e| failed(&weights, &e))?;
    let config = folder.join("config.json");
    let text = serde_json::to_string_pretty(&config_json(model)).map_err(|e| failed(&config, &e))?;
    std::fs::write(&config, text + "\n").map_err(|e| failed(&config, &e))?;
    for (name, bytes) in model.tokenizer.iter().flat_map(|t| t.files()) {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|e| failed(&path, &e))?;
    }
    Ok(())
}

/// The config that came, with the sizes of the model as it is. Where layers differ, `per_layer_config` says how, as
/// transformers' heterogeneous configurations write it.
fn config_json(model: &Model) -> Map<String, Value> {
    let config = &model.config;
    let widths: Vec<(usize, usize, usize)> = model
        .blocks
        .iter()
        .map(|block| {
            let heads = block.heads(config.head_dim);
            (heads.queries, heads.keys, block[Part::Gate].rows())
        })
        .collect();
    let widest = |width: fn(&(usize, usize, usize)) -> usize| widths.iter().map(width).max().unwrap_or(0);
    let common = (widest(|w| w.0), widest(|w| w.1), widest(|w| w.2));
    let uniform = widths.iter().all(|w| *w == common);
    // LlamaConfig wants the width to be a multiple of the heads; Mistral, the same without a sliding window, does not.
    let is_llama = config.hidden.is_multiple_of(common.0);
    let rope = match config.rope.scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low, high, original } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }),
    };
    let mut out = config.raw.clone();
    for stale in ["rope_parameters", "dtype", "per_layer_config", "quantization_config"] {
        out.remove(stale);
    }
    let said = json!({
        "architectures": [if is_llama { "LlamaForCausalLM" } else { "MistralForCausalLM" }],
        "model_type": if is_llama { "llama" } else { "mistral" },
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
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": model.head.is_none(),
        "torch_dtype": "float32",
    });
    if let Value::Object(said) = said {
        out.extend(said);
    }
    if !is_llama {
        out.insert("sliding_window".to_owned(), Value::Null);
    }
    if !uniform {
        let layers = widths.iter().enumerate().filter(|(_, w)| **w != common).map(|(layer, w)| {
            (layer.to_string(), json!({ "num_attention_heads": w.0, "num_key_value_heads": w.1, "intermediate_size": w.2 }))
        });
        out.insert("per_layer_config".to_owned(), Value::Object(layers.collect()));
    }
    out
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Write { path: path.display().to_string(), message: error.to_string() }
}
