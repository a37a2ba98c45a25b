//! Reduces the sums over the rows and columns of each weight to the scores of the members of each
//! group.

use std::collections::BTreeMap;

use super::element::TaylorCriterion;
use crate::stages::products::MemberScores;
use secateur_model::Model;
use secateur_model::groups::{DependencyGraph, Member, UnitLayout};
use secateur_model::wiring::{Axis, TensorId};
use secateur_tensor::ops::{AxisSums, SumAxes, axis_sums};
use secateur_tensor::{Gradient, Weight};

/// Turns sums over the rows and columns of each weight into the scores of the members' channels.
pub(crate) struct ScoreReduction<'a> {
    pub criterion: TaylorCriterion,
    pub sample_count: usize,
    graph: &'a DependencyGraph,
    /// Whether the embedding is the head.
    pub is_tied: bool,
    /// Channel scores by group and member.
    channel_scores: BTreeMap<(usize, usize), Vec<f64>>,
}

impl<'a> ScoreReduction<'a> {
    pub(crate) fn new(
        criterion: TaylorCriterion,
        sample_count: usize,
        graph: &'a DependencyGraph,
        model: &Model,
    ) -> Self {
        Self {
            criterion,
            sample_count,
            graph,
            is_tied: model.lm_head.is_none(),
            channel_scores: BTreeMap::new(),
        }
    }

    /// The tensor to which a gradient belongs: that of a tied head belongs to the embedding.
    pub(crate) fn scored_tensor(&self, tensor: TensorId) -> TensorId {
        match tensor {
            TensorId::LmHead if self.is_tied => TensorId::Embedding,
            _ => tensor,
        }
    }

    /// The members that are made of this tensor: index of the group, index of the member in it, and
    /// the member's layout.
    fn members_of_tensor(
        &self,
        tensor: TensorId,
    ) -> impl Iterator<Item = (usize, usize, UnitLayout)> {
        let groups = self.graph.groups.iter().enumerate();
        groups.flat_map(move |(group_index, group)| {
            let members = group.members.iter().enumerate();
            members
                .filter(move |(_, member)| self.is_member(member, tensor))
                .map(move |(member_index, member)| (group_index, member_index, member.unit_layout))
        })
    }

    /// Whether a member is made of this tensor.
    fn is_member(&self, member: &Member, tensor: TensorId) -> bool {
        match (member.unit_layout, member.tensor_id, tensor) {
            // The units are layers: the member represents its tensor of every layer.
            (
                UnitLayout::WholeTensor,
                TensorId::Block(_, member_tensor),
                TensorId::Block(_, block_tensor),
            ) => member_tensor == block_tensor,
            (_, TensorId::LmHead, TensorId::Embedding) => self.is_tied,
            (_, member_tensor, _) => member_tensor == tensor,
        }
    }

    /// The axes along which the members of this tensor need sums.
    pub(crate) fn sum_axes(&self, tensor: TensorId) -> SumAxes {
        let mut axes = SumAxes::default();
        for (_, _, layout) in self.members_of_tensor(tensor) {
            match layout {
                UnitLayout::AlongAxis(Axis::Rows) | UnitLayout::WholeTensor => axes.rows = true,
                UnitLayout::AlongAxis(Axis::Cols) => axes.cols = true,
            }
        }
        axes
    }

    /// The sums of a whole gradient.
    pub(crate) fn axis_sums(
        &self,
        tensor: TensorId,
        weight: &Weight,
        gradient: &Gradient,
        squares: Option<&Gradient>,
    ) -> AxisSums {
        let score = self.criterion.element_score(self.sample_count);
        let axes = self.sum_axes(tensor);
        axis_sums(weight, gradient, squares, axes, score.as_ref())
    }

    /// Scores every member of this tensor. The walk goes from the last layer to the first, so the
    /// score of a whole tensor is inserted before those of the layers above it.
    pub(crate) fn add_sums(&mut self, tensor: TensorId, sums: &AxisSums) {
        let members: Vec<_> = self.members_of_tensor(tensor).collect();
        for (group_index, member_index, layout) in members {
            let key = (group_index, member_index);
            let scores = self.channel_scores.entry(key).or_default();
            match layout {
                UnitLayout::AlongAxis(Axis::Rows) => scores.clone_from(&sums.rows),
                UnitLayout::AlongAxis(Axis::Cols) => scores.clone_from(&sums.cols),
                UnitLayout::WholeTensor => scores.insert(0, sums.rows.iter().sum()),
            }
        }
    }

    /// The members' scores by group.
    pub(crate) fn into_scores(self) -> Vec<Vec<MemberScores>> {
        let mut groups = vec![Vec::new(); self.graph.groups.len()];
        for ((group_index, member_index), channels) in self.channel_scores {
            groups[group_index].push(MemberScores {
                member_index,
                channels,
            });
        }
        groups
    }
}
