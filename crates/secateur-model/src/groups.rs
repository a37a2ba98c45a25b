//! Dependency groups: structures that must be removed together (LLM-Pruner, section 3.1).
//!
//! The dataflow of a model is a graph of producers and consumers. Its nodes are the spaces and, for
//! each weight, the side that reads a space and the side that writes one. Two rules define
//! dependency (equations 1 and 2): a node depends on its neighbour if that neighbour is its only
//! producer, or its only consumer. A group is a trigger with all nodes that depend on it, directly
//! or not. Triggers are spaces: the heads of an attention, the channels of an MLP, the channels of
//! the residual stream. A bias is not a member: it is cut with the outputs of its matrix or norm.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::Model;
use crate::family::{Family, TensorSpec};
use crate::wiring::{Axis, BlockTensor, ChannelSpace, TensorId};

/// What the units of a group are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupKind {
    /// A unit is a head, or a key/value head with its query heads.
    Attention,
    /// A unit is a channel of one layer's MLP.
    Mlp,
    /// A unit is a channel of the residual stream.
    Hidden,
    /// A unit is a whole layer.
    Layer,
}

/// How the units are laid out in a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnitLayout {
    /// Unit u owns an equal, contiguous share of this axis.
    AlongAxis(Axis),
    /// Unit u is this weight of layer u.
    WholeTensor,
}

/// One weight of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// For a group of layers: the weight in layer 0, which represents that of every layer.
    pub tensor_id: TensorId,
    pub unit_layout: UnitLayout,
    /// The tensor's name; for a group of layers its name inside a block.
    pub name: String,
    /// Whether the group's activations leave it through this weight: the output matrix of the
    /// attention or the MLP.
    pub is_output: bool,
}

/// Weights from which a unit is removed together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// 0 for groups that span the model.
    pub layer: usize,
    pub kind: GroupKind,
    pub unit_count: usize,
    /// In the order of the reference implementation, the root first.
    pub members: Vec<Member>,
}

/// The groups of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DependencyGraph {
    pub groups: Vec<Group>,
}

impl GroupKind {
    /// As tables write it.
    pub fn name(self) -> &'static str {
        match self {
            GroupKind::Attention => "attention",
            GroupKind::Mlp => "mlp",
            GroupKind::Hidden => "hidden",
            GroupKind::Layer => "layer",
        }
    }
}

impl Group {
    /// Channels that one unit owns in a member.
    pub fn channels_per_unit(&self, model: &Model, member: &Member) -> usize {
        match member.unit_layout {
            UnitLayout::AlongAxis(Axis::Rows) => {
                model.weight(member.tensor_id).rows() / self.unit_count
            }
            UnitLayout::AlongAxis(Axis::Cols) => {
                model.weight(member.tensor_id).cols() / self.unit_count
            }
            UnitLayout::WholeTensor => 1,
        }
    }

    /// Channels that one unit owns in the member with the fewest: a head's width, or 1.
    pub fn min_channels_per_unit(&self, model: &Model) -> usize {
        self.members
            .iter()
            .map(|member| self.channels_per_unit(model, member))
            .min()
            .unwrap_or(1)
    }
}

/// A node of the dataflow graph to which the two rules are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GraphNode {
    /// A space, with the index of its block, 0 for spaces outside the blocks.
    Space(ChannelSpace, usize),
    /// The side of a weight that reads a space.
    InputSide(TensorId),
    /// The side of a weight that writes one.
    OutputSide(TensorId),
}

/// A directed graph of producers and consumers.
#[derive(Clone, Debug)]
pub struct DataflowGraph<N> {
    /// (producer, consumer)
    edges: Vec<(N, N)>,
}

impl<N: Copy + Ord> DataflowGraph<N> {
    /// `edges`: (producer, consumer) pairs.
    pub fn new(edges: Vec<(N, N)>) -> Self {
        Self { edges }
    }

    /// The nodes that depend on the trigger, directly or not, and the trigger itself.
    pub fn coupled_nodes(&self, trigger: N) -> BTreeSet<N> {
        let mut group = BTreeSet::from([trigger]);
        let mut unvisited = vec![trigger];
        while let Some(node) = unvisited.pop() {
            let consumers_without_other_producer = self
                .consumers(node)
                .filter(|&consumer| self.producers(consumer).count() == 1);
            let producers_without_other_consumer = self
                .producers(node)
                .filter(|&producer| self.consumers(producer).count() == 1);
            for dependent in
                consumers_without_other_producer.chain(producers_without_other_consumer)
            {
                if group.insert(dependent) {
                    unvisited.push(dependent);
                }
            }
        }
        group
    }

    fn consumers(&self, node: N) -> impl Iterator<Item = N> + '_ {
        self.edges
            .iter()
            .filter(move |(producer, _)| *producer == node)
            .map(|(_, consumer)| *consumer)
    }

    fn producers(&self, node: N) -> impl Iterator<Item = N> + '_ {
        self.edges
            .iter()
            .filter(move |(_, consumer)| *consumer == node)
            .map(|(producer, _)| *producer)
    }
}

/// The dataflow graph of a model of this family with `layers` blocks.
pub fn build_dataflow(family: &Family, layers: usize) -> DataflowGraph<GraphNode> {
    let mut edges = Vec::new();
    for side in tensor_sides(family, layers) {
        let space = GraphNode::Space(side.space, side.space_layer);
        edges.push(match side.node {
            GraphNode::InputSide(_) => (space, side.node),
            _ => (side.node, space),
        });
    }
    DataflowGraph::new(edges)
}

/// One side of a weight: where it reads a space, or writes one.
struct TensorSide {
    /// [`GraphNode::InputSide`] or [`GraphNode::OutputSide`].
    node: GraphNode,
    space: ChannelSpace,
    /// The layer of a space inside a block, 0 for the others.
    space_layer: usize,
    axis: Axis,
}

/// Both sides of every weight.
fn tensor_sides(family: &Family, layers: usize) -> Vec<TensorSide> {
    let mut sides = Vec::new();
    let mut add = |id: TensorId,
                   layer: usize,
                   reads: (ChannelSpace, Axis),
                   writes: Option<(ChannelSpace, Axis)>| {
        let side = |node, (space, axis): (ChannelSpace, Axis)| TensorSide {
            node,
            space,
            space_layer: if space.is_inside_block() { layer } else { 0 },
            axis,
        };
        sides.push(side(GraphNode::InputSide(id), reads));
        sides.extend(writes.map(|writes| side(GraphNode::OutputSide(id), writes)));
    };
    for spec in family.outer_tensors {
        add(spec.tensor, 0, spec.reads, spec.writes);
    }
    for layer in 0..layers {
        for spec in family.block_tensors {
            let id = TensorId::Block(layer, spec.tensor);
            add(id, layer, spec.reads, spec.writes);
        }
    }
    sides
}

/// The group whose trigger is a space of one layer: `Heads` or `Mlp`.
pub fn block_group(model: &Model, space: ChannelSpace, layer: usize) -> Group {
    let shape = model.blocks[layer].shape(model.config.head_dim);
    let (kind, unit_count) = match space {
        ChannelSpace::Heads => (GroupKind::Attention, shape.key_value_heads),
        _ => (GroupKind::Mlp, shape.mlp_channels),
    };
    let mut members = coupled_members(model, GraphNode::Space(space, layer));
    // The reference's order: that of the family for the attention, that of the forward pass for the
    // MLP.
    let shares_keys = shape.key_value_heads < shape.query_heads;
    let order: Vec<BlockTensor> = match space {
        ChannelSpace::Heads => model.family.attention_order[usize::from(shares_keys)].to_vec(),
        _ => model.family.block_tensor_ids().collect(),
    };
    members.sort_by_key(|member| {
        order
            .iter()
            .position(|&tensor| member.tensor_id == TensorId::Block(layer, tensor))
    });
    Group {
        layer,
        kind,
        unit_count,
        members,
    }
}

/// The group of the residual stream. The reference's order: final norm, output matrix, the blocks
/// from the last down, each from its last tensor to its first, embedding.
pub fn residual_group(model: &Model) -> Group {
    let mut members = coupled_members(model, GraphNode::Space(ChannelSpace::Hidden, 0));
    let forward_order: Vec<TensorId> = model.tensor_ids();
    members.sort_by_key(|member| {
        let position = forward_order.iter().position(|id| *id == member.tensor_id);
        match member.tensor_id {
            TensorId::FinalNorm => (0, 0),
            TensorId::LmHead => (0, 1),
            // descending by position
            TensorId::Block(..) => (1, usize::MAX - position.unwrap_or(0)),
            TensorId::Embedding => (2, 0),
        }
    });
    Group {
        layer: 0,
        kind: GroupKind::Hidden,
        unit_count: model.config.hidden,
        members,
    }
}

/// The group whose units are whole layers.
pub fn whole_layer_group(model: &Model) -> Group {
    let family = model.family;
    let matrices = family
        .block_tensors
        .iter()
        .filter(|spec| spec.tensor.is_matrix());
    let last = matrices.clone().next_back().map(|spec| spec.tensor);
    let member = |spec: &TensorSpec<BlockTensor>| Member {
        tensor_id: TensorId::Block(0, spec.tensor),
        unit_layout: UnitLayout::WholeTensor,
        name: format!("{}.weight", spec.module),
        is_output: Some(spec.tensor) == last,
    };
    Group {
        layer: 0,
        kind: GroupKind::Layer,
        unit_count: model.blocks.len(),
        members: matrices.map(member).collect(),
    }
}

/// The weights that depend on a space, as members, in the order of the graph's nodes.
fn coupled_members(model: &Model, trigger: GraphNode) -> Vec<Member> {
    let (family, layers) = (model.family, model.blocks.len());
    let sides: BTreeMap<GraphNode, TensorSide> = tensor_sides(family, layers)
        .into_iter()
        .map(|side| (side.node, side))
        .collect();
    let member = |node: GraphNode| {
        let (GraphNode::InputSide(tensor_id) | GraphNode::OutputSide(tensor_id)) = node else {
            return None;
        };
        let side = sides.get(&node)?;
        // A weight that reads a space inside a block writes to the residual stream.
        let is_output = side.space.is_inside_block() && matches!(node, GraphNode::InputSide(_));
        Some(Member {
            tensor_id,
            unit_layout: UnitLayout::AlongAxis(side.axis),
            name: family.tensor_name(tensor_id),
            is_output,
        })
    };
    build_dataflow(family, layers)
        .coupled_nodes(trigger)
        .into_iter()
        .filter_map(member)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(edges: &[(char, char)], trigger: char) -> String {
        DataflowGraph::new(edges.to_vec())
            .coupled_nodes(trigger)
            .into_iter()
            .collect()
    }

    #[test]
    fn the_rules_follow_a_chain() {
        // gate and up feed h, and only down reads h: both triggers reach the whole chain
        let mlp = [('g', 'h'), ('u', 'h'), ('h', 'd')];
        assert_eq!(group(&mlp, 'h'), "dghu");
        assert_eq!(group(&mlp, 'd'), "dghu");
        // a norm between q and the head does not stop them
        assert_eq!(
            group(&[('q', 'n'), ('n', 'a'), ('k', 'a'), ('a', 'o')], 'a'),
            "aknoq"
        );
    }

    #[test]
    fn the_rules_stop_at_a_neighbour_with_others() {
        // h has two producers, so it does not depend on one of them
        assert_eq!(group(&[('g', 'h'), ('u', 'h'), ('h', 'd')], 'g'), "g");
        // keys shared by the attentions a and b depend on neither
        let shared = [
            ('q', 'a'),
            ('k', 'a'),
            ('k', 'b'),
            ('r', 'b'),
            ('a', 'o'),
            ('b', 'p'),
        ];
        assert_eq!(group(&shared, 'a'), "aoq");
        assert_eq!(group(&shared, 'b'), "bpr");
        // a residual stream: x feeds two branches that both write into y
        assert_eq!(
            group(&[('x', 'a'), ('x', 'b'), ('a', 'y'), ('b', 'y')], 'a'),
            "a"
        );
    }

    #[test]
    fn a_block_has_an_attention_group_and_an_mlp_group() {
        let (llama, _) = crate::families::find("llama").expect("a family");
        let flow = build_dataflow(llama, 2);
        let tensor_id = |tensor| TensorId::Block(1, tensor);
        let attention = flow.coupled_nodes(GraphNode::Space(ChannelSpace::Heads, 1));
        let expected = [
            GraphNode::Space(ChannelSpace::Heads, 1),
            GraphNode::InputSide(tensor_id(BlockTensor::O)),
            GraphNode::OutputSide(tensor_id(BlockTensor::Q)),
            GraphNode::OutputSide(tensor_id(BlockTensor::K)),
            GraphNode::OutputSide(tensor_id(BlockTensor::V)),
        ];
        assert_eq!(attention, expected.into());
        let mlp = flow.coupled_nodes(GraphNode::Space(ChannelSpace::Mlp, 1));
        let expected = [
            GraphNode::Space(ChannelSpace::Mlp, 1),
            GraphNode::InputSide(tensor_id(BlockTensor::Down)),
            GraphNode::OutputSide(tensor_id(BlockTensor::Gate)),
            GraphNode::OutputSide(tensor_id(BlockTensor::Up)),
        ];
        assert_eq!(mlp, expected.into());
        // the residual stream: embedding, head, final norm; two norms, five readers and two writers
        // in each block
        assert_eq!(
            flow.coupled_nodes(GraphNode::Space(ChannelSpace::Hidden, 0))
                .len(),
            1 + 3 + 2 * 9
        );
    }
}
