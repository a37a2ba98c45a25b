//! A layer's part of a KV cache on the CPU.

use crate::ops::layout::PackLayout;

/// Rotated keys, and values, of the positions read so far, sequence by sequence.
#[derive(Clone, Debug)]
pub struct CpuKvCache {
    sequences: Vec<CachedSequence>,
    /// Elements of the keys, and of the values, of one position: key_value_heads · head_dim.
    row_width: usize,
}

/// Keys and values of one sequence, (positions, row_width) each.
#[derive(Clone, Debug, Default)]
pub(super) struct CachedSequence {
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
}

impl CpuKvCache {
    /// An empty cache. Keys and values have `row_width` elements per position each.
    pub(crate) fn new(sequences: usize, row_width: usize) -> Self {
        Self {
            sequences: vec![CachedSequence::default(); sequences],
            row_width,
        }
    }

    /// Positions of a sequence that the cache holds.
    pub(super) fn len(&self, sequence: usize) -> usize {
        self.sequences[sequence].keys.len() / self.row_width
    }

    pub(super) fn sequence(&self, sequence: usize) -> &CachedSequence {
        &self.sequences[sequence]
    }

    /// Appends the rows of every span to its sequence. `keys` (rotated) and `values` are those of
    /// the pack, (rows, row_width).
    pub(super) fn append(&mut self, layout: &PackLayout, keys: &[f32], values: &[f32]) {
        for span in layout.spans.iter() {
            let elements = span.rows.start * self.row_width..span.rows.end * self.row_width;
            let sequence = &mut self.sequences[span.cache_sequence];
            sequence.keys.extend(&keys[elements.clone()]);
            sequence.values.extend(&values[elements]);
        }
    }
}
