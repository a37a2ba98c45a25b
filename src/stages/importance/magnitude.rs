//! `l1` and `l2`: Σ|w| or Σw² over each row or column of a member.

use super::Compat;
use super::criterion::{Criterion, CriterionInput, CriterionScores, reduce_channels};
use crate::stages::error::StageError;
use crate::stages::products::MemberScores;
use secateur_model::Model;
use secateur_model::groups::{Group, Member, UnitLayout};
use secateur_model::wiring::TensorId;

/// The magnitudes of weights, by one of two norms.
pub enum Magnitude {
    L1,
    /// Without the root, as the reference.
    L2,
}

impl Criterion for Magnitude {
    fn name(&self) -> &'static str {
        match self {
            Self::L1 => "l1",
            Self::L2 => "l2",
        }
    }

    fn is_magnitude(&self) -> bool {
        true
    }

    fn reference_difference(&self, model: &Model) -> Option<&'static str> {
        let is_tied = model.lm_head.is_none();
        is_tied.then_some(
            "the reference cannot take the magnitudes of a tied head and raises; it is left out",
        )
    }

    fn score(&self, input: &CriterionInput<'_>) -> Result<CriterionScores, StageError> {
        let group_scores = |group: &Group| self.group_scores(input, group);
        let groups: Vec<_> = input.graph.groups.iter().map(group_scores).collect();
        Ok(groups.into())
    }
}

impl Magnitude {
    /// The scores of a group's members. The reference leaves out the embedding, a member of the
    /// residual stream's group.
    fn group_scores(&self, input: &CriterionInput<'_>, group: &Group) -> Vec<MemberScores> {
        let mut scores = Vec::new();
        for (member_index, member) in group.members.iter().enumerate() {
            if input.compat == Compat::Reference && member.tensor_id == TensorId::Embedding {
                continue;
            }
            scores.push(MemberScores {
                member_index,
                channels: self.member_scores(input.model, group, member),
            });
        }
        scores
    }

    fn member_scores(&self, model: &Model, group: &Group, member: &Member) -> Vec<f64> {
        match (member.unit_layout, member.tensor_id) {
            // The units are layers: the member represents this matrix of every layer, and each
            // layer's matrix is one channel.
            (UnitLayout::WholeTensor, TensorId::Block(_, tensor)) => (0..group.unit_count)
                .flat_map(|layer| {
                    self.tensor_scores(model, TensorId::Block(layer, tensor), member.unit_layout)
                })
                .collect(),
            _ => self.tensor_scores(model, member.tensor_id, member.unit_layout),
        }
    }

    fn tensor_scores(&self, model: &Model, tensor_id: TensorId, layout: UnitLayout) -> Vec<f64> {
        let weight = model.weight(tensor_id);
        let values = weight.values();
        reduce_channels(layout, weight.rows(), weight.cols(), |index| {
            let value = f64::from(values[index]);
            match self {
                Self::L1 => value.abs(),
                Self::L2 => value * value,
            }
        })
    }
}
