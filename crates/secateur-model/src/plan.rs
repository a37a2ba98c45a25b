//! The pruning plan: the units of the dense model that are kept. With the dense checkpoint it
//! rebuilds the pruned model.

use serde::{Deserialize, Serialize};

use crate::Model;
use crate::groups::{self, Group, GroupKind, UnitLayout};
use crate::wiring::{Axis, ChannelSpace, TensorId};

/// The units of a dense model that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruningPlan {
    pub groups: Vec<KeptUnits>,
}

/// The units of one group that are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptUnits {
    /// Layer of the dense model; 0 for groups that span it.
    pub layer: usize,
    pub kind: GroupKind,
    /// Units of the group in the dense model.
    pub units: usize,
    /// The units that are kept: indices in the dense model, ascending.
    pub kept: Vec<usize>,
}

/// A plan does not fit the model it is applied to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PruningPlanError {
    #[error("the plan prunes layer {layer}, the model has {layers}")]
    LayerOutOfRange { layer: usize, layers: usize },
    #[error("the plan's {kind} group of layer {layer} has {expected} units, the model's {found}")]
    UnitCountMismatch {
        kind: &'static str,
        layer: usize,
        expected: usize,
        found: usize,
    },
    #[error(
        "the plan's {kind} group of layer {layer} keeps units that are not ascending, outside the \
         group, or none"
    )]
    InvalidKeptUnits { kind: &'static str, layer: usize },
}

impl PruningPlan {
    /// The dense model's index of a layer of the pruned model.
    pub fn dense_layer(&self, pruned_layer: usize) -> usize {
        self.groups
            .iter()
            .find(|entry| entry.kind == GroupKind::Layer)
            .map_or(pruned_layer, |entry| entry.kept[pruned_layer])
    }

    /// The entry of a group of the pruned model.
    pub fn find_entry(&self, kind: GroupKind, pruned_layer: usize) -> Option<&KeptUnits> {
        let dense_layer = self.dense_group_layer(kind, pruned_layer);
        self.groups
            .iter()
            .find(|entry| entry.kind == kind && entry.layer == dense_layer)
    }

    /// Records that only these units of a group of the pruned model are kept: indices in the pruned
    /// model, ascending.
    pub fn record_kept_units(&mut self, group: &Group, kept: &[usize]) {
        let dense_layer = self.dense_group_layer(group.kind, group.layer);
        let recorded = self
            .groups
            .iter_mut()
            .find(|entry| entry.kind == group.kind && entry.layer == dense_layer);
        match recorded {
            // from indices in the pruned model to indices in the dense model
            Some(entry) => entry.kept = kept.iter().map(|&unit| entry.kept[unit]).collect(),
            // The group is still as in the dense model.
            None => self.groups.push(KeptUnits {
                layer: dense_layer,
                kind: group.kind,
                units: group.unit_count,
                kept: kept.to_vec(),
            }),
        }
    }

    /// The pruned model.
    ///
    /// # Errors
    /// If the plan was made for another model.
    pub fn apply(&self, dense: &Model) -> Result<Model, PruningPlanError> {
        let mut model = dense.clone();
        // Layers are removed last, so that every other group still has its dense layer index.
        let (layer_entries, other_entries): (Vec<_>, Vec<_>) = self
            .groups
            .iter()
            .partition(|entry| entry.kind == GroupKind::Layer);
        for entry in other_entries.into_iter().chain(layer_entries) {
            if matches!(entry.kind, GroupKind::Attention | GroupKind::Mlp)
                && entry.layer >= model.blocks.len()
            {
                return Err(PruningPlanError::LayerOutOfRange {
                    layer: entry.layer,
                    layers: model.blocks.len(),
                });
            }
            let group = match entry.kind {
                GroupKind::Attention => {
                    groups::block_group(&model, ChannelSpace::Heads, entry.layer)
                }
                GroupKind::Mlp => groups::block_group(&model, ChannelSpace::Mlp, entry.layer),
                GroupKind::Hidden => groups::residual_group(&model),
                GroupKind::Layer => groups::whole_layer_group(&model),
            };
            let (kind, layer) = (entry.kind.name(), entry.layer);
            if group.unit_count != entry.units {
                return Err(PruningPlanError::UnitCountMismatch {
                    kind,
                    layer,
                    expected: entry.units,
                    found: group.unit_count,
                });
            }
            if entry.kept.is_empty()
                || !entry.kept.is_sorted_by(|a, b| a < b)
                || entry.kept.iter().any(|&unit| unit >= entry.units)
            {
                return Err(PruningPlanError::InvalidKeptUnits { kind, layer });
            }
            model = keep_units(&model, &group, &entry.kept);
        }
        Ok(model)
    }

    /// The layer under which the plan records a group of the pruned model: the dense model's index
    /// of its layer, or 0 for a group that spans the model.
    pub fn dense_group_layer(&self, kind: GroupKind, pruned_layer: usize) -> usize {
        match kind {
            GroupKind::Attention | GroupKind::Mlp => self.dense_layer(pruned_layer),
            GroupKind::Hidden | GroupKind::Layer => 0,
        }
    }
}

/// The model with only these units of one group, in the order given. Biases are cut with the
/// outputs of their matrices and norms.
pub fn keep_units(model: &Model, group: &Group, kept: &[usize]) -> Model {
    let mut pruned = model.clone();
    pruned.source.is_pruned |= kept.len() < group.unit_count;
    for member in &group.members {
        let UnitLayout::AlongAxis(axis) = member.unit_layout else {
            continue;
        };
        if member.tensor_id == TensorId::LmHead && model.lm_head.is_none() {
            continue; // a tied output matrix is the embedding, which is a member itself
        }
        let width = group.channels_per_unit(model, member);
        let channels: Vec<usize> = kept
            .iter()
            .flat_map(|&unit| unit * width..(unit + 1) * width)
            .collect();
        let weight = model.weight(member.tensor_id);
        *pruned.weight_mut(member.tensor_id) = match axis {
            Axis::Rows => weight.keep_rows(&channels),
            Axis::Cols => weight.keep_cols(&channels),
        };
        match member.tensor_id {
            TensorId::Block(layer, tensor) if model.family.bias_axis(tensor) == axis => {
                if let Some(bias) = model.blocks[layer].bias(tensor) {
                    pruned.blocks[layer].set_bias(tensor, bias.keep_cols(&channels));
                }
            }
            TensorId::FinalNorm => {
                let bias = model.final_norm_bias.as_ref();
                pruned.final_norm_bias = bias.map(|bias| bias.keep_cols(&channels));
            }
            _ => {}
        }
    }
    match group.kind {
        GroupKind::Hidden => pruned.config.hidden = kept.len(),
        GroupKind::Layer => {
            pruned.blocks = kept
                .iter()
                .map(|&layer| model.blocks[layer].clone())
                .collect();
            pruned.config.layers = kept.len();
        }
        GroupKind::Attention | GroupKind::Mlp => {}
    }
    pruned
}
