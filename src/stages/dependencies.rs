//! `dependencies`: Model → the groups of coupled structures (LLM-Pruner, section 3.1, equations 1 and 2).

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Environment, InputFile, OptionFault};
use secateur_model::Model;
use secateur_model::groups::{self, DependencyGraph};
use secateur_model::wiring::ChannelSpace;

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
    /// What the stage reads: nothing.
    pub fn inputs(&self, _: Option<&Path>) -> Vec<InputFile> {
        Vec::new()
    }

    pub fn faults(&self) -> Vec<OptionFault> {
        let mut faults = Vec::new();
        for (key, [start, end]) in self.layer_ranges() {
            if start > end {
                faults.push(OptionFault::new(
                    key,
                    format!("the layer range [{start}, {end}] ends before it starts"),
                    "a range is `[start, end]`, 0-based, the end not included",
                ));
            }
            if self.grouping != Grouping::Block {
                faults.push(OptionFault::new(
                    key,
                    "only block groups have a range of layers: the other groups span the model",
                    "remove the line, or write grouping = \"block\"",
                ));
            }
        }
        let is_empty = |range: Option<[usize; 2]>| range.is_some_and(|[start, end]| start == end);
        if is_empty(self.attention_layers) && is_empty(self.mlp_layers) {
            faults.push(OptionFault::new(
                "mlp_layers",
                "no layer takes part: both ranges are empty",
                "give one of them a layer",
            ));
        }
        faults
    }

    pub fn environment_faults(&self, world: &mut Environment) -> Vec<OptionFault> {
        world.add_weights(1);
        let Some(layers) = world.model.as_ref().map(|model| model.layers) else {
            return Vec::new();
        };
        self.layer_ranges()
            .filter(|(_, [_, end])| *end > layers)
            .map(|(key, [start, end])| {
                let message = format!(
                    "the layer range [{start}, {end}] reaches beyond the model's {layers} layers"
                );
                OptionFault::new(
                    key,
                    message,
                    format!(
                        "the last range that fits is [{}, {layers}]",
                        start.min(layers - 1)
                    ),
                )
            })
            .collect()
    }

    /// The ranges that are given, by their option.
    fn layer_ranges(&self) -> impl Iterator<Item = (&'static str, [usize; 2])> {
        let given = [
            ("attention_layers", self.attention_layers),
            ("mlp_layers", self.mlp_layers),
        ];
        given
            .into_iter()
            .filter_map(|(key, range)| Some((key, range?)))
    }
}

/// No groups could be found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the layer range [{start}, {end}] reaches beyond the model's {layers} layers")]
    LayersOutOfRange {
        start: usize,
        end: usize,
        layers: usize,
    },
}

/// Finds the groups of a model.
pub fn run(options: &Options, model: &Model) -> Result<DependencyGraph, Error> {
    let layers = model.blocks.len();
    if let Some((_, [start, end])) = options.layer_ranges().find(|(_, [_, end])| *end > layers) {
        return Err(Error::LayersOutOfRange { start, end, layers });
    }
    let range = |given: Option<[usize; 2]>| given.map_or(0..layers, |[start, end]| start..end);
    let (attention, mlp) = (range(options.attention_layers), range(options.mlp_layers));
    let groups = match options.grouping {
        Grouping::Channel => vec![groups::residual_group(model)],
        Grouping::Layer => vec![groups::whole_layer_group(model)],
        // The reference's order: ascending layers, attention before MLP.
        Grouping::Block => (0..layers)
            .flat_map(|layer| {
                let attention = attention
                    .contains(&layer)
                    .then(|| groups::block_group(model, ChannelSpace::Heads, layer));
                let mlp = mlp
                    .contains(&layer)
                    .then(|| groups::block_group(model, ChannelSpace::Mlp, layer));
                attention.into_iter().chain(mlp)
            })
            .collect(),
    };
    tracing::info!(
        groups = groups.len(),
        units = groups.iter().map(|g| g.unit_count).sum::<usize>(),
        "groups found"
    );
    Ok(DependencyGraph { groups })
}
