//! `config.json`: what it says, in both of transformers' styles, and what follows from it.

use serde_json::{Map, Value};

use super::wiring::Part;

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
    pub widths: Widths,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// ε of the RMS norms.
    pub norm_epsilon: f32,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// What it says of biases; what counts are those that the blocks have.
    pub biases: Biases,
    pub rope: Rope,
    /// Every key as it was read, for the export to hand on.
    pub raw: Map<String, Value>,
}

/// Widths inside the blocks, the largest where layers differ.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Widths {
    /// Query heads.
    pub queries: Option<usize>,
    /// Key/value heads.
    pub keys: Option<usize>,
    /// Channels of the MLP.
    pub mlp: Option<usize>,
}

/// Which matrices have biases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    pub attention: bool,
    pub mlp: bool,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
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
        low: f64,
        high: f64,
        original: f64,
    },
}

/// `config.json` says something this program cannot work with.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum ConfigError {
    #[error("it is not valid JSON: {0}")]
    Json(String),
    #[error("the key `{0}` is missing")]
    Missing(&'static str),
    #[error("`{key}` is {found}, which is not {expected}")]
    Wrong { key: String, found: String, expected: &'static str },
    #[error("`{key}` = {found} is not supported; supported: {supported}")]
    Unsupported { key: &'static str, found: String, supported: String },
}

/// What Granite multiplies by and LLaMA does not.
pub const GRANITE_AT_REST: [&str; 3] = ["embedding_multiplier", "residual_multiplier", "logits_scaling"];

/// More than any model has; a size beyond it is a mistake, and products of sizes below it do not overflow.
const LARGEST: u64 = 1 << 24;

impl Config {
    /// The matrices that have biases.
    pub fn biased(&self) -> impl Iterator<Item = Part> {
        let attention = self.biases.attention.then_some(Part::ATTENTION).into_iter().flatten();
        attention.chain(self.biases.mlp.then_some(Part::MLP).into_iter().flatten())
    }

    /// Reads the text of a `config.json`.
    pub fn parse(text: &str, model_types: &[&str]) -> Result<Self, ConfigError> {
        let raw: Map<String, Value> = serde_json::from_str(text).map_err(|e| ConfigError::Json(e.to_string()))?;
        let model_type = raw.get("model_type").and_then(Value::as_str).ok_or(ConfigError::Missing("model_type"))?;
        let unsupported = |key, found: &str, supported: &str| {
            Err(ConfigError::Unsupported { key, found: found.to_owned(), supported: supported.to_owned() })
        };
        if !model_types.contains(&model_type) {
            return unsupported("model_type", model_type, &model_types.join(", "));
        }
        if let Some(act) = text_of(&raw, "hidden_act")?
            && act != "silu"
        {
            return unsupported("hidden_act", act, "silu");
        }
        if let Some(share) = number(&raw, "partial_rotary_factor")?
            && share != 1.0
        {
            return unsupported("partial_rotary_factor", &share.to_string(), "1");
        }
        let hidden = size(&raw, "hidden_size")?.ok_or(ConfigError::Missing("hidden_size"))?;
        let heads = size(&raw, "num_attention_heads")?.ok_or(ConfigError::Missing("num_attention_heads"))?;
        let max_positions = size(&raw, "max_position_embeddings")?.unwrap_or(2048);
        if let Some(window) = size(&raw, "sliding_window")?
            && window < max_positions
        {
            return unsupported("sliding_window", &window.to_string(), "null, or at least max_position_embeddings");
        }
        let head_dim = size(&raw, "head_dim")?.unwrap_or(hidden / heads);
        if head_dim == 0 || head_dim % 2 == 1 {
            return Err(ConfigError::Wrong {
                key: "head_dim".into(),
                found: head_dim.to_string(),
                expected: "an even number above 0",
            });
        }
        if model_type == "granite" {
            let rest = (head_dim as f64).powf(-0.5);
            let multipliers = GRANITE_AT_REST.map(|key| (key, 1.0)).into_iter().chain([("attention_multiplier", rest)]);
            for (key, rest) in multipliers {
                // transformers' default of all four is 1
                let found = number(&raw, key)?.unwrap_or(1.0);
                if (found - rest).abs() > 1e-9 {
                    return unsupported(key, &found.to_string(), &format!("{rest}, as LLaMA"));
                }
            }
        }
        Ok(Self {
            hidden,
            layers: size(&raw, "num_hidden_layers")?.ok_or(ConfigError::Missing("num_hidden_layers"))?,
            head_dim,
            widths: Widths {
                queries: Some(heads),
                keys: Some(size(&raw, "num_key_value_heads")?.unwrap_or(heads)),
                mlp: size(&raw, "intermediate_size")?,
            },
            vocab: size(&raw, "vocab_size")?.ok_or(ConfigError::Missing("vocab_size"))?,
            max_positions,
            norm_epsilon: number(&raw, "rms_norm_eps")?.unwrap_or(1e-6) as f32,
            tied: truth(&raw, "tie_word_embeddings")?.unwrap_or(false),
            biases: Biases {
                attention: truth(&raw, "attention_bias")?.unwrap_or(false),
                mlp: truth(&raw, "mlp_bias")?.unwrap_or(false),
            },
            rope: Rope::parse(&raw)?,
            raw,
        })
    }
}

impl Rope {
    /// `rope_parameters` is the newer style, `rope_theta` with `rope_scaling` the older.
    fn parse(raw: &Map<String, Value>) -> Result<Self, ConfigError> {
        let empty = Map::new();
        let table = |key: &'static str| match raw.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(table)) => Ok(Some(table)),
            Some(other) => Err(ConfigError::Wrong { key: key.to_owned(), found: other.to_string(), expected: "a table" }),
        };
        let parameters = table("rope_parameters")?.or(table("rope_scaling")?).unwrap_or(&empty);
        let theta = match number(parameters, "rope_theta")? {
            Some(theta) => theta,
            None => number(raw, "rope_theta")?.unwrap_or(10_000.0),
        };
        let kind = match text_of(parameters, "rope_type")?.or(text_of(parameters, "type")?) {
            Some(kind) => kind,
            None if parameters.contains_key("factor") => return Err(ConfigError::Missing("rope_type")),
            None => "default",
        };
        let need = |key: &'static str| number(parameters, key)?.ok_or(ConfigError::Missing(key));
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: need("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: need("factor")?,
                low: need("low_freq_factor")?,
                high: need("high_freq_factor")?,
                original: need("original_max_position_embeddings")?,
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
                    RopeScaling::Llama3 { factor, low, high, original } => {
                        let wavelength = 2.0 * std::f64::consts::PI / f64::from(plain);
                        if wavelength < original / high {
                            plain
                        } else if wavelength > original / low {
                            plain / factor as f32
                        } else {
                            let smooth = (original / wavelength - low) / (high - low);
                            ((1.0 - smooth) * f64::from(plain) / factor + smooth * f64::from(plain)) as f32
                        }
                    }
                }
            })
            .collect()
    }
}

fn size(raw: &Map<String, Value>, key: &'static str) -> Result<Option<usize>, ConfigError> {
    match raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(n) if (1..=LARGEST).contains(&n) => Ok(Some(n as usize)),
            _ => Err(ConfigError::Wrong {
                key: key.to_owned(),
                found: value.to_string(),
                expected: "a whole number from 1 to 16777216",
            }),
        },
    }
}

fn number(raw: &Map<String, Value>, key: &'static str) -> Result<Option<f64>, ConfigError> {
    match raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(x) if (x as f32).is_finite() && x > 0.0 => Ok(Some(x)),
            _ => Err(ConfigError::Wrong { key: key.to_owned(), found: value.to_string(), expected: "a positive number" }),
        },
    }
}

fn truth(raw: &Map<String, Value>, key: &'static str) -> Result<Option<bool>, ConfigError> {
    match raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(truth)) => Ok(Some(*truth)),
        Some(other) => Err(ConfigError::Wrong { key: key.to_owned(), found: other.to_string(), expected: "true or false" }),
    }
}

fn text_of<'a>(raw: &'a Map<String, Value>, key: &'static str) -> Result<Option<&'a str>, ConfigError> {
    match raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(ConfigError::Wrong { key: key.to_owned(), found: other.to_string(), expected: "a text" }),
    }
}
