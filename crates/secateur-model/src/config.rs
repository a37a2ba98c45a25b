//! `config.json`: what it says, in both of transformers' styles, and what follows from it.

use serde_json::{Map, Value};

use super::wiring::BlockTensor;

/// What a model's `config.json` says that its weights do not.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Width of an attention head.
    pub head_dim: usize,
    /// What it says of widths inside the blocks; what counts are the weights.
    pub declared_widths: BlockWidths,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// ε of the RMS norms.
    pub norm_epsilon: f32,
    /// Whether the output head is the embedding.
    pub tied_embeddings: bool,
    /// What it says of biases; what counts are those that the blocks have.
    pub declared_biases: BiasFlags,
    pub rope: RopeConfig,
    /// Every key as it was read, for the export to hand on.
    pub raw: Map<String, Value>,
}

/// Widths inside the blocks, the largest where layers differ.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BlockWidths {
    /// Query heads.
    pub query_heads: Option<usize>,
    /// Key/value heads.
    pub key_value_heads: Option<usize>,
    /// Channels of the MLP.
    pub mlp_channels: Option<usize>,
}

/// Which matrices have biases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BiasFlags {
    pub attention: bool,
    pub mlp: bool,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// How the frequencies are stretched for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// All frequencies divided by the factor.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by the factor, high ones kept, a ramp between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_positions: f64,
    },
}

/// `config.json` says something this program cannot work with.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum ConfigError {
    #[error("it is not valid JSON: {0}")]
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

/// What Granite multiplies by and LLaMA does not.
pub const GRANITE_UNIT_MULTIPLIERS: [&str; 3] = [
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
];

/// More than any model has; a size beyond it is a mistake, and products of sizes below it do not overflow.
const MAX_SIZE: u64 = 1 << 24;

impl Config {
    /// The matrices that have biases.
    pub fn biased_tensors(&self) -> impl Iterator<Item = BlockTensor> {
        let attention = self
            .declared_biases
            .attention
            .then_some(BlockTensor::ATTENTION)
            .into_iter()
            .flatten();
        attention.chain(
            self.declared_biases
                .mlp
                .then_some(BlockTensor::MLP)
                .into_iter()
                .flatten(),
        )
    }

    /// Reads the text of a `config.json`.
    pub fn parse(text: &str, model_types: &[&str]) -> Result<Self, ConfigError> {
        let raw: Map<String, Value> =
            serde_json::from_str(text).map_err(|e| ConfigError::Json(e.to_string()))?;
        let model_type = raw
            .get("model_type")
            .and_then(Value::as_str)
            .ok_or(ConfigError::MissingKey("model_type"))?;
        let unsupported = |key, found: &str, supported: &str| {
            Err(ConfigError::Unsupported {
                key,
                found: found.to_owned(),
                supported: supported.to_owned(),
            })
        };
        if !model_types.contains(&model_type) {
            return unsupported("model_type", model_type, &model_types.join(", "));
        }
        if let Some(act) = string_key(&raw, "hidden_act")?
            && act != "silu"
        {
            return unsupported("hidden_act", act, "silu");
        }
        if let Some(share) = positive_number_key(&raw, "partial_rotary_factor")?
            && share != 1.0
        {
            return unsupported("partial_rotary_factor", &share.to_string(), "1");
        }
        let hidden =
            size_key(&raw, "hidden_size")?.ok_or(ConfigError::MissingKey("hidden_size"))?;
        let heads = size_key(&raw, "num_attention_heads")?
            .ok_or(ConfigError::MissingKey("num_attention_heads"))?;
        let max_positions = size_key(&raw, "max_position_embeddings")?.unwrap_or(2048);
        if let Some(window) = size_key(&raw, "sliding_window")?
            && window < max_positions
        {
            return unsupported(
                "sliding_window",
                &window.to_string(),
                "null, or at least max_position_embeddings",
            );
        }
        let head_dim = size_key(&raw, "head_dim")?.unwrap_or(hidden / heads);
        if head_dim == 0 || head_dim % 2 == 1 {
            return Err(ConfigError::InvalidValue {
                key: "head_dim".into(),
                found: head_dim.to_string(),
                expected: "an even number above 0",
            });
        }
        if model_type == "granite" {
            let rest = (head_dim as f64).powf(-0.5);
            let multipliers = GRANITE_UNIT_MULTIPLIERS
                .map(|key| (key, 1.0))
                .into_iter()
                .chain([("attention_multiplier", rest)]);
            for (key, rest) in multipliers {
                // transformers' default of all four is 1
                let found = positive_number_key(&raw, key)?.unwrap_or(1.0);
                if (found - rest).abs() > 1e-9 {
                    return unsupported(key, &found.to_string(), &format!("{rest}, as LLaMA"));
                }
            }
        }
        Ok(Self {
            hidden,
            layers: size_key(&raw, "num_hidden_layers")?
                .ok_or(ConfigError::MissingKey("num_hidden_layers"))?,
            head_dim,
            declared_widths: BlockWidths {
                query_heads: Some(heads),
                key_value_heads: Some(size_key(&raw, "num_key_value_heads")?.unwrap_or(heads)),
                mlp_channels: size_key(&raw, "intermediate_size")?,
            },
            vocab: size_key(&raw, "vocab_size")?.ok_or(ConfigError::MissingKey("vocab_size"))?,
            max_positions,
            norm_epsilon: positive_number_key(&raw, "rms_norm_eps")?.unwrap_or(1e-6) as f32,
            tied_embeddings: bool_key(&raw, "tie_word_embeddings")?.unwrap_or(false),
            declared_biases: BiasFlags {
                attention: bool_key(&raw, "attention_bias")?.unwrap_or(false),
                mlp: bool_key(&raw, "mlp_bias")?.unwrap_or(false),
            },
            rope: RopeConfig::parse(&raw)?,
            raw,
        })
    }
}

impl RopeConfig {
    /// `rope_parameters` is the newer style, `rope_theta` with `rope_scaling` the older.
    fn parse(raw: &Map<String, Value>) -> Result<Self, ConfigError> {
        let empty = Map::new();
        let table = |key: &'static str| match raw.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(table)) => Ok(Some(table)),
            Some(other) => Err(ConfigError::InvalidValue {
                key: key.to_owned(),
                found: other.to_string(),
                expected: "a table",
            }),
        };
        let parameters = table("rope_parameters")?
            .or(table("rope_scaling")?)
            .unwrap_or(&empty);
        let theta = match positive_number_key(parameters, "rope_theta")? {
            Some(theta) => theta,
            None => positive_number_key(raw, "rope_theta")?.unwrap_or(10_000.0),
        };
        let kind = match string_key(parameters, "rope_type")?.or(string_key(parameters, "type")?) {
            Some(kind) => kind,
            None if parameters.contains_key("factor") => {
                return Err(ConfigError::MissingKey("rope_type"));
            }
            None => "default",
        };
        let need = |key: &'static str| {
            positive_number_key(parameters, key)?.ok_or(ConfigError::MissingKey(key))
        };
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear {
                factor: need("factor")?,
            },
            "llama3" => RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_positions: need("original_max_position_embeddings")?,
            },
            other => {
                return Err(ConfigError::Unsupported {
                    key: "rope_type",
                    found: other.to_owned(),
                    supported: "default, linear, llama3".to_owned(),
                });
            }
        };
        Ok(Self { theta, scaling })
    }

    /// One frequency per pair of dimensions, rounded as transformers rounds them.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                let plain = 1.0 / (self.theta as f32).powf(2.0 * i as f32 / head_dim as f32);
                match self.scaling {
                    RopeScaling::None => plain,
                    RopeScaling::Linear { factor } => plain / factor as f32,
                    RopeScaling::Llama3 {
                        factor,
                        low_freq_factor: low,
                        high_freq_factor: high,
                        original_max_positions: original,
                    } => {
                        let wavelength = 2.0 * std::f64::consts::PI / f64::from(plain);
                        if wavelength < original / high {
                            plain
                        } else if wavelength > original / low {
                            plain / factor as f32
                        } else {
                            let smooth = (original / wavelength - low) / (high - low);
                            ((1.0 - smooth) * f64::from(plain) / factor + smooth * f64::from(plain))
                                as f32
                        }
                    }
                }
            })
            .collect()
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
        Some(Value::Bool(truth)) => Ok(Some(*truth)),
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
