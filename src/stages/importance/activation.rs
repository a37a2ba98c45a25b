//! `wanda` and `wifv`: criteria that read the inputs of the matrices on calibration data, forward
//! only.
//!
//! Wanda (Sun et al., ICLR 2024): |w|·‖x‖₂ of the input channel, summed over a row or column. WIFV
//! (FLAP, An et al., AAAI 2024): the variance of the input channel over the calibration tokens,
//! times the squared norm of the weight's column. WIFV is defined for the matrix that reads the
//! units: `o_proj`, `down_proj`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Mutex;

use super::criterion::{Criterion, CriterionInput, CriterionScores, reduce_channels};
use crate::stages::Environment;
use crate::stages::error::StageError;
use crate::stages::products::{InputMeans, MemberScores};
use secateur_model::Model;
use secateur_model::groups::{Group, UnitLayout};
use secateur_model::hooks::BlockHooks;
use secateur_model::walk;
use secateur_model::wiring::{BlockTensor, TensorId};
use secateur_tensor::ops;
use secateur_tensor::{Activations, AnyTape, Weight, WeightReadError};

/// Sequences of one forward walk. Between two walks the stage checks for an interrupt.
const CALIBRATION_BATCH: usize = 64;

/// The score |w|·‖x‖₂ of an element.
pub(crate) struct Wanda;

impl Criterion for Wanda {
    fn name(&self) -> &'static str {
        "wanda"
    }

    fn needs_corpus(&self) -> bool {
        true
    }

    fn needs_block_groups(&self) -> bool {
        true
    }

    fn add_estimate(&self, environment: &mut Environment, samples: usize, length: usize) {
        environment.add_forward_pass(samples.min(CALIBRATION_BATCH), length);
    }

    fn score(&self, input: &CriterionInput<'_>) -> Result<CriterionScores, StageError> {
        let inputs = InputStatistics::collect(input)?;
        let scores = inputs.score_members(
            input,
            |_| true,
            |weight, channel| weight.abs() * channel.norm,
        )?;
        Ok(scores.into())
    }
}

/// The score w² · variance(x) of an element.
pub(crate) struct Wifv;

impl Criterion for Wifv {
    fn name(&self) -> &'static str {
        "wifv"
    }

    fn needs_corpus(&self) -> bool {
        true
    }

    fn needs_block_groups(&self) -> bool {
        true
    }

    fn scores_output_member_only(&self) -> bool {
        true
    }

    fn has_input_means(&self) -> bool {
        true
    }

    fn add_estimate(&self, environment: &mut Environment, samples: usize, length: usize) {
        environment.add_forward_pass(samples.min(CALIBRATION_BATCH), length);
    }

    fn score(&self, input: &CriterionInput<'_>) -> Result<CriterionScores, StageError> {
        let inputs = InputStatistics::collect(input)?;
        let groups = inputs.score_members(
            input,
            |is_output| is_output,
            |weight, channel| weight * weight * channel.variance,
        )?;
        Ok(CriterionScores {
            groups,
            input_means: inputs.output_matrix_means(),
        })
    }
}

/// Sums over tokens for each input channel of a matrix, (inputs) each.
#[derive(Clone, Debug, Default)]
struct InputMoments {
    /// Σx
    sums: Vec<f64>,
    /// Σx²
    squares: Vec<f64>,
}

/// The moments of every matrix's inputs, by layer and matrix.
type MomentsByMatrix = BTreeMap<(usize, BlockTensor), InputMoments>;

/// Adds the inputs of every matrix of one block to the moments. The block's output is unchanged.
struct InputMomentRecorder<'a> {
    layer: usize,
    moments: &'a Mutex<MomentsByMatrix>,
}

impl BlockHooks for InputMomentRecorder<'_> {
    fn linear<T: AnyTape>(
        &self,
        tensor: BlockTensor,
        weight: &Weight,
        x: Activations<T>,
    ) -> Activations<T> {
        if let Ok(mut moments) = self.moments.lock() {
            let (sums, squares) = ops::column_moments(&x);
            match moments.entry((self.layer, tensor)) {
                Entry::Vacant(entry) => drop(entry.insert(InputMoments { sums, squares })),
                Entry::Occupied(mut entry) => {
                    let total = entry.get_mut();
                    add_to(&mut total.sums, &sums);
                    add_to(&mut total.squares, &squares);
                }
            }
        }
        ops::linear(x, weight, None)
    }
}

fn add_to(total: &mut [f64], part: &[f64]) {
    for (total, part) in total.iter_mut().zip(part) {
        *total += part;
    }
}

/// One input channel of a matrix over the calibration tokens.
#[derive(Clone, Copy)]
struct InputChannel {
    /// √Σx²
    norm: f64,
    /// E[x²] − E[x]², at least 0
    variance: f64,
}

/// The inputs of every matrix over the calibration tokens.
struct InputStatistics {
    moments: MomentsByMatrix,
    token_count: f64,
}

impl InputStatistics {
    /// Walks the calibration sequences forward and adds up the inputs pack by pack.
    fn collect(input: &CriterionInput<'_>) -> Result<Self, StageError> {
        let moments = Mutex::new(MomentsByMatrix::new());
        let sequence_count = input.sequences.len() as u64;
        let bar = input.context.progress.bar("importance", sequence_count);
        for batch in input.sequences.chunks(CALIBRATION_BATCH) {
            input.context.check_interrupt()?;
            let output = walk::forward(input.model, batch, |layer, _| InputMomentRecorder {
                layer,
                moments: &moments,
            })?;
            drop(output);
            batch.iter().for_each(|_| bar.step());
        }
        let lengths = input.sequences.iter().map(|sequence| sequence.ids.len());
        Ok(Self {
            moments: moments.into_inner().unwrap_or_default(),
            token_count: lengths.sum::<usize>() as f64,
        })
    }

    /// Scores the members for which `is_scored(member.is_output)`: Σ `element(w, input channel of
    /// w)` over each row or column.
    fn score_members(
        &self,
        input: &CriterionInput<'_>,
        is_scored: impl Fn(bool) -> bool,
        element: impl Fn(f64, InputChannel) -> f64,
    ) -> Result<Vec<Vec<MemberScores>>, WeightReadError> {
        let group_scores = |group: &Group| {
            let mut scores = Vec::new();
            for (member_index, member) in group.members.iter().enumerate() {
                if is_scored(member.is_output) {
                    let (tensor_id, layout) = (member.tensor_id, member.unit_layout);
                    scores.push(MemberScores {
                        member_index,
                        channels: self.tensor_scores(input.model, tensor_id, layout, &element)?,
                    });
                }
            }
            Ok(scores)
        };
        input.graph.groups.iter().map(group_scores).collect()
    }

    fn tensor_scores(
        &self,
        model: &Model,
        tensor_id: TensorId,
        layout: UnitLayout,
        element: impl Fn(f64, InputChannel) -> f64,
    ) -> Result<Vec<f64>, WeightReadError> {
        let TensorId::Block(layer, tensor) = tensor_id else {
            return Ok(Vec::new());
        };
        let channels = self.input_channels(layer, tensor);
        let weight = model.weight(tensor_id);
        // [outputs, inputs]: the column of an element is its input channel
        let (values, cols) = (weight.read()?, weight.cols());
        let score = |index: usize| element(f64::from(values[index]), channels[index % cols]);
        Ok(reduce_channels(layout, weight.rows(), cols, score))
    }

    fn input_channels(&self, layer: usize, tensor: BlockTensor) -> Vec<InputChannel> {
        let moments = &self.moments[&(layer, tensor)];
        let tokens = self.token_count;
        let channel = |(square_sum, sum): (&f64, &f64)| InputChannel {
            norm: square_sum.sqrt(),
            variance: (square_sum / tokens - (sum / tokens) * (sum / tokens)).max(0.0),
        };
        let sums = moments.squares.iter().zip(&moments.sums);
        sums.map(channel).collect()
    }

    /// E[x] of the matrices that write back to the residual stream.
    fn output_matrix_means(&self) -> InputMeans {
        let mut means = InputMeans::new();
        for (&(layer, tensor), moments) in &self.moments {
            if matches!(tensor, BlockTensor::O | BlockTensor::Down) {
                let channel_means = moments.sums.iter().map(|sum| sum / self.token_count);
                means.push((layer, tensor, channel_means.collect()));
            }
        }
        means
    }
}
