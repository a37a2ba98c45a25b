//! What attention needs to know besides its tensors: the heads, the sequences of the pack, and the
//! angles of rotary positions.

use std::ops::Range;
use std::sync::Arc;

/// The heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionHeads {
    pub query_heads: usize,
    /// Divides `query_heads`. Query head h reads key/value head h div (query_heads /
    /// key_value_heads).
    pub key_value_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

/// Where the sequences of a pack are: one after another, without gaps.
#[derive(Clone, Debug, PartialEq)]
pub struct PackLayout {
    pub spans: Arc<[SequenceSpan]>,
    pub rotary: Arc<RotaryTables>,
}

/// A sequence of a pack, or the rest of a sequence whose prefix it shares with another one of the
/// pack.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceSpan {
    /// Its own rows in the pack.
    pub rows: Range<usize>,
    /// The rows of the pack that come before them in the sequence, in order. Empty: the span begins
    /// the sequence.
    pub prefix: Vec<Range<usize>>,
    /// Its sequence in a [`super::KvCache`], if there is one.
    pub cache_sequence: usize,
}

impl SequenceSpan {
    /// A sequence that shares no prefix.
    pub fn from_rows(rows: Range<usize>) -> Self {
        Self {
            rows,
            ..Self::default()
        }
    }

    /// The position of its first own row in its sequence, of which a cache holds `cached`
    /// positions.
    pub(crate) fn first_position(&self, cached: usize) -> usize {
        let shared: usize = self.prefix.iter().map(ExactSizeIterator::len).sum();
        cached + shared
    }
}

/// Rotary position embedding (Su et al. 2021) in halves: channel i of every head is paired with
/// channel i + `half_dim`, for i < `half_dim`. Where a head has more than 2 · `half_dim` channels
/// (partial rotary, as in GPT-NeoX), the others pass unchanged.
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryTables {
    /// cos(position · frequency), (positions, half_dim).
    pub cos: Vec<f32>,
    /// sin of the same angles.
    pub sin: Vec<f32>,
    /// Pairs of channels that are rotated in each head: at most head_dim / 2.
    pub half_dim: usize,
}

impl RotaryTables {
    /// The tables of the first `positions` positions. `frequencies` has one entry for each pair of
    /// channels.
    pub fn new(frequencies: &[f32], positions: usize) -> Self {
        // The angle is rounded to f32, as in the reference implementations, and its cos and sin are
        // exact.
        let angles = || {
            (0..positions).flat_map(|position| {
                let angle = move |frequency: &f32| f64::from(position as f32 * frequency);
                frequencies.iter().map(angle)
            })
        };
        Self {
            cos: angles().map(|angle| angle.cos() as f32).collect(),
            sin: angles().map(|angle| angle.sin() as f32).collect(),
            half_dim: frequencies.len(),
        }
    }

    /// cos and sin of one position, (half_dim) each.
    pub(crate) fn cos_sin(&self, position: usize) -> (&[f32], &[f32]) {
        let row = position * self.half_dim..(position + 1) * self.half_dim;
        (&self.cos[row.clone()], &self.sin[row])
    }
}

/// The direction in which pairs of channels are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rotation {
    /// By the angle of the position, for queries and keys.
    Forward,
    /// By the negative angle, which is the transpose: for gradients in the backward step.
    Inverse,
}
