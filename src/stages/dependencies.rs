//! `dependencies`: Model → the groups of coupled structures (LLM-Pruner, section 3.1, equations 1 and 2).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fault, World};

/// Finds what must be removed together.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What a unit is. Default `block`.
    pub grouping: Grouping,
    /// Layers whose attention takes part: `[start, end]`, 0-based, the end not included. Default: all.
    pub attention_layers: Option<[usize; 2]>,
    /// Layers whose MLP takes part: `[start, end]`, 0-based, the end not included. Default: all.
    pub mlp_layers: Option<[usize; 2]>,
}

/// The kinds of coupled structures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Grouping {
    /// Attention heads (a key/value head with its query heads) and MLP channels, layer by layer.
    #[default]
    Block,
    /// Channels of the residual stream, through the whole model.
    Channel,
    /// Whole layers.
    Layer,
}

impl Options {
    pub fn faults(&self) -> Vec<Fault> {
        [("attention_layers", self.attention_layers), ("mlp_layers", self.mlp_layers)]
            .into_iter()
            .filter_map(|(key, range)| {
                let [start, end] = range?;
                (start > end).then(|| {
                    Fault::new(key, format!("the layer range [{start}, {end}] ends before it starts"), "a range is `[start, end]`, 0-based, the end not included")
                })
            })
            .collect()
    }

    pub fn world(&self, world: &mut World) -> Vec<Fault> {
        let Some(model) = &world.model else { return Vec::new() };
        [("attention_layers", self.attention_layers), ("mlp_layers", self.mlp_layers)]
            .into_iter()
            .filter_map(|(key, range)| {
                let [start, end] = range?;
                (end > model.layers).then(|| {
                    Fault::new(key, format!("the layer range [{start}, {end}] reaches beyond the model's {} layers", model.layers), format!("the last range that fits is [{start}, {}]", model.layers))
                })
            })
            .collect()
    }
}
