//! Coupled structures: what must be removed together (LLM-Pruner, section 3.1).
//!
//! The wiring table becomes a graph: a space is a node; a weight is a node where it reads and a node where it writes.
//! Two rules say what depends on what (equations 1 and 2): a node depends on its neighbour when that neighbour is its
//! only producer, or its only consumer. From a trigger the rules are followed to a fixpoint; the group is all that
//! depends, directly or not, on the trigger. Triggers are spaces: the head of an attention, the channel of an MLP, the
//! channel of the residual stream.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Model;
use super::wiring::{Axis, BlockTensor, ChannelSpace, Family, LLAMA, TensorId};

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

/// How the units lie in a member.
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
    /// For a group of layers: the weight in layer 0, standing for all.
    pub tensor_id: TensorId,
    pub unit_layout: UnitLayout,
    /// The tensor's name; for a group of layers its name inside a block.
    pub name: String,
    /// Whether the group's activations flow out of this weight, back to the rest of the model: `o_proj`, `down_proj`.
    pub is_output: bool,
}

/// Weights that lose a unit together. Plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// 0 for groups that span the model.
    pub layer: usize,
    pub kind: GroupKind,
    pub unit_count: usize,
    /// In the reference's order: the root first.
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

/// A node of the graph in which the rules are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GraphNode {
    /// A space; those inside a block carry its number, the others 0.
    Space(ChannelSpace, usize),
    /// The side of a weight that reads a space.
    InputSide(TensorId),
    /// The side of a weight that writes one.
    OutputSide(TensorId),
}

/// Who produces for whom.
#[derive(Clone, Debug)]
pub struct DataflowGraph<N> {
    edges: Vec<(N, N)>,
}

impl<N: Copy + Ord> DataflowGraph<N> {
    /// Edges go from a producer to its consumer.
    pub fn new(edges: Vec<(N, N)>) -> Self {
        Self { edges }
    }

    /// All that depends on the trigger, itself included, in order.
    pub fn coupled_nodes(&self, trigger: N) -> BTreeSet<N> {
        let mut group = BTreeSet::from([trigger]);
        let mut triggers = vec![trigger];
        while let Some(at) = triggers.pop() {
            let only_producer = self
                .consumers(at)
                .filter(|&n| self.producers(n).count() == 1);
            let only_consumer = self
                .producers(at)
                .filter(|&n| self.consumers(n).count() == 1);
            for dependent in only_producer.chain(only_consumer).collect::<Vec<_>>() {
                if group.insert(dependent) {
                    triggers.push(dependent);
                }
            }
        }
        group
    }

    fn consumers(&self, node: N) -> impl Iterator<Item = N> + '_ {
        self.edges
            .iter()
            .filter(move |(from, _)| *from == node)
            .map(|(_, to)| *to)
    }

    fn producers(&self, node: N) -> impl Iterator<Item = N> + '_ {
        self.edges
            .iter()
            .filter(move |(_, to)| *to == node)
            .map(|(from, _)| *from)
    }
}

/// The flow of a model of this family with so many blocks.
pub fn build_dataflow(family: &Family, layers: usize) -> DataflowGraph<GraphNode> {
    let mut edges = Vec::new();
    let mut wire =
        |place: TensorId, layer: usize, reads: ChannelSpace, writes: Option<ChannelSpace>| {
            let node = |space| match space {
                ChannelSpace::Heads | ChannelSpace::Mlp => GraphNode::Space(space, layer),
                ChannelSpace::Vocabulary | ChannelSpace::Hidden => GraphNode::Space(space, 0),
            };
            edges.push((node(reads), GraphNode::InputSide(place)));
            edges.extend(writes.map(|space| (GraphNode::OutputSide(place), node(space))));
        };
    for w in family.outer_tensors {
        wire(w.tensor, 0, w.reads.0, w.writes.map(|(space, _)| space));
    }
    for layer in 0..layers {
        for w in family.block_tensors {
            wire(
                TensorId::Block(layer, w.tensor),
                layer,
                w.reads.0,
                w.writes.map(|(space, _)| space),
            );
        }
    }
    DataflowGraph::new(edges)
}

/// The groups whose trigger is a space of one layer.
pub fn block_group(model: &Model, space: ChannelSpace, layer: usize) -> Group {
    let heads = model.blocks[layer].attention_heads(model.config.head_dim);
    let (kind, units) = match space {
        ChannelSpace::Heads => (GroupKind::Attention, heads.key_value_heads),
        _ => (
            GroupKind::Mlp,
            model.blocks[layer][BlockTensor::Gate].rows(),
        ),
    };
    let mut members = coupled_members(model, GraphNode::Space(space, layer));
    // The reference's order: q o v k (k o v q with grouped queries), gate up down.
    let order: &[BlockTensor] = match (space, heads.key_value_heads < heads.query_heads) {
        (ChannelSpace::Heads, false) => &[
            BlockTensor::Q,
            BlockTensor::O,
            BlockTensor::V,
            BlockTensor::K,
        ],
        (ChannelSpace::Heads, true) => &[
            BlockTensor::K,
            BlockTensor::O,
            BlockTensor::V,
            BlockTensor::Q,
        ],
        _ => &[BlockTensor::Gate, BlockTensor::Up, BlockTensor::Down],
    };
    members.sort_by_key(|member| {
        order
            .iter()
            .position(|&part| member.tensor_id == TensorId::Block(layer, part))
    });
    Group {
        layer,
        kind,
        unit_count: units,
        members,
    }
}

/// The group of the residual stream. The reference's order: final norm, head, the blocks from the last down, embedding.
pub fn residual_group(model: &Model) -> Group {
    let mut members = coupled_members(model, GraphNode::Space(ChannelSpace::Hidden, 0));
    members.sort_by_key(|member| match member.tensor_id {
        TensorId::FinalNorm => (0, 0, 0),
        TensorId::LmHead => (0, 1, 0),
        TensorId::Block(layer, part) => (1, usize::MAX - layer, usize::MAX - part as usize),
        TensorId::Embedding => (2, 0, 0),
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
    let member = |wire: &super::wiring::TensorWiring<BlockTensor>| Member {
        tensor_id: TensorId::Block(0, wire.tensor),
        unit_layout: UnitLayout::WholeTensor,
        name: wire.name.to_owned(),
        is_output: wire.tensor == BlockTensor::Down,
    };
    let matrices = LLAMA
        .block_tensors
        .iter()
        .filter(|wire| BlockTensor::MATRICES.contains(&wire.tensor));
    Group {
        layer: 0,
        kind: GroupKind::Layer,
        unit_count: model.blocks.len(),
        members: matrices.map(member).collect(),
    }
}

/// What the rules reach from a space, as members.
fn coupled_members(model: &Model, trigger: GraphNode) -> Vec<Member> {
    let axes: BTreeMap<GraphNode, (Axis, bool)> = weight_sides(model.blocks.len()).collect();
    let member = |node: GraphNode| {
        let (GraphNode::InputSide(place) | GraphNode::OutputSide(place)) = node else {
            return None;
        };
        let (axis, inner) = axes.get(&node)?;
        let last = *inner && matches!(node, GraphNode::InputSide(_));
        Some(Member {
            tensor_id: place,
            unit_layout: UnitLayout::AlongAxis(*axis),
            name: LLAMA.tensor_name(place),
            is_output: last,
        })
    };
    build_dataflow(&LLAMA, model.blocks.len())
        .coupled_nodes(trigger)
        .into_iter()
        .filter_map(member)
        .collect()
}

/// Each side of each weight with its axis, and whether it lies in a space inside a block.
fn weight_sides(layers: usize) -> impl Iterator<Item = (GraphNode, (Axis, bool))> {
    let sides = |place, reads: (ChannelSpace, Axis), writes: Option<(ChannelSpace, Axis)>| {
        let inner = |space| matches!(space, ChannelSpace::Heads | ChannelSpace::Mlp);
        let read = Some((GraphNode::InputSide(place), (reads.1, inner(reads.0))));
        [
            read,
            writes.map(|(space, axis)| (GraphNode::OutputSide(place), (axis, inner(space)))),
        ]
        .into_iter()
        .flatten()
    };
    let outside = LLAMA
        .outer_tensors
        .iter()
        .flat_map(move |w| sides(w.tensor, w.reads, w.writes));
    let blocks = (0..layers).flat_map(move |layer| {
        LLAMA
            .block_tensors
            .iter()
            .flat_map(move |w| sides(TensorId::Block(layer, w.tensor), w.reads, w.writes))
    });
    outside.chain(blocks)
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
    fn the_rules_go_on_through_a_chain() {
        // gate and up feed h, h feeds down alone: from any end of the chain that has one neighbour, all of it.
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
    fn the_rules_stop_where_a_neighbour_has_others() {
        // h has two producers, so it outlives the loss of one of them
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
    fn a_llama_block_falls_into_attention_and_mlp() {
        let flow = build_dataflow(&LLAMA, 2);
        let at = |part| TensorId::Block(1, part);
        let attention = flow.coupled_nodes(GraphNode::Space(ChannelSpace::Heads, 1));
        let expected = [
            GraphNode::Space(ChannelSpace::Heads, 1),
            GraphNode::InputSide(at(BlockTensor::O)),
            GraphNode::OutputSide(at(BlockTensor::Q)),
            GraphNode::OutputSide(at(BlockTensor::K)),
            GraphNode::OutputSide(at(BlockTensor::V)),
        ];
        assert_eq!(attention, expected.into());
        let mlp = flow.coupled_nodes(GraphNode::Space(ChannelSpace::Mlp, 1));
        let expected = [
            GraphNode::Space(ChannelSpace::Mlp, 1),
            GraphNode::InputSide(at(BlockTensor::Down)),
            GraphNode::OutputSide(at(BlockTensor::Gate)),
            GraphNode::OutputSide(at(BlockTensor::Up)),
        ];
        assert_eq!(mlp, expected.into());
        // the residual stream: embedding, head, final norm; two norms, five readers and two writers in each block
        assert_eq!(
            flow.coupled_nodes(GraphNode::Space(ChannelSpace::Hidden, 0))
                .len(),
            1 + 3 + 2 * 9
        );
    }
}
