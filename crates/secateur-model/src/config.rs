//! Reads `config.json`, in the current and the older style of transformers, and derives the rotary
//! frequencies from it.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::families;
use crate::family::{
    BiasCondition, Family, ModelClass, Positions, Residual, ResidualRule, RotaryShare,
};
use crate::wiring::BlockTensor;

mod raw;
mod rope;
pub use raw::RawConfig;
pub use rope::{DEFAULT_ROPE_THETA, RopeConfig, RopeScaling};

/// The content of a model's `config.json`, as far as it is not derived from the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Width of an attention head.
    pub head_dim: usize,
    /// Widths inside the blocks as `config.json` declares them. The widths in use are those of the
    /// weights.
    pub declared_widths: BlockWidths,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// ε of the norms.
    pub norm_epsilon: f32,
    /// Whether the output matrix is the embedding.
    pub tied_embeddings: bool,
    /// The tensors of a block that have biases in the checkpoint. The biases in use are those of
    /// the blocks.
    pub declared_biases: BTreeSet<BlockTensor>,
    pub rope: RopeConfig,
    /// How the attention and the MLP are added to the residual stream.
    pub residual: Residual,
    /// Every key as it was read. An export keeps the keys that it does not set itself.
    pub raw: RawConfig,
}

/// Widths inside the blocks; where layers differ, the largest. None: not declared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BlockWidths {
    /// Query heads.
    pub query_heads: Option<usize>,
    /// Key/value heads.
    pub key_value_heads: Option<usize>,
    /// Channels of the MLP.
    pub mlp_channels: Option<usize>,
}

/// `config.json` is damaged, or describes a model that is not supported.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum ConfigError {
    #[error("{0}")]
    Json(String),
    #[error("the key `{0}` is missing")]
    MissingKey(&'static str),
    #[error("`{key}` is {found}, which is not {expected}")]
    InvalidValue {
        key: String,
        found: String,
        expected: &'static str,
    },
    #[error("`{key}` = {found} is not supported; supported: {supported}")]
    Unsupported {
        key: &'static str,
        found: String,
        supported: String,
    },
}

/// The largest size that is accepted. It is larger than the sizes of any model, and the product of
/// two sizes does not overflow. The message of `size_key` has the same number.
const MAX_SIZE: u64 = 1 << 24;

impl Config {
    /// Reads the text of a `config.json`, and finds the family that it names.
    pub(crate) fn parse(text: &str) -> Result<(&'static Family, Self), ConfigError> {
        let raw = RawConfig::parse(text).map_err(|e| ConfigError::Json(json_words(&e)))?;
        let model_type =
            string_key(&raw.values, "model_type")?.ok_or(ConfigError::MissingKey("model_type"))?;
        let Some((family, class)) = families::find(model_type) else {
            let supported: Vec<&str> = families::model_types().collect();
            return Err(unsupported("model_type", model_type, &supported.join(", ")));
        };
        Ok((family, Self::read(&raw, family, class)?))
    }

    fn read(file: &RawConfig, family: &Family, class: &ModelClass) -> Result<Self, ConfigError> {
        let keys = &family.keys;
        let raw = &file.values;
        let (activation_key, activation) = keys.activation;
        if let Some(found) = string_key(raw, activation_key)?
            && found != activation
        {
            return Err(unsupported(activation_key, found, activation));
        }
        let rope = RopeConfig::parse(raw, family.positions)?;
        let hidden = required_size_key(raw, keys.hidden)?;
        let heads = required_size_key(raw, keys.query_heads)?;
        let (positions_key, default_positions) = keys.max_positions;
        let max_positions = size_key(raw, positions_key)?.unwrap_or(default_positions);
        refuse_sliding_window(raw, family, max_positions)?;
        let head_dim = size_key(raw, "head_dim")?.unwrap_or(hidden / heads);
        if head_dim == 0 || head_dim % 2 == 1 {
            return Err(ConfigError::InvalidValue {
                key: "head_dim".into(),
                found: head_dim.to_string(),
                expected: "an even number above 0",
            });
        }
        let rotated = rope.rotated_dimensions(head_dim);
        if rotated == 0 || rotated % 2 == 1 {
            return Err(ConfigError::InvalidValue {
                key: "head_dim × the rotated share of a head".into(),
                found: rotated.to_string(),
                expected: "an even number above 0",
            });
        }
        refuse_other_constants(raw, class, head_dim)?;
        let key_value_heads = match keys.key_value_heads {
            Some(key) => size_key(raw, key)?,
            None => None,
        };
        let (epsilon_key, default_epsilon) = keys.norm_epsilon;
        Ok(Self {
            hidden,
            layers: required_size_key(raw, keys.layers)?,
            head_dim,
            declared_widths: BlockWidths {
                query_heads: Some(heads),
                key_value_heads: Some(key_value_heads.unwrap_or(heads)),
                mlp_channels: size_key(raw, keys.mlp_channels)?,
            },
            vocab: required_size_key(raw, keys.vocab)?,
            max_positions,
            norm_epsilon: positive_number_key(raw, epsilon_key)?.unwrap_or(default_epsilon) as f32,
            tied_embeddings: bool_key(raw, "tie_word_embeddings")?.unwrap_or(false),
            declared_biases: declared_biases(raw, family)?,
            rope,
            residual: match family.residual {
                ResidualRule::Always(residual) => residual,
                ResidualRule::ParallelIf { key, default } => {
                    match bool_key(raw, key)?.unwrap_or(default) {
                        true => Residual::Parallel,
                        false => Residual::Sequential,
                    }
                }
            },
            raw: file.clone(),
        })
    }
}

fn unsupported(key: &'static str, found: &str, supported: &str) -> ConfigError {
    ConfigError::Unsupported {
        key,
        found: found.to_owned(),
        supported: supported.to_owned(),
    }
}

/// The attention here uses all earlier positions, so a window that is shorter than the model's
/// positions is refused.
fn refuse_sliding_window(
    raw: &Map<String, Value>,
    family: &Family,
    max_positions: usize,
) -> Result<(), ConfigError> {
    let Some(keys) = family.keys.sliding_window else {
        return Ok(());
    };
    let is_enabled = match keys.enabled_by {
        Some(key) => bool_key(raw, key)?.unwrap_or(false),
        None => true,
    };
    match size_key(raw, keys.size)? {
        Some(window) if is_enabled && window < max_positions => Err(unsupported(
            keys.size,
            &window.to_string(),
            "null, or at least max_position_embeddings",
        )),
        _ => Ok(()),
    }
}

/// Multipliers of a class must have the values at which they change nothing.
fn refuse_other_constants(
    raw: &Map<String, Value>,
    class: &ModelClass,
    head_dim: usize,
) -> Result<(), ConfigError> {
    for &(key, constant) in class.constants {
        let Some(required) = constant.number(head_dim) else {
            continue;
        };
        // transformers' default of every multiplier is 1
        let found = positive_number_key(raw, key)?.unwrap_or(1.0);
        if (found - required).abs() > 1e-9 {
            return Err(unsupported(
                key,
                &found.to_string(),
                &format!("{required}, at which it changes nothing"),
            ));
        }
    }
    Ok(())
}

/// The tensors of a block that have biases, as the family and the config say.
fn declared_biases(
    raw: &Map<String, Value>,
    family: &Family,
) -> Result<BTreeSet<BlockTensor>, ConfigError> {
    let mut biased = BTreeSet::new();
    for rule in family.biases {
        let is_declared = match rule.when {
            BiasCondition::Always => true,
            BiasCondition::Key { key, default } => bool_key(raw, key)?.unwrap_or(default),
        };
        if is_declared {
            biased.extend(rule.tensors);
        }
    }
    if family.norms_have_biases() {
        biased.extend(
            family
                .block_tensor_ids()
                .filter(|tensor| !tensor.is_matrix()),
        );
    }
    Ok(biased)
}

/// Why a text is not a JSON object.
pub(crate) fn json_words(error: &serde_json::Error) -> String {
    match error.is_data() {
        true => "it is JSON, but not an object".to_owned(),
        false => format!("it is not valid JSON: {error}"),
    }
}

fn required_size_key(raw: &Map<String, Value>, key: &'static str) -> Result<usize, ConfigError> {
    size_key(raw, key)?.ok_or(ConfigError::MissingKey(key))
}

/// The number at the first of these keys that is present.
fn first_number_key(
    raw: &Map<String, Value>,
    keys: &[&'static str],
) -> Result<Option<f64>, ConfigError> {
    for key in keys {
        if let Some(number) = positive_number_key(raw, key)? {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

fn table_key<'a>(
    raw: &'a Map<String, Value>,
    key: &'static str,
) -> Result<Option<&'a Map<String, Value>>, ConfigError> {
    match raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(table)) => Ok(Some(table)),
        Some(other) => Err(ConfigError::InvalidValue {
            key: key.to_owned(),
            found: other.to_string(),
            expected: "a table",
        }),
    }
}

fn size_key(raw: &Map<String, Value>, key: &'static str) -> Result<Option<usize>, ConfigError> {
    match raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(n) if (1..=MAX_SIZE).contains(&n) => Ok(Some(n as usize)),
            _ => Err(ConfigError::InvalidValue {
                key: key.to_owned(),
                found: value.to_string(),
                expected: "a whole number from 1 to 16777216",
            }),
        },
    }
}

fn positive_number_key(
    raw: &Map<String, Value>,
    key: &'static str,
) -> Result<Option<f64>, ConfigError> {
    match raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(x) if (x as f32).is_finite() && x > 0.0 => Ok(Some(x)),
            _ => Err(ConfigError::InvalidValue {
                key: key.to_owned(),
                found: value.to_string(),
                expected: "a positive number",
            }),
        },
    }
}

fn bool_key(raw: &Map<String, Value>, key: &'static str) -> Result<Option<bool>, ConfigError> {
    match raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => Err(ConfigError::InvalidValue {
            key: key.to_owned(),
            found: other.to_string(),
            expected: "true or false",
        }),
    }
}

fn string_key<'a>(
    raw: &'a Map<String, Value>,
    key: &'static str,
) -> Result<Option<&'a str>, ConfigError> {
    match raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(ConfigError::InvalidValue {
            key: key.to_owned(),
            found: other.to_string(),
            expected: "a text",
        }),
    }
}
