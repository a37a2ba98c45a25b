//! The pruning plan: which units of the dense model stay. With the dense checkpoint it rebuilds the pruned model.

use serde::{Deserialize, Serialize};

use super::Model;
use super::groups::{self, Group, Kind, Lie};
use super::wiring::{Axis, Place, Space};

/// What stays of a dense model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruningPlan {
    pub groups: Vec<KeptUnits>,
}

/// What stays of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptUnits {
    /// Layer of the dense model; 0 for groups that span it.
    pub layer: usize,
    pub kind: Kind,
    /// Units of the group in the dense model.
    pub units: usize,
    /// The units that stay, ascending, counted in the dense model.
    pub kept: Vec<usize>,
}

/// A plan does not fit the model it is applied to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("the plan prunes layer {layer}, the model has {layers}")]
    Layer { layer: usize, layers: usize },
    #[error("the plan's {kind} group of layer {layer} has {expected} units, the model's {found}")]
    Units { kind: &'static str, layer: usize, expected: usize, found: usize },
    #[error("the plan's {kind} group of layer {layer} keeps units that are not ascending, outside the group, or none")]
    Kept { kind: &'static str, layer: usize },
}

impl PruningPlan {
    /// The dense model's layer that is now layer `now`.
    pub fn dense_layer(&self, now: usize) -> usize {
        self.groups.iter().find(|g| g.kind == Kind::Layer).map_or(now, |g| g.kept[now])
    }

    /// The entry of a group of the model as it is now.
    pub fn find(&self, kind: Kind, layer_now: usize) -> Option<&KeptUnits> {
        let layer = self.layer_of(kind, layer_now);
        self.groups.iter().find(|g| g.kind == kind && g.layer == layer)
    }

    /// Records that of a group, as it is now, only these units stay.
    pub fn keep(&mut self, group: &Group, kept_now: &[usize]) {
        let layer = self.layer_of(group.kind, group.layer);
        match self.groups.iter_mut().find(|g| g.kind == group.kind && g.layer == layer) {
            Some(entry) => entry.kept = kept_now.iter().map(|&u| entry.kept[u]).collect(),
            None => self.groups.push(KeptUnits { layer, kind: group.kind, units: group.units, kept: kept_now.to_vec() }),
        }
    }

    /// The pruned model.
    ///
    /// # Errors
    /// If the plan was made for another model.
    pub fn apply(&self, dense: &Model) -> Result<Model, PlanError> {
        let mut model = dense.clone();
        // Layers go last: until then every group is found at its dense number.
        let (layers, within): (Vec<_>, Vec<_>) = self.groups.iter().partition(|g| g.kind == Kind::Layer);
        for entry in within.into_iter().chain(layers) {
            if matches!(entry.kind, Kind::Attention | Kind::Mlp) && entry.layer >= model.blocks.len() {
                return Err(PlanError::Layer { layer: entry.layer, layers: model.blocks.len() });
            }
            let group = match entry.kind {
                Kind::Attention => groups::of_layer(&model, Space::Heads, entry.layer),
                Kind::Mlp => groups::of_layer(&model, Space::Mlp, entry.layer),
                Kind::Hidden => groups::of_hidden(&model),
                Kind::Layer => groups::of_layers(&model),
            };
            let (kind, layer) = (entry.kind.name(), entry.layer);
            if group.units != entry.units {
                return Err(PlanError::Units { kind, layer, expected: entry.units, found: group.units });
            }
            if entry.kept.is_empty() || !entry.kept.is_sorted_by(|a, b| a < b) || entry.kept.iter().any(|&u| u >= entry.units) {
                return Err(PlanError::Kept { kind, layer });
            }
            model = keep(&model, &group, &entry.kept);
        }
        Ok(model)
    }

    /// The layer by which a group of the model as it is now is known in the plan.
    pub fn layer_of(&self, kind: Kind, now: usize) -> usize {
        match kind {
            Kind::Attention | Kind::Mlp => self.dense_layer(now),
            Kind::Hidden | Kind::Layer => 0,
        }
    }
}

/// The model with only these units of one group, in the order given.
pub fn keep(model: &Model, group: &Group, kept: &[usize]) -> Model {
    let mut pruned = model.clone();
    for member in &group.members {
        let Lie::Along(axis) = member.lie else { continue };
        if member.place == Place::Head && model.head.is_none() {
            continue; // a tied head is the embedding
        }
        let width = group.channels_per_unit(model, member);
        let channels: Vec<usize> = kept.iter().flat_map(|&unit| unit * width..(unit + 1) * width).collect();
        let weight = model.weight(member.place);
        *pruned.weight_mut(member.place) = match axis {
            Axis::Rows => weight.keep_rows(&channels),
            Axis::Cols => weight.keep_cols(&channels),
        };
        if let (Place::Block(layer, part), Axis::Rows) = (member.place, axis)
            && let Some(bias) = model.blocks[layer].bias(part)
        {
            pruned.blocks[layer].set_bias(part, bias.keep_cols(&channels));
        }
    }
    match group.kind {
        Kind::Hidden => pruned.config.hidden = kept.len(),
        Kind::Layer => {
            pruned.blocks = kept.iter().map(|&layer| model.blocks[layer].clone()).collect();
            pruned.config.layers = kept.len();
        }
        Kind::Attention | Kind::Mlp => {}
    }
    pruned
}
