//! The Taylor criteria (LLM-Pruner, equations 3 to 5), reduced block by block while the walk goes down: nothing of the
//! size of the model is ever kept. w is a weight, g the gradient of the batch's mean loss, g_j that of sample j's own
//! mean loss, F the Fisher diagonal made of the g_j.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Error, Fisher, Taylor};
use crate::progress::Bar;
use crate::stages::Context;
use crate::stages::products::MemberScores;
use secateur_model::Model;
use secateur_model::block::Block;
use secateur_model::groups::{DependencyGraph, UnitLayout};
use secateur_model::hooks::GradientRequests;
use secateur_model::walk::{self, GradientVisitor, Pack, Sequence};
use secateur_model::wiring::{Axis, BlockTensor, TensorId};
use secateur_tensor::ops::{
    self, AxisSums, ElementScore, GradientQuery, GradientResult, SumAxes, axis_sums,
};
use secateur_tensor::{Gradient, Weight};

mod element;
use element::TaylorElementScore;

/// Which criterion.
#[derive(Clone, Copy, Debug)]
pub struct TaylorCriterion {
    pub form: Taylor,
    pub fisher: Fisher,
}

/// Scores every member of every group.
pub fn taylor_scores(
    form: TaylorCriterion,
    context: &Context,
    model: &Model,
    graph: &DependencyGraph,
    sequences: &[Sequence],
) -> Result<Vec<Vec<MemberScores>>, Error> {
    let wanted: BTreeSet<TensorId> = graph
        .groups
        .iter()
        .flat_map(|group| {
            let layers = group.unit_count;
            group.members.iter().flat_map(move |member| {
                match (member.unit_layout, member.tensor_id) {
                    (UnitLayout::WholeTensor, TensorId::Block(_, part)) => (0..layers)
                        .map(|layer| TensorId::Block(layer, part))
                        .collect::<Vec<_>>(),
                    _ => vec![member.tensor_id],
                }
            })
        })
        .collect();
    let lowest = wanted.iter().map(|place| match place {
        TensorId::Block(layer, _) => *layer,
        TensorId::Embedding => 0,
        TensorId::FinalNorm | TensorId::LmHead => model.blocks.len(),
    });
    let lowest = lowest.min().unwrap_or(model.blocks.len());
    let targets: Vec<usize> = sequences.iter().map(|s| s.targets.len()).collect();
    let mut reducer = GradientCollector {
        score_reduction: ScoreReduction {
            criterion: form,
            sample_count: sequences.len(),
            graph,
            is_tied: model.lm_head.is_none(),
            channel_scores: BTreeMap::new(),
        },
        model,
        bar: context
            .progress
            .bar("importance", (model.blocks.len() - lowest) as u64),
        // g_j = (gradient's share of sample j) · all targets / its own
        sample_scales: targets
            .iter()
            .map(|&own| targets.iter().sum::<usize>() as f32 / own as f32)
            .collect(),
        scored_tensors: wanted,
        pack_count: 0,
        results: BTreeMap::new(),
        head_gradients: BTreeMap::new(),
        context,
    };
    let loss = walk::backward(model, sequences, lowest, &mut reducer);
    context.check_interrupt()?;
    if !loss.mean.is_finite() {
        return Err(Error::NonFiniteLoss(loss.mean));
    }
    tracing::debug!(samples = sequences.len(), loss = loss.mean, "calibration");
    Ok(reducer.into_scores())
}

/// Gradients of one weight over the samples.
pub struct GradientSums {
    /// g
    pub gradient: Gradient,
    /// Σ g_j², where a second-order form asks.
    pub squares: Option<Gradient>,
}

/// The same from gradients that are there already; `samples`: how many made the squares.
pub fn scores_from_gradients(
    form: TaylorCriterion,
    model: &Model,
    graph: &DependencyGraph,
    samples: usize,
    gradients: &BTreeMap<TensorId, GradientSums>,
) -> Vec<Vec<MemberScores>> {
    let mut reduction = ScoreReduction {
        criterion: form,
        sample_count: samples,
        graph,
        is_tied: model.lm_head.is_none(),
        channel_scores: BTreeMap::new(),
    };
    for (&place, GradientSums { gradient, squares }) in gradients.iter().rev() {
        let sums = reduction.axis_sums(place, model.weight(place), gradient, squares.as_ref());
        reduction.add_sums(place, &sums);
    }
    reduction.into_scores()
}

/// Asks about the gradients of one block after another, and turns the answers into scores.
struct GradientCollector<'a> {
    score_reduction: ScoreReduction<'a>,
    model: &'a Model,
    bar: Bar,
    sample_scales: Vec<f32>,
    scored_tensors: BTreeSet<TensorId>,
    pack_count: usize,
    /// Of the block at hand, and of what lies outside the blocks, over the packs so far.
    results: BTreeMap<TensorId, GradientResult>,
    /// The gradient of a tied head by sequence, until the embedding's arrives.
    head_gradients: BTreeMap<usize, Gradient>,
    context: &'a Context,
}

/// Turns sums over rows and columns into scores, a weight at a time.
struct ScoreReduction<'a> {
    criterion: TaylorCriterion,
    sample_count: usize,
    graph: &'a DependencyGraph,
    is_tied: bool,
    /// Channel scores by group and member.
    channel_scores: BTreeMap<(usize, usize), Vec<f64>>,
}

impl GradientVisitor for GradientCollector<'_> {
    type Hooks = GradientRequests;

    fn hooks(&self, layer: usize, pack: &Pack) -> GradientRequests {
        let wanted = self
            .model
            .family
            .block_tensor_ids()
            .filter(|&part| self.scored_tensors.contains(&TensorId::Block(layer, part)));
        GradientRequests::from_queries(
            wanted.map(|part| (part, self.query(TensorId::Block(layer, part), pack))),
        )
    }

    fn visit_block(&mut self, layer: usize, _: &Pack, lens: GradientRequests) {
        lens.into_results()
            .for_each(|(part, answer)| self.add_result(TensorId::Block(layer, part), answer));
    }

    fn finish_block(&mut self, layer: usize, block: &Block) {
        for (part, weight) in block.weights() {
            self.reduce_tensor(TensorId::Block(layer, part), weight);
        }
        self.bar.step();
    }

    fn query(&self, outside: TensorId, pack: &Pack) -> Option<GradientQuery> {
        // A tied head's gradient is the embedding's too.
        let is_wanted = self.scored_tensors.contains(&outside)
            || (self.is_tied_head(outside) && self.scored_tensors.contains(&TensorId::Embedding));
        // Both uses of a tied weight make one gradient.
        let is_half = self.score_reduction.is_tied
            && outside != TensorId::FinalNorm
            && self.score_reduction.criterion.form != Taylor::Vector;
        is_wanted.then(|| {
            if is_half {
                GradientQuery::Gradient
            } else {
                self.query(outside, pack)
            }
        })
    }

    fn visit_outer_tensor(&mut self, at: TensorId, pack: &Pack, answer: GradientResult) {
        if !self.score_reduction.is_tied || at == TensorId::FinalNorm {
            return self.add_result(at, answer);
        }
        let gradient = match answer {
            GradientResult::Gradient { gradient, .. } => gradient,
            // sums of products are added up as they are
            sums @ GradientResult::Sums(_) => return self.add_result(TensorId::Embedding, sums),
        };
        if !self.score_reduction.criterion.is_second_order() {
            return self.add_result(
                TensorId::Embedding,
                GradientResult::Gradient {
                    gradient,
                    squares: None,
                },
            );
        }
        // Second-order forms square the one gradient of each sample: the head's comes first.
        match (at, self.head_gradients.remove(&pack.index)) {
            (TensorId::LmHead, _) => drop(self.head_gradients.insert(pack.index, gradient)),
            (_, head) => {
                let (rows, cols) = gradient.shape();
                // the embedding's is made in the CPU's memory
                let mut whole = gradient.into_vec();
                if let Some(head) = head {
                    whole
                        .iter_mut()
                        .zip(head.values().iter())
                        .for_each(|(e, h)| *e += h);
                }
                let share = self.sample_scales[pack.sequence_range.start];
                let squares = whole.iter().map(|g| (g * share) * (g * share)).collect();
                let [gradient, squares] =
                    [whole, squares].map(|values| Gradient::new(values, rows, cols));
                self.add_result(
                    TensorId::Embedding,
                    GradientResult::Gradient {
                        gradient,
                        squares: Some(squares),
                    },
                );
            }
        }
    }

    fn needs_separate_packs(&self) -> bool {
        let ends = [TensorId::Embedding, TensorId::LmHead];
        self.score_reduction.is_tied
            && self.score_reduction.criterion.is_second_order()
            && ends.iter().any(|end| self.scored_tensors.contains(end))
    }

    fn set_pack_count(&mut self, packs: usize) {
        self.pack_count = packs;
    }

    fn memory_limit(&self) -> Option<u64> {
        Some(self.context.memory_budget.bytes)
    }

    fn is_done(&self) -> bool {
        self.context.check_interrupt().is_err()
    }
}

impl GradientCollector<'_> {
    /// What is asked about a weight: sums that are reduced at once where all samples lie in one pack, else gradients, which
    /// are added up over the packs.
    fn query(&self, place: TensorId, pack: &Pack) -> GradientQuery {
        let form = self.score_reduction.criterion;
        let sides = self.score_reduction.sum_axes(place);
        let samples = form
            .is_second_order()
            .then(|| pack.sample_spans(&self.sample_scales));
        match samples {
            None if form.form == Taylor::Vector => GradientQuery::WeightTimesGradientSums(sides),
            samples if self.pack_count == 1 => GradientQuery::ElementScoreSums {
                samples,
                axes: sides,
                score: form.element_score(self.score_reduction.sample_count),
            },
            Some(samples) => GradientQuery::GradientAndSampleSquares(samples),
            None => GradientQuery::Gradient,
        }
    }

    fn is_tied_head(&self, place: TensorId) -> bool {
        self.score_reduction.is_tied && place == TensorId::LmHead
    }

    fn add_result(&mut self, place: TensorId, answer: GradientResult) {
        let sum = match (self.results.remove(&place), answer) {
            (None, answer) => answer,
            (
                Some(GradientResult::Gradient {
                    gradient: sum,
                    squares: of_squares,
                }),
                GradientResult::Gradient { gradient, squares },
            ) => {
                let squares = of_squares.zip(squares).map(|(sum, own)| ops::add(sum, own));
                GradientResult::Gradient {
                    gradient: ops::add(sum, gradient),
                    squares,
                }
            }
            (Some(GradientResult::Sums(mut sums)), GradientResult::Sums(own)) => {
                sums.rows
                    .iter_mut()
                    .zip(own.rows)
                    .for_each(|(sum, own)| *sum += own);
                sums.cols
                    .iter_mut()
                    .zip(own.cols)
                    .for_each(|(sum, own)| *sum += own);
                GradientResult::Sums(sums)
            }
            _ => unreachable!("a weight is asked the same of every pack"),
        };
        self.results.insert(place, sum);
    }

    fn reduce_tensor(&mut self, place: TensorId, weight: &Weight) {
        let sums = match self.results.remove(&place) {
            Some(GradientResult::Gradient { gradient, squares }) => {
                self.score_reduction
                    .axis_sums(place, weight, &gradient, squares.as_ref())
            }
            Some(GradientResult::Sums(sums)) => sums,
            None => return,
        };
        self.score_reduction.add_sums(place, &sums);
    }

    fn into_scores(mut self) -> Vec<Vec<MemberScores>> {
        for place in [TensorId::FinalNorm, TensorId::LmHead, TensorId::Embedding] {
            self.reduce_tensor(place, self.model.weight(place));
        }
        self.score_reduction.into_scores()
    }
}

impl ScoreReduction<'_> {
    /// The members that are this weight, with their group's and their own number.
    fn members_of_tensor(
        &self,
        place: TensorId,
    ) -> impl Iterator<Item = (usize, usize, UnitLayout)> {
        let all = self.graph.groups.iter().enumerate().flat_map(|(g, group)| {
            group
                .members
                .iter()
                .enumerate()
                .map(move |(m, member)| (g, m, member))
        });
        all.filter(
            move |(_, _, member)| match (member.unit_layout, member.tensor_id, place) {
                (UnitLayout::WholeTensor, TensorId::Block(_, part), TensorId::Block(_, at)) => {
                    part == at
                }
                (_, TensorId::LmHead, TensorId::Embedding) => self.is_tied,
                _ => member.tensor_id == place,
            },
        )
        .map(|(g, m, member)| (g, m, member.unit_layout))
    }

    /// Which sums the members that are this weight are made of.
    fn sum_axes(&self, place: TensorId) -> SumAxes {
        let place = if self.is_tied && place == TensorId::LmHead {
            TensorId::Embedding
        } else {
            place
        };
        let lies: Vec<UnitLayout> = self
            .members_of_tensor(place)
            .map(|(_, _, lie)| lie)
            .collect();
        SumAxes {
            rows: lies.iter().any(|lie| {
                matches!(
                    lie,
                    UnitLayout::AlongAxis(Axis::Rows) | UnitLayout::WholeTensor
                )
            }),
            cols: lies.contains(&UnitLayout::AlongAxis(Axis::Cols)),
        }
    }

    /// The sums of a gradient that is there as a whole.
    fn axis_sums(
        &self,
        place: TensorId,
        weight: &Weight,
        gradient: &Gradient,
        squares: Option<&Gradient>,
    ) -> AxisSums {
        axis_sums(
            weight,
            gradient,
            squares,
            self.sum_axes(place),
            self.criterion.element_score(self.sample_count).as_ref(),
        )
    }

    /// Scores every member that is this weight. Blocks come from the last down.
    fn add_sums(&mut self, place: TensorId, sums: &AxisSums) {
        let members: Vec<_> = self.members_of_tensor(place).collect();
        for (group, member, lie) in members {
            let scores = self.channel_scores.entry((group, member)).or_default();
            match lie {
                UnitLayout::AlongAxis(Axis::Rows) => scores.clone_from(&sums.rows),
                UnitLayout::AlongAxis(Axis::Cols) => scores.clone_from(&sums.cols),
                UnitLayout::WholeTensor => scores.insert(0, sums.rows.iter().sum()),
            }
        }
    }

    fn into_scores(self) -> Vec<Vec<MemberScores>> {
        let mut groups = vec![Vec::new(); self.graph.groups.len()];
        for ((group, member), channels) in self.channel_scores {
            groups[group].push(MemberScores {
                member_index: member,
                channels,
            });
        }
        groups
    }
}

impl TaylorCriterion {
    fn is_second_order(self) -> bool {
        matches!(
            self.form,
            Taylor::VectorMixed | Taylor::ElementSecond | Taylor::ElementMixed
        )
    }

    /// What each element adds to the score of its channel, its Fisher information made of so many samples' squares.
    fn element_score(self, samples: usize) -> Arc<dyn ElementScore> {
        let fisher = match self.fisher {
            Fisher::Mean => 1.0 / samples as f64,
            Fisher::Sum => 1.0,
        };
        Arc::new(TaylorElementScore {
            form: self.form,
            fisher_scale: fisher,
        })
    }
}
