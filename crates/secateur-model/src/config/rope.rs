//! The rotary position embedding of a config: its base, the share of a head that it rotates, and the
//! scaling of its frequencies.

use serde_json::{Map, Value};

use super::*;

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    pub scaling: RopeScaling,
    /// The share of a head's dimensions that is rotated, 1 for all.
    pub rotated_share: f64,
}

/// The base of the rotary frequencies where the config has none.
pub const DEFAULT_ROPE_THETA: f64 = 10_000.0;

/// How the frequencies are changed for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// All frequencies are divided by the factor.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided by the factor, high ones are kept, those between are
    /// interpolated.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_positions: f64,
    },
}

impl RopeConfig {
    /// In the current style everything is in `rope_parameters`; in the older one the base is a key
    /// of the config and the scaling is in `rope_scaling`.
    pub(super) fn parse(
        raw: &Map<String, Value>,
        positions: Positions,
    ) -> Result<Self, ConfigError> {
        let Positions::RotaryHalves { base_keys, share } = positions;
        let empty = Map::new();
        let parameters = table_key(raw, "rope_parameters")?
            .or(table_key(raw, "rope_scaling")?)
            .unwrap_or(&empty);
        let theta = match positive_number_key(parameters, "rope_theta")? {
            Some(theta) => theta,
            None => first_number_key(raw, base_keys)?.unwrap_or(DEFAULT_ROPE_THETA),
        };
        const SHARE_KEY: &str = "partial_rotary_factor";
        let rotated_share = match share {
            RotaryShare::Whole => {
                let shares = [parameters, raw].map(|table| positive_number_key(table, SHARE_KEY));
                for share in shares {
                    if let Some(share) = share?
                        && share != 1.0
                    {
                        return Err(unsupported(SHARE_KEY, &share.to_string(), "1"));
                    }
                }
                1.0
            }
            RotaryShare::Keys { keys, default } => {
                match positive_number_key(parameters, SHARE_KEY)? {
                    Some(share) => share,
                    None => first_number_key(raw, keys)?.unwrap_or(default),
                }
            }
        };
        if rotated_share > 1.0 {
            return Err(unsupported(
                SHARE_KEY,
                &rotated_share.to_string(),
                "at most 1",
            ));
        }
        Ok(Self {
            theta,
            scaling: RopeScaling::parse(parameters)?,
            rotated_share,
        })
    }

    /// How many dimensions of a head are rotated.
    pub(crate) fn rotated_dimensions(&self, head_dim: usize) -> usize {
        (head_dim as f64 * self.rotated_share) as usize
    }

    /// One frequency for each pair i of the d rotated dimensions, θ^(−2i/d), then scaled: in f32
    /// and in this order, as transformers computes them.
    pub(crate) fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let rotated = self.rotated_dimensions(head_dim);
        let frequency = |pair: usize| {
            let exponent = 2.0 * pair as f32 / rotated as f32;
            self.scaling.apply(1.0 / (self.theta as f32).powf(exponent))
        };
        (0..rotated / 2).map(frequency).collect()
    }
}

impl RopeScaling {
    pub(super) fn parse(parameters: &Map<String, Value>) -> Result<Self, ConfigError> {
        let kind = match string_key(parameters, "rope_type")?.or(string_key(parameters, "type")?) {
            Some(kind) => kind,
            None if parameters.contains_key("factor") => {
                return Err(ConfigError::MissingKey("rope_type"));
            }
            None => "default",
        };
        let required = |key: &'static str| {
            positive_number_key(parameters, key)?.ok_or(ConfigError::MissingKey(key))
        };
        match kind {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear {
                factor: required("factor")?,
            }),
            "llama3" => Ok(Self::Llama3 {
                factor: required("factor")?,
                low_freq_factor: required("low_freq_factor")?,
                high_freq_factor: required("high_freq_factor")?,
                original_max_positions: required("original_max_position_embeddings")?,
            }),
            other => Err(unsupported("rope_type", other, "default, linear, llama3")),
        }
    }

    /// The scaled frequency.
    fn apply(&self, frequency: f32) -> f32 {
        match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor as f32,
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: original,
            } => {
                // `low` and `high` are numbers of wavelengths that fit into the original positions.
                let wavelength = 2.0 * std::f64::consts::PI / f64::from(frequency);
                if wavelength < original / high {
                    frequency
                } else if wavelength > original / low {
                    frequency / factor as f32
                } else {
                    // s from 0 at `low` to 1 at `high`: (1 − s) · frequency / factor + s ·
                    // frequency
                    let smooth = (original / wavelength - low) / (high - low);
                    let wide = f64::from(frequency);
                    ((1.0 - smooth) * wide / factor + smooth * wide) as f32
                }
            }
        }
    }
}
