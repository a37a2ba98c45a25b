//! `random` and `first`: scores that depend on neither weights nor data. They are scores of a whole
//! group, and are recorded as those of its first member, the root.

use rand::RngExt;

use super::criterion::{Criterion, CriterionInput, CriterionScores};
use crate::stages::error::StageError;
use crate::stages::products::MemberScores;

/// A uniform number in [0, 1) for each channel of each group's root, in the order of the groups.
pub(crate) struct Random;

impl Criterion for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn score(&self, input: &CriterionInput<'_>) -> Result<CriterionScores, StageError> {
        let mut stream = input.seed("random").rng();
        Ok(root_member_scores(input, |_, _| stream.random::<f64>()))
    }
}

/// The order of units, the first the most important: every channel of unit u of n scores n − u.
pub(crate) struct UnitOrder;

impl Criterion for UnitOrder {
    fn name(&self) -> &'static str {
        "first"
    }

    fn score(&self, input: &CriterionInput<'_>) -> Result<CriterionScores, StageError> {
        Ok(root_member_scores(input, |units, unit| {
            (units - unit) as f64
        }))
    }
}

/// Scores the channels of each group's root: `score(number of units of the group, unit of the
/// channel)`.
fn root_member_scores(
    input: &CriterionInput<'_>,
    mut score: impl FnMut(usize, usize) -> f64,
) -> CriterionScores {
    let mut groups = Vec::with_capacity(input.graph.groups.len());
    for group in &input.graph.groups {
        let unit_width = group
            .members
            .first()
            .map_or(1, |root| group.channels_per_unit(input.model, root));
        let channels = (0..group.unit_count * unit_width)
            .map(|channel| score(group.unit_count, channel / unit_width))
            .collect();
        groups.push(vec![MemberScores {
            member_index: 0,
            channels,
        }]);
    }
    groups.into()
}
