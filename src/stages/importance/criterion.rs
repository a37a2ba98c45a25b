//! The trait of an importance criterion. Each criterion is a file of this folder;
//! `Options::criterion` in `importance.rs` maps methods to them.

use crate::stages::error::StageError;
use crate::stages::products::{InputMeans, MemberScores};
use crate::stages::{Context, Environment};
use secateur_base::random::Seed;
use secateur_model::Model;
use secateur_model::groups::{DependencyGraph, UnitLayout};
use secateur_model::walk::Sequence;
use secateur_model::wiring::Axis;

use super::Compat;

/// A way to score the channels of group members.
pub(crate) trait Criterion {
    /// The `method` in a pipeline.
    fn name(&self) -> &'static str;

    /// Whether it needs calibration sequences.
    fn needs_corpus(&self) -> bool {
        false
    }

    /// Whether it can only score groups of single layers (grouping = "block").
    fn needs_block_groups(&self) -> bool {
        false
    }

    /// Whether it scores only the member of a group that writes back to the residual stream.
    fn scores_output_member_only(&self) -> bool {
        false
    }

    /// Whether it records the mean of every matrix input.
    fn has_input_means(&self) -> bool {
        false
    }

    /// Whether scores are signed: they are added up with their sign, and count by the magnitude of
    /// the sum.
    fn is_signed(&self) -> bool {
        false
    }

    /// Whether the scores are magnitudes of weights.
    fn is_magnitude(&self) -> bool {
        false
    }

    /// Adds the memory that the criterion needs besides the weights to the stage's estimate, for
    /// `samples` sequences of `length` tokens. Default: none.
    fn add_estimate(&self, _environment: &mut Environment, _samples: usize, _length: usize) {}

    /// How the result differs from the reference implementation for groups of residual channels, if
    /// it does.
    fn reference_difference(&self, _model: &Model) -> Option<&'static str> {
        None
    }

    /// Scores every group of the graph, in its order.
    fn score(&self, input: &CriterionInput<'_>) -> Result<CriterionScores, StageError>;
}

/// What a criterion reads.
pub(crate) struct CriterionInput<'a> {
    pub context: &'a Context,
    pub model: &'a Model,
    pub graph: &'a DependencyGraph,
    /// The calibration data; empty for a criterion that needs none.
    pub sequences: &'a [Sequence],
    pub compat: Compat,
}

impl CriterionInput<'_> {
    /// The stage's random stream for this purpose.
    pub(crate) fn seed(&self, purpose: &str) -> Seed {
        self.context.seed.derive(purpose)
    }
}

/// The result of a criterion.
pub(crate) struct CriterionScores {
    /// For each group, the scores of its members.
    pub groups: Vec<Vec<MemberScores>>,
    /// Empty unless [`Criterion::has_input_means`].
    pub input_means: InputMeans,
}

impl From<Vec<Vec<MemberScores>>> for CriterionScores {
    fn from(groups: Vec<Vec<MemberScores>>) -> Self {
        Self {
            groups,
            input_means: InputMeans::new(),
        }
    }
}

/// Σ of `element(index)` over each channel of a member whose weight has the shape [rows, cols] in
/// row-major order. A channel is a row, a column, or the whole weight.
pub(crate) fn reduce_channels(
    layout: UnitLayout,
    rows: usize,
    cols: usize,
    mut element: impl FnMut(usize) -> f64,
) -> Vec<f64> {
    match layout {
        UnitLayout::AlongAxis(Axis::Rows) => (0..rows)
            .map(|row| (row * cols..(row + 1) * cols).map(&mut element).sum())
            .collect(),
        UnitLayout::AlongAxis(Axis::Cols) => {
            // Row by row, so that the weight is read in the order of its memory.
            let mut sums = vec![0.0; cols];
            for row in 0..rows {
                for (col, sum) in sums.iter_mut().enumerate() {
                    *sum += element(row * cols + col);
                }
            }
            sums
        }
        UnitLayout::WholeTensor => vec![(0..rows * cols).map(element).sum()],
    }
}
