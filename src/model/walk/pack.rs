//! Sequences, and packs of them: what an operation works on at once.

use std::ops::Range;
use std::sync::Arc;

use crate::model::Model;
use crate::ops::{Layout, Rotary, SampleAt, Span, Target};
use crate::tensor::PACK;

/// A beginning is shared from this part of a sequence on, an eighth: what is shared must be brought together with the rest.
const SHARED_PART: usize = 8;

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
    /// Of no sequence yet.
    pub fn empty(number: usize, first: usize, rotary: &Arc<Rotary>) -> Self {
        let layout = Layout { spans: [].into(), rotary: rotary.clone() };
        let (ids, targets, targets_each) = (Vec::new(), Vec::new(), Vec::new());
        Self { number, sequences: first..first, ids, targets, layout, targets_each }
    }

    /// Its samples, where sample i of all has `shares[i]`.
    pub fn samples(&self, shares: &[f32]) -> Arc<[SampleAt]> {
        let own = self.layout.spans.iter().zip(&shares[self.sequences.clone()]);
        own.map(|(span, &share)| SampleAt { positions: span.rows.clone(), share }).collect()
    }

    /// What belongs to each target, sequence by sequence.
    pub fn by_sequence<X>(&self, of_targets: Vec<X>) -> impl Iterator<Item = Vec<X>> {
        let mut left = of_targets.into_iter();
        self.targets_each.iter().map(move |&n| left.by_ref().take(n).collect())
    }
}

/// Packs of as many sequences as fit; how they are cut depends on their lengths alone. `alone`: one sequence each.
pub fn packs(model: &Model, sequences: &[Sequence], alone: bool) -> Vec<Pack> {
    let mut packing = Packing::new(model, sequences, if alone { 1 } else { PACK });
    for sequence in sequences {
        packing.add(sequence, 0);
    }
    packing.finish()
}

/// Packs for a walk forward in which sequences that begin alike share their beginning: its rows stand in the pack once. Beside
/// them, the order in which they took the sequences: those that begin alike stand together.
pub fn shared_packs(model: &Model, sequences: &[Sequence]) -> (Vec<Pack>, Vec<usize>) {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by(|&a, &b| sequences[a].ids.cmp(&sequences[b].ids));
    let mut packing = Packing::new(model, sequences, PACK);
    let mut before: &[u32] = &[];
    for &at in &order {
        let ids = &sequences[at].ids;
        let alike = ids.iter().zip(before).take_while(|(a, b)| a == b).count();
        packing.add(&sequences[at], alike);
        before = ids;
    }
    (packing.finish(), order)
}

/// Packs in the making.
struct Packing {
    packs: Vec<Pack>,
    rotary: Arc<Rotary>,
    /// Rows of a pack, unless one sequence has more.
    room: usize,
    /// Where the last sequence lies in the last pack.
    path: Vec<Range<usize>>,
    spans: Vec<Span>,
}

impl Packing {
    fn new(model: &Model, sequences: &[Sequence], room: usize) -> Self {
        let rotary = Arc::new(model.rotary(sequences.iter().map(|s| s.ids.len()).max().unwrap_or(0)));
        Self { packs: Vec::new(), rotary, room, path: Vec::new(), spans: Vec::new() }
    }

    /// Adds a sequence, the first `alike` tokens of which are those of the one before it.
    fn add(&mut self, sequence: &Sequence, alike: usize) {
        let mut alike = if alike * SHARED_PART >= sequence.ids.len() { alike } else { 0 };
        let fits = |pack: &Pack| pack.ids.len() + sequence.ids.len() - alike <= self.room;
        if !self.packs.last().is_some_and(fits) {
            self.begin();
            alike = 0;
        }
        let Some(pack) = self.packs.last_mut() else { return };
        let mut before = std::mem::take(&mut self.path);
        let mut left = alike;
        before.retain_mut(|rows| {
            rows.end = rows.end.min(rows.start + left);
            left -= rows.len();
            rows.start < rows.end
        });
        let rows = pack.ids.len()..pack.ids.len() + sequence.ids.len() - alike;
        pack.ids.extend(&sequence.ids[alike..]);
        self.path.clone_from(&before);
        self.path.push(rows.clone());
        let places = self.path.iter().cloned().flatten().collect::<Vec<usize>>();
        pack.targets.extend(sequence.targets.iter().map(|t| Target { position: places[t.position], id: t.id }));
        pack.targets_each.push(sequence.targets.len());
        pack.sequences.end += 1;
        // a sequence that is the beginning of another has no rows of its own, but is a sample of a pack that shares nothing
        if !rows.is_empty() || alike == 0 {
            self.spans.push(Span { rows, before, past: 0 });
        }
    }

    /// Begins a new pack.
    fn begin(&mut self) {
        self.close();
        let (number, first) = (self.packs.len(), self.packs.last().map_or(0, |pack| pack.sequences.end));
        self.packs.push(Pack::empty(number, first, &self.rotary));
        self.path.clear();
    }

    fn close(&mut self) {
        if let Some(pack) = self.packs.last_mut() {
            pack.layout.spans = std::mem::take(&mut self.spans).into();
        }
    }

    fn finish(mut self) -> Vec<Pack> {
        self.close();
        self.packs
    }
}
