//! The Taylor criteria (LLM-Pruner, equations 3 to 5), reduced block by block while the walk goes down: nothing of the
//! size of the model is ever kept. w is a weight, g the gradient of the batch's mean loss, g_j that of sample j's own
//! mean loss, F the Fisher diagonal made of the g_j.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Error, Fisher, Taylor};
use crate::model::Model;
use crate::model::blocks::{Block, Slots};
use crate::model::groups::{DependencyGraph, Lie};
use crate::model::walk::{self, Pack, Sequence, Visitor};
use crate::model::wiring::{Axis, Part, Place};
use crate::ops::{self, Answer, Ask, SideSums, Sides, Worth, side_sums};
use crate::progress::Bar;
use crate::stages::Context;
use crate::stages::products::MemberScores;
use crate::tensor::{Gradient, Weight};

mod element;
use element::Element;

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
        reduction: Reduction { form, samples: sequences.len(), graph, tied: model.head.is_none(), reduced: BTreeMap::new() },
        model,
        bar: context.progress.bar("importance", (model.blocks.len() - lowest) as u64),
        // g_j = (gradient's share of sample j) · all targets / its own
        shares: targets.iter().map(|&own| targets.iter().sum::<usize>() as f32 / own as f32).collect(),
        wanted,
        packs: 0,
        answers: BTreeMap::new(),
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

/// Gradients of one weight over the samples.
pub struct Sums {
    /// g
    pub gradient: Gradient,
    /// Σ g_j², where a second-order form asks.
    pub squares: Option<Gradient>,
}

/// The same from gradients that are there already; `samples`: how many made the squares.
pub fn of_gradients(
    form: Form,
    model: &Model,
    graph: &DependencyGraph,
    samples: usize,
    gradients: &BTreeMap<Place, Sums>,
) -> Vec<Vec<MemberScores>> {
    let mut reduction = Reduction { form, samples, graph, tied: model.head.is_none(), reduced: BTreeMap::new() };
    for (&place, Sums { gradient, squares }) in gradients.iter().rev() {
        let sums = reduction.sums(place, model.weight(place), gradient, squares.as_ref());
        reduction.add(place, &sums);
    }
    reduction.finish()
}

/// Asks about the gradients of one block after another, and turns the answers into scores.
struct Reducer<'a> {
    reduction: Reduction<'a>,
    model: &'a Model,
    bar: Bar,
    shares: Vec<f32>,
    wanted: BTreeSet<Place>,
    packs: usize,
    /// Of the block at hand, and of what lies outside the blocks, over the packs so far.
    answers: BTreeMap<Place, Answer>,
    /// The gradient of a tied head by sequence, until the embedding's arrives.
    heads: BTreeMap<usize, Gradient>,
    context: &'a Context,
}

/// Turns sums over rows and columns into scores, a weight at a time.
struct Reduction<'a> {
    form: Form,
    samples: usize,
    graph: &'a DependencyGraph,
    tied: bool,
    /// Channel scores by group and member.
    reduced: BTreeMap<(usize, usize), Vec<f64>>,
}

impl Visitor for Reducer<'_> {
    type Lens = Slots;

    fn lens(&self, layer: usize, pack: &Pack) -> Slots {
        let wanted = Part::ALL.into_iter().filter(|&part| self.wanted.contains(&Place::Block(layer, part)));
        Slots::of(wanted.map(|part| (part, self.ask(Place::Block(layer, part), pack))))
    }

    fn block(&mut self, layer: usize, _: &Pack, lens: Slots) {
        lens.answers().for_each(|(part, answer)| self.add(Place::Block(layer, part), answer));
    }

    fn block_done(&mut self, layer: usize, block: &Block) {
        for part in Part::ALL {
            self.reduce(Place::Block(layer, part), &block[part]);
        }
        self.bar.step();
    }

    fn asks(&self, outside: Place, pack: &Pack) -> Option<Ask> {
        // A tied head's gradient is the embedding's too.
        let is_wanted = self.wanted.contains(&outside) || (self.is_tied_head(outside) && self.wanted.contains(&Place::Embedding));
        // Both uses of a tied weight make one gradient.
        let is_half = self.reduction.tied && outside != Place::FinalNorm && self.reduction.form.taylor != Taylor::Vector;
        is_wanted.then(|| if is_half { Ask::Gradient } else { self.ask(outside, pack) })
    }

    fn outside(&mut self, at: Place, pack: &Pack, answer: Answer) {
        if !self.reduction.tied || at == Place::FinalNorm {
            return self.add(at, answer);
        }
        let gradient = match answer {
            Answer::Gradient { gradient, .. } => gradient,
            // sums of products are added up as they are
            sums @ Answer::Sums(_) => return self.add(Place::Embedding, sums),
        };
        if !self.reduction.form.second_order() {
            return self.add(Place::Embedding, Answer::Gradient { gradient, squares: None });
        }
        // Second-order forms square the one gradient of each sample: the head's comes first.
        match (at, self.heads.remove(&pack.number)) {
            (Place::Head, _) => drop(self.heads.insert(pack.number, gradient)),
            (_, head) => {
                let (rows, cols) = gradient.shape();
                // the embedding's is made in the CPU's memory
                let mut whole = gradient.into_vec();
                if let Some(head) = head {
                    whole.iter_mut().zip(head.values().iter()).for_each(|(e, h)| *e += h);
                }
                let share = self.shares[pack.sequences.start];
                let squares = whole.iter().map(|g| (g * share) * (g * share)).collect();
                let [gradient, squares] = [whole, squares].map(|values| Gradient::new(values, rows, cols));
                self.add(Place::Embedding, Answer::Gradient { gradient, squares: Some(squares) });
            }
        }
    }

    fn alone(&self) -> bool {
        let ends = [Place::Embedding, Place::Head];
        self.reduction.tied && self.reduction.form.second_order() && ends.iter().any(|end| self.wanted.contains(end))
    }

    fn begin(&mut self, packs: usize) {
        self.packs = packs;
    }

    fn memory(&self) -> Option<u64> {
        Some(self.context.budget.bytes)
    }

    fn is_done(&self) -> bool {
        self.context.go_on().is_err()
    }
}

impl Reducer<'_> {
    /// What is asked about a weight: sums that are reduced at once where all samples lie in one pack, else gradients, which
    /// are added up over the packs.
    fn ask(&self, place: Place, pack: &Pack) -> Ask {
        let form = self.reduction.form;
        let sides = self.reduction.sides(place);
        let samples = form.second_order().then(|| pack.samples(&self.shares));
        match samples {
            None if form.taylor == Taylor::Vector => Ask::Products(sides),
            samples if self.packs == 1 => Ask::Elements { samples, sides, worth: form.worth(self.reduction.samples) },
            Some(samples) => Ask::Squares(samples),
            None => Ask::Gradient,
        }
    }

    fn is_tied_head(&self, place: Place) -> bool {
        self.reduction.tied && place == Place::Head
    }

    fn add(&mut self, place: Place, answer: Answer) {
        let sum = match (self.answers.remove(&place), answer) {
            (None, answer) => answer,
            (Some(Answer::Gradient { gradient: sum, squares: of_squares }), Answer::Gradient { gradient, squares }) => {
                let squares = of_squares.zip(squares).map(|(sum, own)| ops::add(sum, own));
                Answer::Gradient { gradient: ops::add(sum, gradient), squares }
            }
            (Some(Answer::Sums(mut sums)), Answer::Sums(own)) => {
                sums.rows.iter_mut().zip(own.rows).for_each(|(sum, own)| *sum += own);
                sums.cols.iter_mut().zip(own.cols).for_each(|(sum, own)| *sum += own);
                Answer::Sums(sums)
            }
            _ => unreachable!("a weight is asked the same of every pack"),
        };
        self.answers.insert(place, sum);
    }

    fn reduce(&mut self, place: Place, weight: &Weight) {
        let sums = match self.answers.remove(&place) {
            Some(Answer::Gradient { gradient, squares }) => self.reduction.sums(place, weight, &gradient, squares.as_ref()),
            Some(Answer::Sums(sums)) => sums,
            None => return,
        };
        self.reduction.add(place, &sums);
    }

    fn finish(mut self) -> Vec<Vec<MemberScores>> {
        for place in [Place::FinalNorm, Place::Head, Place::Embedding] {
            self.reduce(place, self.model.weight(place));
        }
        self.reduction.finish()
    }
}

impl Reduction<'_> {
    /// The members that are this weight, with their group's and their own number.
    fn members(&self, place: Place) -> impl Iterator<Item = (usize, usize, Lie)> {
        let all = self
            .graph
            .groups
            .iter()
            .enumerate()
            .flat_map(|(g, group)| group.members.iter().enumerate().map(move |(m, member)| (g, m, member)));
        all.filter(move |(_, _, member)| match (member.lie, member.place, place) {
            (Lie::ByLayer, Place::Block(_, part), Place::Block(_, at)) => part == at,
            (_, Place::Head, Place::Embedding) => self.tied,
            _ => member.place == place,
        })
        .map(|(g, m, member)| (g, m, member.lie))
    }

    /// Which sums the members that are this weight are made of.
    fn sides(&self, place: Place) -> Sides {
        let place = if self.tied && place == Place::Head { Place::Embedding } else { place };
        let lies: Vec<Lie> = self.members(place).map(|(_, _, lie)| lie).collect();
        Sides {
            rows: lies.iter().any(|lie| matches!(lie, Lie::Along(Axis::Rows) | Lie::ByLayer)),
            cols: lies.contains(&Lie::Along(Axis::Cols)),
        }
    }

    /// The sums of a gradient that is there as a whole.
    fn sums(&self, place: Place, weight: &Weight, gradient: &Gradient, squares: Option<&Gradient>) -> SideSums {
        side_sums(weight, gradient, squares, self.sides(place), self.form.worth(self.samples).as_ref())
    }

    /// Scores every member that is this weight. Blocks come from the last down.
    fn add(&mut self, place: Place, sums: &SideSums) {
        let members: Vec<_> = self.members(place).collect();
        for (group, member, lie) in members {
            let scores = self.reduced.entry((group, member)).or_default();
            match lie {
                Lie::Along(Axis::Rows) => scores.clone_from(&sums.rows),
                Lie::Along(Axis::Cols) => scores.clone_from(&sums.cols),
                Lie::ByLayer => scores.insert(0, sums.rows.iter().sum()),
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

    /// What each element adds to the score of its channel, its Fisher information made of so many samples' squares.
    fn worth(self, samples: usize) -> Arc<dyn Worth> {
        let fisher = match self.fisher {
            Fisher::Mean => 1.0 / samples as f64,
            Fisher::Sum => 1.0,
        };
        Arc::new(Element { taylor: self.taylor, fisher })
    }
}
