//! `l1` and `l2`: Σ|w| or Σw² over each row or column of a member.

use super::Compat;
use super::criterion::{Criterion, CriterionInput, CriterionScores, reduce_channels};
use crate::stages::error::StageError;
use crate::stages::products::MemberScores;
use secateur_model::Model;
use secateur_model::groups::{Group, Member, UnitLayout};
use secateur_model::wiring::TensorId;
use secateur_tensor::WeightReadError;

/// The magnitudes of weights, by one of two norms.
pub(crate) enum Magnitude {
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
        let groups = input.graph.groups.iter().map(group_scores);
        let groups = groups.collect::<Result<Vec<_>, WeightReadError>>()?;
        Ok(groups.into())
    }
}

impl Magnitude {
    /// The scores of a group's members. The reference leaves out the embedding, a member of the
    /// residual stream's group.
    fn group_scores(
        &self,
        input: &CriterionInput<'_>,
        group: &Group,
    ) -> Result<Vec<MemberScores>, WeightReadError> {
        let mut scores = Vec::new();
        for (member_index, member) in group.members.iter().enumerate() {
            if input.compat == Compat::Reference && member.tensor_id == TensorId::Embedding {
                continue;
            }
            scores.push(MemberScores {
                member_index,
                channels: self.member_scores(input.model, group, member)?,
            });
        }
        Ok(scores)
    }

    fn member_scores(
        &self,
        model: &Model,
        group: &Group,
        member: &Member,
    ) -> Result<Vec<f64>, WeightReadError> {
        match (member.unit_layout, member.tensor_id) {
            // Units are layers: the member stands for this matrix of every layer, each one channel.
            (UnitLayout::WholeTensor, TensorId::Block(_, tensor)) => {
                let mut scores = Vec::with_capacity(group.unit_count);
                for layer in 0..group.unit_count {
                    let tensor_id = TensorId::Block(layer, tensor);
                    scores.extend(self.tensor_scores(model, tensor_id, member.unit_layout)?);
                }
                Ok(scores)
            }
            _ => self.tensor_scores(model, member.tensor_id, member.unit_layout),
        }
    }

    fn tensor_scores(
        &self,
        model: &Model,
        tensor_id: TensorId,
        layout: UnitLayout,
    ) -> Result<Vec<f64>, WeightReadError> {
        let weight = model.weight(tensor_id);
        let values = weight.read()?;
        let score = |index: usize| {
            let value = f64::from(values[index]);
            match self {
                Self::L1 => value.abs(),
                Self::L2 => value * value,
            }
        };
        Ok(reduce_channels(layout, weight.rows(), weight.cols(), score))
    }
}
