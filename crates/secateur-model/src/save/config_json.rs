//! `config.json` of an export: the file that was read, with the sizes of the model that is written.
//! A value that is still right keeps its text, so numbers keep their type.

use serde_json::{Map, Value, json};

use super::{ExportLayout, block_shapes};
use crate::Model;
use crate::config::RopeScaling;
use crate::family::{BiasCondition, Constant, Positions, Residual, ResidualRule, RotaryShare};
use crate::stored::StorageDtype;
use crate::wiring::BlockTensor;

/// The file, and the keys of the file that was read which it does not have.
pub(super) struct ConfigFile {
    pub text: String,
    pub removed_keys: Vec<String>,
}

/// Where layers differ, `per_layer_config` has their widths, as in transformers' heterogeneous
/// configurations.
pub(super) fn write(model: &Model, layout: &ExportLayout, dtype: StorageDtype) -> ConfigFile {
    let raw = &model.config.raw;
    let mut out = raw.values.clone();
    let set = new_values(model, layout, dtype);
    for key in stale_keys(model, layout) {
        if !set.contains_key(key) {
            out.shift_remove(key);
        }
    }
    out.extend(set);
    let is_removed = |(key, value): &(&String, &Value)| !value.is_null() && !out.contains_key(*key);
    let removed = raw.values.iter().filter(is_removed);
    ConfigFile {
        removed_keys: removed.map(|(key, _)| key.clone()).collect(),
        text: object_text(&out, |key, value| raw.text_of(key, value)),
    }
}

/// A JSON object with two spaces of indentation. `known_text` gives the text of a value, if it has
/// one.
fn object_text<'a>(
    object: &Map<String, Value>,
    known_text: impl Fn(&str, &Value) -> Option<&'a str>,
) -> String {
    let line = |(key, value): (&String, &Value)| {
        let text = match known_text(key, value) {
            Some(text) => text.to_owned(),
            // `{:#}` writes indented JSON; strings in it contain no line break.
            None => format!("{value:#}").replace('\n', "\n  "),
        };
        format!("  {}: {text}", Value::from(key.as_str()))
    };
    let lines: Vec<String> = object.iter().map(line).collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

/// The keys that an export sets.
fn new_values(model: &Model, layout: &ExportLayout, dtype: StorageDtype) -> Map<String, Value> {
    let (config, family, keys) = (&model.config, model.family, &model.family.keys);
    let (raw, widest) = (&config.raw, layout.widest);
    let mut out = Map::new();
    let mut set = |key: &str, value: Value| drop(out.insert(key.to_owned(), value));
    set("architectures", json!([layout.class.architecture]));
    set("model_type", json!(layout.class.model_type));
    set(keys.hidden, json!(config.hidden));
    set(keys.mlp_channels, json!(widest.mlp_channels));
    set(keys.layers, json!(model.blocks.len()));
    set(keys.query_heads, json!(widest.query_heads));
    // null means as many as query heads, and a width that follows from them
    let is_null = |key: &str| raw.values.get(key).is_some_and(Value::is_null);
    if let Some(key) = keys.key_value_heads
        && !(is_null(key) && widest.key_value_heads == widest.query_heads)
    {
        set(key, json!(widest.key_value_heads));
    }
    if !(is_null("head_dim") && config.hidden == config.head_dim * widest.query_heads) {
        set("head_dim", json!(config.head_dim));
    }
    set(keys.vocab, json!(config.vocab));
    for (key, value) in unchanging_values(model) {
        if !raw.has(key) {
            set(key, value);
        }
    }
    for (key, tensors) in bias_keys(model, layout) {
        let is_biased = tensors.iter().any(|tensor| layout.biased.contains(tensor));
        set(key, json!(is_biased));
    }
    if let ResidualRule::ParallelIf { key, .. } = family.residual {
        set(key, json!(config.residual == Residual::Parallel));
    }
    set("tie_word_embeddings", json!(model.lm_head.is_none()));
    // transformers reads both names; newer versions write `dtype`.
    if raw.has("dtype") {
        set("dtype", json!(dtype.torch_name()));
    }
    if raw.has("torch_dtype") || !raw.has("dtype") {
        set("torch_dtype", json!(dtype.torch_name()));
    }
    if !keeps_class(model, layout) {
        for &(key, constant) in layout.class.constants {
            set(key, constant_json(constant, config.head_dim));
        }
    }
    let layers = differing_layers(model, layout);
    if !layers.is_empty() {
        set("per_layer_config", Value::Object(layers));
    }
    out
}

/// Keys whose values pruning does not change. An export adds those that the file that was read does
/// not have.
fn unchanging_values(model: &Model) -> Vec<(&'static str, Value)> {
    let (config, keys) = (&model.config, &model.family.keys);
    let (epsilon_key, default_epsilon) = keys.norm_epsilon;
    // the shortest decimal number that is this f32
    let epsilon = config.norm_epsilon.to_string().parse::<f64>();
    let mut values = vec![
        (keys.max_positions.0, json!(config.max_positions)),
        (epsilon_key, json!(epsilon.unwrap_or(default_epsilon))),
    ];
    let Positions::RotaryHalves { base_keys, share } = model.family.positions;
    let has_any = |keys: &[&str]| keys.iter().any(|key| config.raw.has(key));
    // The newer style has the base, the scaling and the share in this table.
    if !config.raw.has("rope_parameters") {
        if !has_any(base_keys) {
            values.push((base_keys[0], json!(config.rope.theta)));
        }
        if let RotaryShare::Keys { keys, .. } = share
            && !has_any(keys)
        {
            values.push((keys[0], json!(config.rope.rotated_share)));
        }
        values.push(("rope_scaling", rope_scaling_json(&config.rope.scaling)));
    }
    values.push((keys.activation.0, json!(keys.activation.1)));
    values
}

/// Keys of the config that was read that do not describe the model that is written.
fn stale_keys(model: &Model, layout: &ExportLayout) -> Vec<&'static str> {
    let mut keys = vec![
        "_name_or_path",
        "auto_map",
        "quantization_config",
        "per_layer_config",
    ];
    let keeps_class = keeps_class(model, layout);
    if !keeps_class {
        let constants = model
            .family
            .classes
            .iter()
            .flat_map(|class| class.constants);
        keys.extend(constants.map(|(key, _)| *key));
    }
    let layers = model.config.raw.values.get(model.family.keys.layers);
    let keeps_layers = layers.and_then(Value::as_u64) == Some(model.blocks.len() as u64);
    if !keeps_layers || !keeps_class {
        keys.push("layer_types"); // one entry for each layer
    }
    keys
}

/// Whether the model is written in the class that it was read in.
fn keeps_class(model: &Model, layout: &ExportLayout) -> bool {
    let read = model.config.raw.values.get("model_type");
    read.and_then(Value::as_str) == Some(layout.class.model_type)
}

fn constant_json(constant: Constant, head_dim: usize) -> Value {
    let number = constant.number(head_dim);
    number.map_or(Value::Null, |number| json!(number))
}

/// The keys that say which matrices have biases, each with its matrices: those of the family
/// and of the class that is written.
fn bias_keys(model: &Model, layout: &ExportLayout) -> Vec<(&'static str, &'static [BlockTensor])> {
    let mut keys: Vec<(&'static str, &'static [BlockTensor])> = Vec::new();
    for rule in model.family.biases.iter().chain(layout.class.biases) {
        if let BiasCondition::Key { key, .. } = rule.when
            && keys.iter().all(|(known, _)| *known != key)
        {
            keys.push((key, rule.tensors));
        }
    }
    keys
}

/// The widths of the layers that differ from the largest.
fn differing_layers(model: &Model, layout: &ExportLayout) -> Map<String, Value> {
    let keys = &model.family.keys;
    let mut layers = Map::new();
    for (layer, shape) in block_shapes(model).into_iter().enumerate() {
        if shape == layout.widest {
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
