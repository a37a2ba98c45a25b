//! The Taylor criteria (LLM-Pruner, equations 3 to 5), reduced block by block while the walk goes down: nothing of the
//! size of the model is ever kept. w is a weight, g the gradient of the batch's mean loss, g_j that of sample j's own
//! mean loss, F the Fisher diagonal made of the g_j.

use std::collections::{BTreeMap, BTreeSet};

use super::{Error, Fisher, Taylor, reduce};
use crate::model::Model;
use crate::model::blocks::Slots;
use crate::model::groups::{DependencyGraph, Lie};
use crate::model::walk::{self, Sequence, Visitor};
use crate::model::wiring::{Part, Place};
use crate::progress::Bar;
use crate::stages::Context;
use crate::stages::products::MemberScores;

/// Which criterion.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub taylor: Taylor,
    pub fisher: Fisher,
}

/// Scores every member of every group.
pub fn scores(
    form: Form,
    context: &Context,
    model: &Model,
    graph: &DependencyGraph,
    sequences: &[Sequence],
) -> Result<Vec<Vec<MemberScores>>, Error> {
    let wanted: BTreeSet<Place> = graph
        .groups
        .iter()
        .flat_map(|group| {
            let layers = group.units;
            group.members.iter().flat_map(move |member| match (member.lie, member.place) {
                (Lie::ByLayer, Place::Block(_, part)) => (0..layers).map(|layer| Place::Block(layer, part)).collect::<Vec<_>>(),
                _ => vec![member.place],
            })
        })
        .collect();
    let lowest = wanted.iter().map(|place| match place {
        Place::Block(layer, _) => *layer,
        Place::Embedding => 0,
        Place::FinalNorm | Place::Head => model.blocks.len(),
    });
    let lowest = lowest.min().unwrap_or(model.blocks.len());
    let targets: Vec<usize> = sequences.iter().map(|s| s.targets.len()).collect();
    let mut reducer = Reducer {
        reduction: Reduction { form, samples: sequences.len(), model, graph, reduced: BTreeMap::new() },
        bar: context.progress.bar("importance", (model.blocks.len() - lowest) as u64),
        // g_j = (gradient's share of sample j) · all targets / its own
        shares: targets.iter().map(|&own| targets.iter().sum::<usize>() as f32 / own as f32).collect(),
        wanted,
        sums: BTreeMap::new(),
        heads: BTreeMap::new(),
        context,
    };
    let loss = walk::backward(model, sequences, lowest, &mut reducer);
    context.go_on()?;
    if !loss.mean.is_finite() {
        return Err(Error::NotFinite(loss.mean));
    }
    tracing::debug!(samples = sequences.len(), loss = loss.mean, "calibration");
    Ok(reducer.finish())
}

/// The same from gradients that are there already; `samples`: how many made the squares.
pub fn of_gradients(
    form: Form,
    model: &Model,
    graph: &DependencyGraph,
    samples: usize,
    gradients: &BTreeMap<Place, Sums>,
) -> Vec<Vec<MemberScores>> {
    let mut reduction = Reduction { form, samples, model, graph, reduced: BTreeMap::new() };
    gradients.iter().rev().for_each(|(&place, sums)| reduction.add(place, sums));
    reduction.finish()
}

/// Gathers the gradients of one block, then reduces them to scores and drops them.
struct Reducer<'a> {
    reduction: Reduction<'a>,
    bar: Bar,
    shares: Vec<f32>,
    wanted: BTreeSet<Place>,
    /// Gradients of the block at hand, and of what lies outside the blocks.
    sums: BTreeMap<Place, Sums>,
    /// The gradient of a tied head by sequence, until the embedding's arrives.
    heads: BTreeMap<usize, Vec<f32>>,
    context: &'a Context,
}

/// Gradients of one weight over the samples.
pub struct Sums {
    /// g
    pub gradient: Vec<f32>,
    /// Σ g_j², empty where no second-order form asks.
    pub squares: Vec<f32>,
}

/// Turns gradients into scores, a weight at a time.
struct Reduction<'a> {
    form: Form,
    samples: usize,
    model: &'a Model,
    graph: &'a DependencyGraph,
    /// Channel scores by group and member.
    reduced: BTreeMap<(usize, usize), Vec<f64>>,
}

impl Visitor for Reducer<'_> {
    type Lens = Slots;
    type Found = Vec<(Part, Vec<f32>)>;

    fn lens(&self, layer: usize, _: usize) -> Slots {
        Slots::of(Part::ALL.into_iter().filter(|&part| self.wanted.contains(&Place::Block(layer, part))))
    }

    fn found(lens: Slots) -> Self::Found {
        lens.gradients()
    }

    fn block(&mut self, layer: usize, sequence: usize, found: Self::Found) {
        for (part, gradient) in found {
            self.add(Place::Block(layer, part), sequence, gradient);
        }
    }

    fn block_done(&mut self, layer: usize) {
        let done: Vec<Place> =
            self.sums.keys().copied().filter(|place| matches!(place, Place::Block(at, _) if *at == layer)).collect();
        done.into_iter().for_each(|place| self.reduce(place));
        self.bar.step();
    }

    fn wants(&self, outside: Place) -> bool {
        // A tied head's gradient is the embedding's too.
        self.wanted.contains(&outside)
            || (outside == Place::Head && self.reduction.model.head.is_none() && self.wanted.contains(&Place::Embedding))
    }

    fn outside(&mut self, at: Place, sequence: usize, gradient: Vec<f32>) {
        if self.reduction.model.head.is_some() || at == Place::FinalNorm {
            return self.add(at, sequence, gradient);
        }
        // Both uses of a tied weight make one gradient, which second-order forms square whole: the head's comes first.
        match (at, self.heads.remove(&sequence)) {
            (Place::Head, _) => drop(self.heads.insert(sequence, gradient)),
            (_, Some(head)) => {
                let whole = head.iter().zip(&gradient).map(|(h, e)| h + e).collect();
                self.add(Place::Embedding, sequence, whole);
            }
            (_, None) => self.add(Place::Embedding, sequence, gradient),
        }
    }

    fn is_done(&self) -> bool {
        self.context.go_on().is_err()
    }
}

impl Reducer<'_> {
    fn add(&mut self, place: Place, sequence: usize, gradient: Vec<f32>) {
        let second = self.reduction.form.second_order();
        let sums = self.sums.entry(place).or_insert_with(|| Sums {
            gradient: vec![0.0; gradient.len()],
            squares: vec![0.0; if second { gradient.len() } else { 0 }],
        });
        let share = self.shares[sequence];
        sums.squares.iter_mut().zip(&gradient).for_each(|(square, g)| *square += (g * share) * (g * share));
        sums.gradient.iter_mut().zip(&gradient).for_each(|(sum, g)| *sum += g);
    }

    fn reduce(&mut self, place: Place) {
        if let Some(sums) = self.sums.remove(&place) {
            self.reduction.add(place, &sums);
        }
    }

    fn finish(mut self) -> Vec<Vec<MemberScores>> {
        let outside: Vec<Place> = self.sums.keys().copied().collect();
        outside.into_iter().for_each(|place| self.reduce(place));
        self.reduction.finish()
    }
}

impl Reduction<'_> {
    /// Scores every member that is this weight. Blocks come from the last down.
    fn add(&mut self, place: Place, sums: &Sums) {
        let fisher = match self.form.fisher {
            Fisher::Mean => 1.0 / self.samples as f64,
            Fisher::Sum => 1.0,
        };
        let weight = self.model.weight(place);
        let values = weight.values();
        let square = |i: usize| sums.squares.get(i).map_or(0.0, |&s| f64::from(s) * fisher);
        let element = |i: usize| self.form.element(f64::from(values[i]), f64::from(sums.gradient[i]), square(i));
        for (g, group) in self.graph.groups.iter().enumerate() {
            for (m, member) in group.members.iter().enumerate() {
                let same = match (member.lie, member.place, place) {
                    (Lie::ByLayer, Place::Block(_, part), Place::Block(_, at)) => part == at,
                    (_, Place::Head, Place::Embedding) => self.model.head.is_none(),
                    _ => member.place == place,
                };
                if same {
                    let channels = reduce(member.lie, weight.rows(), weight.cols(), element);
                    let scores = self.reduced.entry((g, m)).or_default();
                    match member.lie {
                        Lie::ByLayer => drop(scores.splice(0..0, channels)),
                        Lie::Along(_) => *scores = channels,
                    }
                }
            }
        }
    }

    fn finish(self) -> Vec<Vec<MemberScores>> {
        let mut groups = vec![Vec::new(); self.graph.groups.len()];
        for ((group, member), channels) in self.reduced {
            groups[group].push(MemberScores { member, channels });
        }
        groups
    }
}

impl Form {
    fn second_order(self) -> bool {
        matches!(self.taylor, Taylor::VectorMixed | Taylor::ElementSecond | Taylor::ElementMixed)
    }

    /// What one element adds to the score of its channel; `f` is its Fisher information.
    fn element(self, w: f64, g: f64, f: f64) -> f64 {
        match self.taylor {
            Taylor::Vector => w * g,
            Taylor::VectorMixed => w * g - 0.5 * f * w * w,
            Taylor::ElementFirst => (w * g).abs(),
            Taylor::ElementSecond => (f * w * w).abs(),
            Taylor::ElementMixed => (w * g - 0.5 * f * w * w).abs(),
        }
    }
}
