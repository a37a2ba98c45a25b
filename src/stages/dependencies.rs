//! `dependencies`: model → the groups of coupled structures (LLM-Pruner, section 3.1, equations 1
//! and 2).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Context;
use super::environment::{Environment, ExpectedGroups, OptionFault, UnusedOption};
use super::error::{RestoreError, StageError};
use super::facts::EarlierStages;
use super::stage::{Stage, StageOutput, StageType, describe_options};
use super::stored;
use super::values::{GRAPH, MODEL, StageValues, ValueKind};
use secateur_model::groups::{self, DependencyGraph, Group, GroupKind};
use secateur_model::wiring::ChannelSpace;
use secateur_model::{Model, ModelHeader};
use secateur_store::cache::{ProductDraft, StoredProduct};

pub static TYPE: StageType = StageType {
    needs: &[ValueKind::Model],
    makes: &[ValueKind::Graph],
    spends: &[ValueKind::Scores, ValueKind::GroupScores],
    summary: |options| describe_options(options, &["grouping"]),
    ..StageType::new::<Options>("dependencies")
};

/// Finds the structures that can only be removed together.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The kind of groups. Default `block`.
    pub grouping: Grouping,
    /// Layers whose attention heads can be pruned: `[start, end]`, 0-based, the end not included.
    /// Default: all.
    pub attention_layers: Option<[usize; 2]>,
    /// Layers whose MLP channels can be pruned: `[start, end]`, 0-based, the end not included.
    /// Default: all.
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
    /// The layer ranges that are set, each with the name of its option.
    fn layer_ranges(&self) -> impl Iterator<Item = (&'static str, [usize; 2])> {
        let options = [
            ("attention_layers", self.attention_layers),
            ("mlp_layers", self.mlp_layers),
        ];
        options
            .into_iter()
            .filter_map(|(key, range)| Some((key, range?)))
    }
}

impl Options {
    /// The groups of a model, as far as its header declares their sizes.
    fn expected_groups(&self, model: &ModelHeader) -> Vec<ExpectedGroups> {
        let groups = |kind, count, units| ExpectedGroups {
            kind,
            count,
            units,
            unit_width: 1,
        };
        let layer_count = |range: Option<[usize; 2]>| match range {
            Some([start, end]) => end.min(model.layers).saturating_sub(start),
            None => model.layers,
        };
        match self.grouping {
            Grouping::Channel => vec![groups(GroupKind::Hidden, 1, model.hidden)],
            Grouping::Layer => vec![groups(GroupKind::Layer, 1, model.layers)],
            Grouping::Block => {
                let widths = model.declared_widths;
                let heads = widths.key_value_heads.unwrap_or(model.heads);
                let attention = ExpectedGroups {
                    unit_width: model.head_dim,
                    ..groups(
                        GroupKind::Attention,
                        layer_count(self.attention_layers),
                        heads,
                    )
                };
                let Some(channels) = widths.mlp_channels else {
                    return Vec::new();
                };
                let mlp = groups(GroupKind::Mlp, layer_count(self.mlp_layers), channels);
                [attention, mlp]
                    .into_iter()
                    .filter(|groups| groups.count > 0)
                    .collect()
            }
        }
    }
}

impl Stage for Options {
    fn stage_type(&self) -> &'static StageType {
        &TYPE
    }

    fn option_faults(&self) -> Vec<OptionFault> {
        let mut faults = Vec::new();
        for (key, [start, end]) in self.layer_ranges() {
            if start > end {
                faults.push(OptionFault::new(
                    key,
                    format!("the layer range [{start}, {end}] ends before it starts"),
                    "a range is `[start, end]`, 0-based, the end not included",
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

    fn unused_options(&self, _: &EarlierStages) -> Vec<UnusedOption> {
        if self.grouping == Grouping::Block {
            return Vec::new();
        }
        let keys = ["attention_layers", "mlp_layers"];
        let reason = "only groups of the kind `block` have a range of layers";
        UnusedOption::all(&keys, reason).collect()
    }

    fn state_facts(&self, facts: &mut EarlierStages) {
        facts.has_block_groups = self.grouping == Grouping::Block;
        facts.has_layer_groups = self.grouping == Grouping::Layer;
    }

    fn environment_faults(&self, environment: &mut Environment) -> Vec<OptionFault> {
        environment.add_weights(1);
        let Some(model) = &environment.model else {
            environment.groups.clear();
            return Vec::new();
        };
        let layers = model.layers;
        environment.groups = self.expected_groups(model);
        let mut faults = Vec::new();
        for (key, [start, end]) in self.layer_ranges() {
            if end > layers {
                faults.push(OptionFault::new(
                    key,
                    format!(
                        "the layer range [{start}, {end}] reaches beyond the model's {layers} \
                         layers"
                    ),
                    format!(
                        "the last range that fits is [{}, {layers}]",
                        start.min(layers - 1)
                    ),
                ));
            }
        }
        faults
    }

    fn run(&self, _: &Context, inputs: &StageValues) -> Result<StageOutput, StageError> {
        let graph = run(self, inputs.require(MODEL)?)?;
        Ok(StageValues::default().with(GRAPH, graph).into())
    }

    fn store(&self, values: &StageValues, draft: &ProductDraft) -> Result<(), StageError> {
        stored::write_value(draft, values.require(GRAPH)?)
    }

    fn restore(&self, product: &StoredProduct) -> Result<StageValues, RestoreError> {
        Ok(StageValues::default().with(GRAPH, stored::read_value(product)?))
    }
}

/// The groups could not be built.
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
    let groups = match options.grouping {
        Grouping::Channel => vec![groups::residual_group(model)],
        Grouping::Layer => vec![groups::whole_layer_group(model)],
        Grouping::Block => block_groups(options, model),
    };
    tracing::info!(
        groups = groups.len(),
        units = groups.iter().map(|group| group.unit_count).sum::<usize>(),
        "groups found"
    );
    Ok(DependencyGraph { groups })
}

/// The groups of single layers in the reference's order: ascending layers, attention before MLP.
fn block_groups(options: &Options, model: &Model) -> Vec<Group> {
    let layers = model.blocks.len();
    let to_range = |range: Option<[usize; 2]>| range.map_or(0..layers, |[start, end]| start..end);
    let attention_layers = to_range(options.attention_layers);
    let mlp_layers = to_range(options.mlp_layers);
    let mut block_groups = Vec::new();
    for layer in 0..layers {
        if attention_layers.contains(&layer) {
            block_groups.push(groups::block_group(model, ChannelSpace::Heads, layer));
        }
        if mlp_layers.contains(&layer) {
            block_groups.push(groups::block_group(model, ChannelSpace::Mlp, layer));
        }
    }
    block_groups
}
