//! The Taylor criteria (LLM-Pruner, equations 3 to 5). w is a weight, g the gradient of the batch's mean loss,
//! g_j the gradient of sample j's own mean loss, F the diagonal of the Fisher information, made of the g_j.
//!
//! Scores are reduced block by block during the backward walk: nothing of the size of the model is kept.

use std::collections::{BTreeMap, BTreeSet};

use super::criterion::{Criterion, CriterionInput, CriterionScores};
use super::{Error, Taylor};
use crate::progress::Bar;
use crate::stages::products::MemberScores;
use crate::stages::{Context, Environment, StageError};

use secateur_model::block::Block;
use secateur_model::groups::{DependencyGraph, Group, UnitLayout};
use secateur_model::walk::{self, BackwardOptions, GradientVisitor, Pack, Sequence};
use secateur_model::wiring::TensorId;
use secateur_model::{Model, ParameterId};
use secateur_tensor::ops::{self, GradientQuery, GradientResult};
use secateur_tensor::{Gradient, Weight, WeightReadError};

mod element;
mod reduction;
pub use element::TaylorCriterion;
use reduction::ScoreReduction;

impl Criterion for TaylorCriterion {
    fn name(&self) -> &'static str {
        "taylor"
    }

    fn needs_corpus(&self) -> bool {
        true
    }

    fn is_signed(&self) -> bool {
        matches!(self.form, Taylor::Vector | Taylor::VectorMixed)
    }

    fn add_estimate(&self, environment: &mut Environment, samples: usize, length: usize) {
        environment.add_backward_walk(samples, length);
    }

    fn reference_difference(&self, _: &Model) -> Option<&'static str> {
        self.is_second_order().then_some(
            "the reference keeps no squared gradients for channels and raises; they are scored as blocks are",
        )
    }

    fn score(&self, input: &CriterionInput<'_>) -> Result<CriterionScores, StageError> {
        let (context, model, graph) = (input.context, input.model, input.graph);
        Ok(taylor_scores(*self, context, model, graph, input.sequences)?.into())
    }
}

/// Scores every member of every group.
pub fn taylor_scores(
    criterion: TaylorCriterion,
    context: &Context,
    model: &Model,
    graph: &DependencyGraph,
    sequences: &[Sequence],
) -> Result<Vec<Vec<MemberScores>>, StageError> {
    let reduction = ScoreReduction::new(criterion, sequences.len(), graph, model);
    let member_tensors = graph.groups.iter().flat_map(group_tensors);
    let scored_tensors: BTreeSet<TensorId> = member_tensors
        .map(|tensor| reduction.scored_tensor(tensor))
        .collect();
    let lowest_layer = scored_tensors
        .iter()
        .map(|&tensor| lowest_layer_for(tensor, model))
        .min()
        .unwrap_or(model.blocks.len());
    let bar_steps = (model.blocks.len() - lowest_layer) as u64;
    let mut collector = GradientCollector {
        reduction,
        model,
        bar: context.progress.bar("importance", bar_steps),
        gradient_scales: sample_gradient_scales(sequences),
        scored_tensors,
        results: BTreeMap::new(),
        head_gradients: BTreeMap::new(),
    };
    let options = BackwardOptions {
        lowest_layer,
        separate_packs: collector.needs_separate_packs(),
        memory_limit: Some(context.memory_budget.bytes),
        interrupt: Some(&context.stop_requested),
        adapters: None,
    };
    let loss = walk::backward(model, sequences, &options, &mut collector)?;
    context.check_interrupt()?;
    if !loss.mean.is_finite() {
        return Err(Error::NonFiniteLoss(loss.mean).into());
    }
    tracing::debug!(samples = sequences.len(), loss = loss.mean, "calibration");
    Ok(collector.into_scores()?)
}

/// The tensors that a group's members are made of. A whole-tensor member stands for that tensor of every layer.
fn group_tensors(group: &Group) -> Vec<TensorId> {
    let layers = group.unit_count;
    let mut tensors = Vec::new();
    for member in &group.members {
        match (member.unit_layout, member.tensor_id) {
            (UnitLayout::WholeTensor, TensorId::Block(_, tensor)) => {
                tensors.extend((0..layers).map(|layer| TensorId::Block(layer, tensor)));
            }
            _ => tensors.push(member.tensor_id),
        }
    }
    tensors
}

/// The lowest block that a backward walk must reach for the gradient of this tensor.
fn lowest_layer_for(tensor: TensorId, model: &Model) -> usize {
    match tensor {
        TensorId::Block(layer, _) => layer,
        TensorId::Embedding => 0,
        TensorId::FinalNorm | TensorId::LmHead => model.blocks.len(),
    }
}

/// The loss is the mean over all targets, so sample j's part of its gradient, times (all targets / targets of
/// j), is g_j.
fn sample_gradient_scales(sequences: &[Sequence]) -> Vec<f32> {
    let targets = |sequence: &Sequence| sequence.targets.len();
    let all_targets: usize = sequences.iter().map(targets).sum();
    sequences
        .iter()
        .map(|sequence| all_targets as f32 / targets(sequence) as f32)
        .collect()
}

/// The gradient of one weight over the samples.
pub struct GradientSums {
    /// g
    pub gradient: Gradient,
    /// Σ_j g_j², if the criterion is of second order.
    pub squares: Option<Gradient>,
}

/// Scores of a model in memory from gradients that are known already. `samples` is the number of samples in the squares.
pub fn scores_from_gradients(
    criterion: TaylorCriterion,
    model: &Model,
    graph: &DependencyGraph,
    samples: usize,
    gradients: &BTreeMap<TensorId, GradientSums>,
) -> Vec<Vec<MemberScores>> {
    let mut reduction = ScoreReduction::new(criterion, samples, graph, model);
    for (&tensor, GradientSums { gradient, squares }) in gradients.iter().rev() {
        let weight = model.weight(tensor);
        let sums = reduction.axis_sums(tensor, weight, gradient, squares.as_ref());
        reduction.add_sums(tensor, &sums);
    }
    reduction.into_scores()
}

/// Queries the gradients of the scored tensors, adds up the results over the packs, and reduces a block's to
/// scores as soon as all of its packs have passed.
struct GradientCollector<'a> {
    reduction: ScoreReduction<'a>,
    model: &'a Model,
    bar: Bar,
    /// Of each sample (see [`sample_gradient_scales`]).
    gradient_scales: Vec<f32>,
    scored_tensors: BTreeSet<TensorId>,
    /// The sums over the packs so far, of the current block's tensors and of those outside the blocks.
    results: BTreeMap<TensorId, GradientResult>,
    /// The head's part of a tied embedding's gradient, by pack, until the embedding's part arrives.
    head_gradients: BTreeMap<usize, Gradient>,
}

impl GradientVisitor for GradientCollector<'_> {
    fn query(&self, parameter: ParameterId, pack: &Pack) -> Option<GradientQuery> {
        let tensor = self.reduction.scored_tensor(parameter.weight()?);
        if !self.scored_tensors.contains(&tensor) {
            return None;
        }
        // A tied embedding's gradient has two parts, the head's and the embedding's. Any score but Σ w·g needs
        // their sum, so each part is received as it is.
        let is_part = self.reduction.is_tied && tensor == TensorId::Embedding;
        if is_part && self.reduction.criterion.form != Taylor::Vector {
            return Some(GradientQuery::Gradient);
        }
        Some(self.tensor_query(tensor, pack))
    }

    fn receive(&mut self, parameter: ParameterId, pack: &Pack, result: GradientResult) {
        let Some(received) = parameter.weight() else {
            return;
        };
        let tensor = self.reduction.scored_tensor(received);
        let is_part = self.reduction.is_tied && tensor == TensorId::Embedding;
        if !is_part || !self.reduction.criterion.is_second_order() {
            return self.add_result(tensor, result);
        }
        let GradientResult::Gradient { gradient, .. } = result else {
            unreachable!("the parts of a tied embedding's gradient are received as they are")
        };
        if received == TensorId::LmHead {
            self.head_gradients.insert(pack.index, gradient);
        } else {
            let result = self.whole_embedding_gradient(gradient, pack);
            self.add_result(tensor, result);
        }
    }

    fn finish_block(&mut self, layer: usize, block: &Block) {
        for (tensor, weight) in block.weights() {
            self.reduce_tensor(TensorId::Block(layer, tensor), weight);
        }
        self.bar.step();
    }
}

impl GradientCollector<'_> {
    /// What is computed of a tensor's gradient over one pack: sums, where they can be computed at once, which
    /// is for linear scores, or if all samples are in this pack. Otherwise the gradient, to be added up over
    /// the packs.
    fn tensor_query(&self, tensor: TensorId, pack: &Pack) -> GradientQuery {
        let criterion = self.reduction.criterion;
        let axes = self.reduction.sum_axes(tensor);
        if criterion.form == Taylor::Vector {
            return GradientQuery::WeightTimesGradientSums(axes);
        }
        let samples = criterion
            .is_second_order()
            .then(|| pack.sample_spans(&self.gradient_scales));
        if pack.pack_count == 1 {
            return GradientQuery::ElementScoreSums {
                samples,
                axes,
                score: criterion.element_score(self.reduction.sample_count),
            };
        }
        match samples {
            Some(samples) => GradientQuery::GradientAndSampleSquares(samples),
            None => GradientQuery::Gradient,
        }
    }

    /// Whether each sample must be a pack of its own: the squares of a tied embedding are those of each
    /// sample's whole gradient, whose two parts arrive one after the other.
    fn needs_separate_packs(&self) -> bool {
        self.reduction.is_tied
            && self.reduction.criterion.is_second_order()
            && self.scored_tensors.contains(&TensorId::Embedding)
    }

    /// The gradient of a tied embedding over one sample, which is its pack: the embedding's part plus the
    /// head's, and the square of their scaled sum.
    fn whole_embedding_gradient(
        &mut self,
        embedding_part: Gradient,
        pack: &Pack,
    ) -> GradientResult {
        let (rows, cols) = embedding_part.shape();
        let mut whole = embedding_part.into_vec();
        if let Some(head_part) = self.head_gradients.remove(&pack.index) {
            for (sum, head) in whole.iter_mut().zip(head_part.values().iter()) {
                *sum += head;
            }
        }
        let scale = self.gradient_scales[pack.sequence_range.start];
        let squares = whole.iter().map(|g| (g * scale) * (g * scale)).collect();
        GradientResult::Gradient {
            gradient: Gradient::new(whole, rows, cols),
            squares: Some(Gradient::new(squares, rows, cols)),
        }
    }

    /// Adds one pack's result to the sum over the packs.
    fn add_result(&mut self, tensor: TensorId, result: GradientResult) {
        let sum = match self.results.remove(&tensor) {
            Some(sum) => add_results(sum, result),
            None => result,
        };
        self.results.insert(tensor, sum);
    }

    /// Scores a tensor whose results of all packs have been received.
    fn reduce_tensor(&mut self, tensor: TensorId, weight: &Weight) {
        let sums = match self.results.remove(&tensor) {
            Some(GradientResult::Gradient { gradient, squares }) => {
                self.reduction
                    .axis_sums(tensor, weight, &gradient, squares.as_ref())
            }
            Some(GradientResult::Sums(sums)) => sums,
            None => return,
        };
        self.reduction.add_sums(tensor, &sums);
    }

    fn into_scores(mut self) -> Result<Vec<Vec<MemberScores>>, WeightReadError> {
        for tensor in [TensorId::FinalNorm, TensorId::LmHead, TensorId::Embedding] {
            let weight = self.model.weight(tensor);
            // Sums are complete without the weight.
            let is_gradient = |result| matches!(result, &GradientResult::Gradient { .. });
            if self.results.get(&tensor).is_some_and(is_gradient) {
                self.reduce_tensor(tensor, &weight.to_operand()?);
            } else {
                self.reduce_tensor(tensor, weight);
            }
        }
        Ok(self.reduction.into_scores())
    }
}

/// The sum of two results of one query.
fn add_results(sum: GradientResult, result: GradientResult) -> GradientResult {
    match (sum, result) {
        (
            GradientResult::Gradient {
                gradient: gradient_sum,
                squares: squares_sum,
            },
            GradientResult::Gradient { gradient, squares },
        ) => GradientResult::Gradient {
            gradient: ops::add(gradient_sum, gradient),
            squares: squares_sum
                .zip(squares)
                .map(|(sum, squares)| ops::add(sum, squares)),
        },
        (GradientResult::Sums(mut sum), GradientResult::Sums(sums)) => {
            sum.add(&sums);
            GradientResult::Sums(sum)
        }
        _ => unreachable!("the query about a tensor is the same for every pack"),
    }
}
