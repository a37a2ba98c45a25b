//! Sequences, and packs of them: what an operation works on at once.

use std::ops::Range;
use std::sync::Arc;

use crate::Model;
use secateur_tensor::PACK_TOKENS;
use secateur_tensor::ops::{PackLayout, RotaryTables, SampleSpan, SequenceSpan, TokenTarget};

/// A beginning is shared from this part of a sequence on, an eighth: what is shared must be brought together with the rest.
const MIN_SHARED_PREFIX_DIVISOR: usize = 8;

/// A sequence and which of its predictions count.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    pub ids: Vec<u32>,
    /// The logits at `position` are asked for `id`, in the order of their positions. A walk backward wants no two at one.
    pub targets: Vec<TokenTarget>,
}

impl Sequence {
    /// `counts[i]`: whether the prediction of `ids[i]` from what stands before it counts; the first is never predicted.
    pub fn new(ids: Vec<u32>, counts: &[bool]) -> Self {
        let targets = (1..ids.len())
            .filter(|&i| counts[i])
            .map(|i| TokenTarget {
                position: i - 1,
                token_id: ids[i],
            })
            .collect();
        Self { ids, targets }
    }
}

/// Sequences one after another, as one batch of rows.
#[derive(Clone, Debug)]
pub struct Pack {
    /// Its number, from 0.
    pub index: usize,
    /// Which sequences these are, counted over all packs.
    pub sequence_range: Range<usize>,
    pub ids: Vec<u32>,
    /// Positions count from the beginning of the pack.
    pub targets: Vec<TokenTarget>,
    pub layout: PackLayout,
    /// Of each sequence.
    targets_per_sequence: Vec<usize>,
}

impl Pack {
    /// Of no sequence yet.
    pub fn empty(number: usize, first: usize, rotary: &Arc<RotaryTables>) -> Self {
        let layout = PackLayout {
            spans: [].into(),
            rotary: rotary.clone(),
        };
        let (ids, targets, targets_each) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            index: number,
            sequence_range: first..first,
            ids,
            targets,
            layout,
            targets_per_sequence: targets_each,
        }
    }

    /// Its samples, where sample i of all has `shares[i]`.
    pub fn sample_spans(&self, shares: &[f32]) -> Arc<[SampleSpan]> {
        let own = self
            .layout
            .spans
            .iter()
            .zip(&shares[self.sequence_range.clone()]);
        own.map(|(span, &share)| SampleSpan {
            positions: span.rows.clone(),
            gradient_scale: share,
        })
        .collect()
    }

    /// What belongs to each target, sequence by sequence.
    pub fn split_by_sequence<X>(&self, of_targets: Vec<X>) -> impl Iterator<Item = Vec<X>> {
        let mut left = of_targets.into_iter();
        self.targets_per_sequence
            .iter()
            .map(move |&n| left.by_ref().take(n).collect())
    }
}

/// Packs of as many sequences as fit; how they are cut depends on their lengths alone. `alone`: one sequence each.
pub fn build_packs(model: &Model, sequences: &[Sequence], alone: bool) -> Vec<Pack> {
    let mut packing = PackBuilder::new(model, sequences, if alone { 1 } else { PACK_TOKENS });
    for sequence in sequences {
        packing.add(sequence, 0);
    }
    packing.finish()
}

/// Packs for a walk forward in which sequences that begin alike share their beginning: its rows stand in the pack once. Beside
/// them, the order in which they took the sequences: those that begin alike stand together.
pub fn build_prefix_shared_packs(model: &Model, sequences: &[Sequence]) -> (Vec<Pack>, Vec<usize>) {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by(|&a, &b| sequences[a].ids.cmp(&sequences[b].ids));
    let mut packing = PackBuilder::new(model, sequences, PACK_TOKENS);
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
struct PackBuilder {
    packs: Vec<Pack>,
    rotary: Arc<RotaryTables>,
    /// Rows of a pack, unless one sequence has more.
    max_rows: usize,
    /// Where the last sequence lies in the last pack.
    last_sequence_rows: Vec<Range<usize>>,
    spans: Vec<SequenceSpan>,
}

impl PackBuilder {
    fn new(model: &Model, sequences: &[Sequence], room: usize) -> Self {
        let rotary =
            Arc::new(model.rotary_tables(sequences.iter().map(|s| s.ids.len()).max().unwrap_or(0)));
        Self {
            packs: Vec::new(),
            rotary,
            max_rows: room,
            last_sequence_rows: Vec::new(),
            spans: Vec::new(),
        }
    }

    /// Adds a sequence, the first `alike` tokens of which are those of the one before it.
    fn add(&mut self, sequence: &Sequence, alike: usize) {
        let mut alike = if alike * MIN_SHARED_PREFIX_DIVISOR >= sequence.ids.len() {
            alike
        } else {
            0
        };
        let fits = |pack: &Pack| pack.ids.len() + sequence.ids.len() - alike <= self.max_rows;
        if !self.packs.last().is_some_and(fits) {
            self.start_pack();
            alike = 0;
        }
        let Some(pack) = self.packs.last_mut() else {
            return;
        };
        let mut before = std::mem::take(&mut self.last_sequence_rows);
        let mut left = alike;
        before.retain_mut(|rows| {
            rows.end = rows.end.min(rows.start + left);
            left -= rows.len();
            rows.start < rows.end
        });
        let rows = pack.ids.len()..pack.ids.len() + sequence.ids.len() - alike;
        pack.ids.extend(&sequence.ids[alike..]);
        self.last_sequence_rows.clone_from(&before);
        self.last_sequence_rows.push(rows.clone());
        let places = self
            .last_sequence_rows
            .iter()
            .cloned()
            .flatten()
            .collect::<Vec<usize>>();
        pack.targets
            .extend(sequence.targets.iter().map(|t| TokenTarget {
                position: places[t.position],
                token_id: t.token_id,
            }));
        pack.targets_per_sequence.push(sequence.targets.len());
        pack.sequence_range.end += 1;
        // a sequence that is the beginning of another has no rows of its own, but is a sample of a pack that shares nothing
        if !rows.is_empty() || alike == 0 {
            self.spans.push(SequenceSpan {
                rows,
                prefix: before,
                cache_sequence: 0,
            });
        }
    }

    /// Begins a new pack.
    fn start_pack(&mut self) {
        self.finish_pack();
        let (number, first) = (
            self.packs.len(),
            self.packs.last().map_or(0, |pack| pack.sequence_range.end),
        );
        self.packs.push(Pack::empty(number, first, &self.rotary));
        self.last_sequence_rows.clear();
    }

    fn finish_pack(&mut self) {
        if let Some(pack) = self.packs.last_mut() {
            pack.layout.spans = std::mem::take(&mut self.spans).into();
        }
    }

    fn finish(mut self) -> Vec<Pack> {
        self.finish_pack();
        self.packs
    }
}
