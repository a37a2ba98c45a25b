//! `dependencies`: Model → the groups of coupled structures (LLM-Pruner, section 3.1, equations 1 and 2).

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fault, World};
use crate::model::Model;
use crate::model::groups::{self, DependencyGraph};
use crate::model::wiring::Space;

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
    /// The files that the stage reads: none.
    pub fn inputs(&self, _: Option<&Path>) -> Vec<PathBuf> {
        Vec::new()
    }

    pub fn faults(&self) -> Vec<Fault> {
        [("attention_layers", self.attention_layers), ("mlp_layers", self.mlp_layers)]
            .into_iter()
            .filter_map(|(key, range)| {
                let [start, end] = range?;
                (start > end).then(|| {
                    Fault::new(
                        key,
                        format!("the layer range [{start}, {end}] ends before it starts"),
                        "a range is `[start, end]`, 0-based, the end not included",
                    )
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
                    Fault::new(
                        key,
                        format!("the layer range [{start}, {end}] reaches beyond the model's {} layers", model.layers),
                        format!("the last range that fits is [{start}, {}]", model.layers),
                    )
                })
            })
            .collect()
    }
}

/// Finds the groups of a model.
pub fn run(options: &Options, model: &Model) -> DependencyGraph {
    let layers =
        |range: Option<[usize; 2]>| range.map_or(0..model.blocks.len(), |[start, end]| start..end.min(model.blocks.len()));
    let (attention, mlp) = (layers(options.attention_layers), layers(options.mlp_layers));
    let groups = match options.grouping {
        Grouping::Channel => vec![groups::of_hidden(model)],
        Grouping::Layer => vec![groups::of_layers(model)],
        // The reference's order: ascending layers, attention before MLP.
        Grouping::Block => (0..model.blocks.len())
            .flat_map(|layer| {
                let attention = attention.contains(&layer).then(|| groups::of_layer(model, Space::Heads, layer));
                let mlp = mlp.contains(&layer).then(|| groups::of_layer(model, Space::Mlp, layer));
                attention.into_iter().chain(mlp)
            })
            .collect(),
    };
    tracing::info!(groups = groups.len(), units = groups.iter().map(|g| g.units).sum::<usize>(), "groups found");
    DependencyGraph { groups }
}
