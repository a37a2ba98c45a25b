//! Sequences, and packs of them: the rows that an operation works on at once.

use std::ops::Range;
use std::sync::Arc;

use crate::Model;
use secateur_tensor::PACK_TOKENS;
use secateur_tensor::ops::{PackLayout, RotaryTables, SampleSpan, SequenceSpan, TokenTarget};

/// A prefix is shared if it is at least 1/8 of the sequence: attention must gather the shared
/// rows and the sequence's own rows, which does not pay for a short prefix.
const MIN_SHARED_PREFIX_DIVISOR: usize = 8;

/// A sequence of tokens, and which of its predictions count.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    pub ids: Vec<u32>,
    /// The predictions that count, in the order of their positions. A backward walk requires that
    /// no two have one position.
    pub targets: Vec<TokenTarget>,
}

impl Sequence {
    /// `counts[i]`: whether the prediction of `ids[i]` from the tokens before it counts. The first
    /// token is never predicted.
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
    /// Its number in the walk, from 0.
    pub index: usize,
    /// The number of packs in the walk.
    pub pack_count: usize,
    /// The numbers of its sequences in the walk.
    pub sequence_range: Range<usize>,
    pub ids: Vec<u32>,
    /// Their positions are rows of the pack.
    pub targets: Vec<TokenTarget>,
    pub layout: PackLayout,
    /// The number of targets of each sequence.
    targets_per_sequence: Vec<usize>,
}

impl Pack {
    /// A pack without sequences. `first_sequence` is the number in the walk that its first one will
    /// have.
    pub fn empty(index: usize, first_sequence: usize, rotary: &Arc<RotaryTables>) -> Self {
        Self {
            index,
            pack_count: 1,
            sequence_range: first_sequence..first_sequence,
            ids: Vec::new(),
            targets: Vec::new(),
            layout: PackLayout {
                spans: [].into(),
                rotary: rotary.clone(),
            },
            targets_per_sequence: Vec::new(),
        }
    }

    /// The positions of each of its sequences, with its gradient scale; `gradient_scales[i]` is
    /// that of sequence i of the walk.
    pub fn sample_spans(&self, gradient_scales: &[f32]) -> Arc<[SampleSpan]> {
        let pack_scales = &gradient_scales[self.sequence_range.clone()];
        self.layout
            .spans
            .iter()
            .zip(pack_scales)
            .map(|(span, &gradient_scale)| SampleSpan {
                positions: span.rows.clone(),
                gradient_scale,
            })
            .collect()
    }

    /// Splits one value for each target of the pack into the values of each sequence.
    pub fn split_by_sequence<X>(&self, target_values: Vec<X>) -> impl Iterator<Item = Vec<X>> {
        let mut values = target_values.into_iter();
        self.targets_per_sequence
            .iter()
            .map(move |&count| values.by_ref().take(count).collect())
    }
}

/// Packs of as many sequences as fit. Which sequences share a pack depends only on their lengths.
/// `one_sequence_each`: every pack holds one sequence.
pub(crate) fn build_packs(
    model: &Model,
    sequences: &[Sequence],
    one_sequence_each: bool,
) -> Vec<Pack> {
    // A pack takes its first sequence whatever its length, and no other one that exceeds this.
    let max_rows = if one_sequence_each { 1 } else { PACK_TOKENS };
    let mut builder = PackBuilder::new(model, sequences, max_rows);
    for sequence in sequences {
        builder.add(sequence, 0);
    }
    builder.finish()
}

/// Packs for a forward walk in which sequences with a common prefix share its rows. Also returns
/// the order in which the packs hold the sequences: sorted by tokens, so that those with a common
/// prefix are neighbours.
pub(crate) fn build_prefix_shared_packs(
    model: &Model,
    sequences: &[Sequence],
) -> (Vec<Pack>, Vec<usize>) {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by(|&a, &b| sequences[a].ids.cmp(&sequences[b].ids));
    let mut builder = PackBuilder::new(model, sequences, PACK_TOKENS);
    let mut previous_ids: &[u32] = &[];
    for &number in &order {
        let ids = &sequences[number].ids;
        let common_tokens = ids
            .iter()
            .zip(previous_ids)
            .take_while(|(a, b)| a == b)
            .count();
        builder.add(&sequences[number], common_tokens);
        previous_ids = ids;
    }
    (builder.finish(), order)
}

/// Builds packs sequence by sequence.
struct PackBuilder {
    packs: Vec<Pack>,
    rotary: Arc<RotaryTables>,
    /// The most rows of a pack. A sequence with more rows is a pack by itself.
    max_rows: usize,
    /// The rows of the last pack that hold the last sequence, from its first token on: ranges that
    /// it shares, then the range that only it has.
    last_sequence_rows: Vec<Range<usize>>,
    /// The spans of the last pack.
    spans: Vec<SequenceSpan>,
}

impl PackBuilder {
    fn new(model: &Model, sequences: &[Sequence], max_rows: usize) -> Self {
        let lengths = sequences.iter().map(|sequence| sequence.ids.len());
        Self {
            packs: Vec::new(),
            rotary: Arc::new(model.rotary_tables(lengths.max().unwrap_or(0))),
            max_rows,
            last_sequence_rows: Vec::new(),
            spans: Vec::new(),
        }
    }

    /// Adds a sequence whose first `common_tokens` tokens are those of the sequence before it.
    fn add(&mut self, sequence: &Sequence, common_tokens: usize) {
        let length = sequence.ids.len();
        // The number of tokens whose rows the sequence shares; 0 at the beginning of a pack.
        let mut shared = match common_tokens * MIN_SHARED_PREFIX_DIVISOR >= length {
            true => common_tokens,
            false => 0,
        };
        let fits = |pack: &Pack| pack.ids.len() + length - shared <= self.max_rows;
        if !self.packs.last().is_some_and(fits) {
            self.start_pack();
            shared = 0;
        }
        let Some(pack) = self.packs.last_mut() else {
            return;
        };
        let prefix = truncate_ranges(std::mem::take(&mut self.last_sequence_rows), shared);
        let rows = pack.ids.len()..pack.ids.len() + length - shared;
        pack.ids.extend(&sequence.ids[shared..]);
        self.last_sequence_rows.clone_from(&prefix);
        self.last_sequence_rows.push(rows.clone());
        // The pack's row of each position of the sequence.
        let position_rows: Vec<usize> = self.last_sequence_rows.iter().cloned().flatten().collect();
        let row_targets = sequence.targets.iter().map(|target| TokenTarget {
            position: position_rows[target.position],
            token_id: target.token_id,
        });
        pack.targets.extend(row_targets);
        pack.targets_per_sequence.push(sequence.targets.len());
        pack.sequence_range.end += 1;
        // A sequence whose rows are all shared needs no span. A sequence that shares no rows always
        // has one, even if it is empty: each sequence of a backward walk is a sample of its pack.
        if !rows.is_empty() || shared == 0 {
            self.spans.push(SequenceSpan {
                rows,
                prefix,
                cache_sequence: 0,
            });
        }
    }

    fn start_pack(&mut self) {
        self.finish_pack();
        let index = self.packs.len();
        let first_sequence = self.packs.last().map_or(0, |pack| pack.sequence_range.end);
        self.packs
            .push(Pack::empty(index, first_sequence, &self.rotary));
        self.last_sequence_rows.clear();
    }

    fn finish_pack(&mut self) {
        if let Some(pack) = self.packs.last_mut() {
            pack.layout.spans = std::mem::take(&mut self.spans).into();
        }
    }

    fn finish(mut self) -> Vec<Pack> {
        self.finish_pack();
        let pack_count = self.packs.len();
        for pack in &mut self.packs {
            pack.pack_count = pack_count;
        }
        self.packs
    }
}

/// The first `len` rows of a list of ranges.
fn truncate_ranges(mut ranges: Vec<Range<usize>>, len: usize) -> Vec<Range<usize>> {
    let mut remaining = len;
    ranges.retain_mut(|rows| {
        rows.end = rows.end.min(rows.start + remaining);
        remaining -= rows.len();
        rows.start < rows.end
    });
    ranges
}
