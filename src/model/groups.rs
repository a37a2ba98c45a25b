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
use super::wiring::{Axis, Family, LLAMA, Part, Place, Space};

/// What the units of a group are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
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
pub enum Lie {
    /// Unit u owns an equal, contiguous share of this axis.
    Along(Axis),
    /// Unit u is this weight of layer u.
    ByLayer,
}

/// One weight of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// For a group of layers: the weight in layer 0, standing for all.
    pub place: Place,
    pub lie: Lie,
    /// The tensor's name; for a group of layers its name inside a block.
    pub name: String,
    /// Whether the group's activations flow out of this weight, back to the rest of the model: `o_proj`, `down_proj`.
    pub last: bool,
}

/// Weights that lose a unit together. Plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// 0 for groups that span the model.
    pub layer: usize,
    pub kind: Kind,
    pub units: usize,
    /// In the reference's order: the root first.
    pub members: Vec<Member>,
}

/// The groups of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DependencyGraph {
    pub groups: Vec<Group>,
}

impl Kind {
    /// As tables write it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Attention => "attention",
            Kind::Mlp => "mlp",
            Kind::Hidden => "hidden",
            Kind::Layer => "layer",
        }
    }
}

impl Group {
    /// Channels that one unit owns in a member.
    pub fn channels_per_unit(&self, model: &Model, member: &Member) -> usize {
        match member.lie {
            Lie::Along(Axis::Rows) => model.weight(member.place).rows() / self.units,
            Lie::Along(Axis::Cols) => model.weight(member.place).cols() / self.units,
            Lie::ByLayer => 1,
        }
    }

    /// Channels that one unit owns in the member with the fewest: a head's width, or 1.
    pub fn unit_width(&self, model: &Model) -> usize {
        self.members.iter().map(|member| self.channels_per_unit(model, member)).min().unwrap_or(1)
    }
}

/// A node of the graph in which the rules are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// A space; those inside a block carry its number, the others 0.
    Space(Space, usize),
    /// The side of a weight that reads a space.
    Reads(Place),
    /// The side of a weight that writes one.
    Writes(Place),
}

/// Who produces for whom.
#[derive(Clone, Debug)]
pub struct Flow<N> {
    edges: Vec<(N, N)>,
}

impl<N: Copy + Ord> Flow<N> {
    /// Edges go from a producer to its consumer.
    pub fn new(edges: Vec<(N, N)>) -> Self {
        Self { edges }
    }

    /// All that depends on the trigger, itself included, in order.
    pub fn group(&self, trigger: N) -> BTreeSet<N> {
        let mut group = BTreeSet::from([trigger]);
        let mut triggers = vec![trigger];
        while let Some(at) = triggers.pop() {
            let only_producer = self.consumers(at).filter(|&n| self.producers(n).count() == 1);
            let only_consumer = self.producers(at).filter(|&n| self.consumers(n).count() == 1);
            for dependent in only_producer.chain(only_consumer).collect::<Vec<_>>() {
                if group.insert(dependent) {
                    triggers.push(dependent);
                }
            }
        }
        group
    }

    fn consumers(&self, node: N) -> impl Iterator<Item = N> + '_ {
        self.edges.iter().filter(move |(from, _)| *from == node).map(|(_, to)| *to)
    }

    fn producers(&self, node: N) -> impl Iterator<Item = N> + '_ {
        self.edges.iter().filter(move |(_, to)| *to == node).map(|(from, _)| *from)
    }
}

/// The flow of a model of this family with so many blocks.
pub fn flow(family: &Family, layers: usize) -> Flow<Node> {
    let mut edges = Vec::new();
    let mut wire = |place: Place, layer: usize, reads: Space, writes: Option<Space>| {
        let node = |space| match space {
            Space::Heads | Space::Mlp => Node::Space(space, layer),
            Space::Vocabulary | Space::Hidden => Node::Space(space, 0),
        };
        edges.push((node(reads), Node::Reads(place)));
        edges.extend(writes.map(|space| (Node::Writes(place), node(space))));
    };
    for w in family.outside {
        wire(w.at, 0, w.reads.0, w.writes.map(|(space, _)| space));
    }
    for layer in 0..layers {
        for w in family.block {
            wire(Place::Block(layer, w.at), layer, w.reads.0, w.writes.map(|(space, _)| space));
        }
    }
    Flow::new(edges)
}

/// The groups whose trigger is a space of one layer.
pub fn of_layer(model: &Model, space: Space, layer: usize) -> Group {
    let heads = model.blocks[layer].heads(model.config.head_dim);
    let (kind, units) = match space {
        Space::Heads => (Kind::Attention, heads.keys),
        _ => (Kind::Mlp, model.blocks[layer][Part::Gate].rows()),
    };
    let mut members = members(model, Node::Space(space, layer));
    // The reference's order: q o v k (k o v q with grouped queries), gate up down.
    let order: &[Part] = match (space, heads.keys < heads.queries) {
        (Space::Heads, false) => &[Part::Q, Part::O, Part::V, Part::K],
        (Space::Heads, true) => &[Part::K, Part::O, Part::V, Part::Q],
        _ => &[Part::Gate, Part::Up, Part::Down],
    };
    members.sort_by_key(|member| order.iter().position(|&part| member.place == Place::Block(layer, part)));
    Group { layer, kind, units, members }
}

/// The group of the residual stream. The reference's order: final norm, head, the blocks from the last down, embedding.
pub fn of_hidden(model: &Model) -> Group {
    let mut members = members(model, Node::Space(Space::Hidden, 0));
    members.sort_by_key(|member| match member.place {
        Place::FinalNorm => (0, 0, 0),
        Place::Head => (0, 1, 0),
        Place::Block(layer, part) => (1, usize::MAX - layer, usize::MAX - part as usize),
        Place::Embedding => (2, 0, 0),
    });
    Group { layer: 0, kind: Kind::Hidden, units: model.config.hidden, members }
}

/// The group whose units are whole layers.
pub fn of_layers(model: &Model) -> Group {
    let member = |wire: &super::wiring::Wire<Part>| Member {
        place: Place::Block(0, wire.at),
        lie: Lie::ByLayer,
        name: wire.name.to_owned(),
        last: wire.at == Part::Down,
    };
    let matrices = LLAMA.block.iter().filter(|wire| Part::MATRICES.contains(&wire.at));
    Group { layer: 0, kind: Kind::Layer, units: model.blocks.len(), members: matrices.map(member).collect() }
}

/// What the rules reach from a space, as members.
fn members(model: &Model, trigger: Node) -> Vec<Member> {
    let axes: BTreeMap<Node, (Axis, bool)> = nodes(model.blocks.len()).collect();
    let member = |node: Node| {
        let (Node::Reads(place) | Node::Writes(place)) = node else { return None };
        let (axis, inner) = axes.get(&node)?;
        let last = *inner && matches!(node, Node::Reads(_));
        Some(Member { place, lie: Lie::Along(*axis), name: LLAMA.tensor(place), last })
    };
    flow(&LLAMA, model.blocks.len()).group(trigger).into_iter().filter_map(member).collect()
}

/// Each side of each weight with its axis, and whether it lies in a space inside a block.
fn nodes(layers: usize) -> impl Iterator<Item = (Node, (Axis, bool))> {
    let sides = |place, reads: (Space, Axis), writes: Option<(Space, Axis)>| {
        let inner = |space| matches!(space, Space::Heads | Space::Mlp);
        let read = Some((Node::Reads(place), (reads.1, inner(reads.0))));
        [read, writes.map(|(space, axis)| (Node::Writes(place), (axis, inner(space))))].into_iter().flatten()
    };
    let outside = LLAMA.outside.iter().flat_map(move |w| sides(w.at, w.reads, w.writes));
    let blocks = (0..layers)
        .flat_map(move |layer| LLAMA.block.iter().flat_map(move |w| sides(Place::Block(layer, w.at), w.reads, w.writes)));
    outside.chain(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(edges: &[(char, char)], trigger: char) -> String {
        Flow::new(edges.to_vec()).group(trigger).into_iter().collect()
    }

    #[test]
    fn the_rules_go_on_through_a_chain() {
        // gate and up feed h, h feeds down alone: from any end of the chain that has one neighbour, all of it.
        let mlp = [('g', 'h'), ('u', 'h'), ('h', 'd')];
        assert_eq!(group(&mlp, 'h'), "dghu");
        assert_eq!(group(&mlp, 'd'), "dghu");
        // a norm between q and the head does not stop them
        assert_eq!(group(&[('q', 'n'), ('n', 'a'), ('k', 'a'), ('a', 'o')], 'a'), "aknoq");
    }

    #[test]
    fn the_rules_stop_where_a_neighbour_has_others() {
        // h has two producers, so it outlives the loss of one of them
        assert_eq!(group(&[('g', 'h'), ('u', 'h'), ('h', 'd')], 'g'), "g");
        // keys shared by the attentions a and b depend on neither
        let shared = [('q', 'a'), ('k', 'a'), ('k', 'b'), ('r', 'b'), ('a', 'o'), ('b', 'p')];
        assert_eq!(group(&shared, 'a'), "aoq");
        assert_eq!(group(&shared, 'b'), "bpr");
        // a residual stream: x feeds two branches that both write into y
        assert_eq!(group(&[('x', 'a'), ('x', 'b'), ('a', 'y'), ('b', 'y')], 'a'), "a");
    }

    #[test]
    fn a_llama_block_falls_into_attention_and_mlp() {
        let flow = flow(&LLAMA, 2);
        let at = |part| Place::Block(1, part);
        let attention = flow.group(Node::Space(Space::Heads, 1));
        let expected = [
            Node::Space(Space::Heads, 1),
            Node::Reads(at(Part::O)),
            Node::Writes(at(Part::Q)),
            Node::Writes(at(Part::K)),
            Node::Writes(at(Part::V)),
        ];
        assert_eq!(attention, expected.into());
        let mlp = flow.group(Node::Space(Space::Mlp, 1));
        let expected =
            [Node::Space(Space::Mlp, 1), Node::Reads(at(Part::Down)), Node::Writes(at(Part::Gate)), Node::Writes(at(Part::Up))];
        assert_eq!(mlp, expected.into());
        // the residual stream: embedding, head, final norm; two norms, five readers and two writers in each block
        assert_eq!(flow.group(Node::Space(Space::Hidden, 0)).len(), 1 + 3 + 2 * 9);
    }
}
