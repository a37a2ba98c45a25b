//! Sequences, and packs of them: what an operation works on at once.

use std::ops::Range;
use std::sync::Arc;

use crate::model::Model;
use crate::ops::{Layout, Rotary, SampleAt, Target};
use crate::tensor::PACK;

/// A sequence and which of its predictions count.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    pub ids: Vec<u32>,
    /// The logits at `position` are asked for `id`, in the order of their positions. A walk backward wants no two at one.
    pub targets: Vec<Target>,
}

impl Sequence {
    /// `counts[i]`: whether the prediction of `ids[i]` from what stands before it counts; the first is never predicted.
    pub fn new(ids: Vec<u32>, counts: &[bool]) -> Self {
        let targets = (1..ids.len()).filter(|&i| counts[i]).map(|i| Target { position: i - 1, id: ids[i] }).collect();
        Self { ids, targets }
    }
}

/// Sequences one after another, as one batch of rows.
#[derive(Clone, Debug)]
pub struct Pack {
    /// Its number, from 0.
    pub number: usize,
    /// Which sequences these are, counted over all packs.
    pub sequences: Range<usize>,
    pub ids: Vec<u32>,
    /// Positions count from the beginning of the pack.
    pub targets: Vec<Target>,
    pub layout: Layout,
    /// Of each sequence.
    targets_each: Vec<usize>,
}

impl Pack {
    /// Its samples, where sample i of all has `shares[i]`.
    pub fn samples(&self, shares: &[f32]) -> Arc<[SampleAt]> {
        let own = self.layout.sequences.iter().zip(&shares[self.sequences.clone()]);
        own.map(|(positions, &share)| SampleAt { positions: positions.clone(), share }).collect()
    }

    /// What belongs to each target, sequence by sequence.
    pub fn by_sequence<X>(&self, of_targets: Vec<X>) -> impl Iterator<Item = Vec<X>> {
        let mut left = of_targets.into_iter();
        self.targets_each.iter().map(move |&n| left.by_ref().take(n).collect())
    }
}

/// Packs of as many sequences as fit; how they are cut depends on their lengths alone. `alone`: one sequence each.
pub fn packs(model: &Model, sequences: &[Sequence], alone: bool) -> Vec<Pack> {
    let rotary = Arc::new(model.rotary(sequences.iter().map(|s| s.ids.len()).max().unwrap_or(0)));
    let mut packs = Vec::new();
    let mut first = 0;
    while first < sequences.len() {
        let mut tokens = 0;
        let fits = |s: &&Sequence| {
            tokens += s.ids.len();
            tokens <= PACK
        };
        let fitting = if alone { 1 } else { sequences[first..].iter().take_while(fits).count().max(1) };
        packs.push(pack(packs.len(), first..first + fitting, &sequences[first..first + fitting], &rotary));
        first += fitting;
    }
    packs
}

fn pack(number: usize, range: Range<usize>, sequences: &[Sequence], rotary: &Arc<Rotary>) -> Pack {
    let (mut ids, mut targets, mut places) = (Vec::new(), Vec::new(), Vec::new());
    for sequence in sequences {
        let start = ids.len();
        targets.extend(sequence.targets.iter().map(|t| Target { position: start + t.position, id: t.id }));
        ids.extend(&sequence.ids);
        places.push(start..ids.len());
    }
    let layout = Layout { sequences: places.into(), rotary: rotary.clone() };
    let targets_each = sequences.iter().map(|s| s.targets.len()).collect();
    Pack { number, sequences: range, ids, targets, layout, targets_each }
}
