//! A layer's part of a KV cache on a GPU. It has room for all positions from the start: dfdx cannot
//! write into a tensor, so new rows are added where the cache has zeros.

use dfdx::prelude::*;

use super::attention_plan::{AttentionBatch, QUERY_CHUNK_ROWS};
use super::head_attention::attend;
use super::rotary::RotaryAngles;
use super::rows::RowPlacement;
use crate::gpu::{GpuMatrix, add_or_start, selected_device};
use crate::ops::layout::{AttentionHeads, PackLayout, Rotation, SequenceSpan};

/// Rotated keys, and values, of the positions read so far, sequence by sequence.
#[derive(Clone)]
pub struct GpuKvCache {
    sequences: Vec<CachedSequence>,
    /// Positions for which each sequence has room.
    capacity: usize,
}

#[derive(Clone)]
struct CachedSequence {
    /// (capacity, key_value_heads · head_dim): the first `len` rows are in use, the others are
    /// zero.
    keys: GpuMatrix,
    /// As `keys`.
    values: GpuMatrix,
    len: usize,
}

impl GpuKvCache {
    /// An empty cache with room for `positions` positions of each sequence. Keys and values have
    /// `width` elements per position each.
    pub(crate) fn new(sequences: usize, positions: usize, width: usize) -> Self {
        let zeros = || selected_device().zeros_like(&(positions, width));
        let empty = || CachedSequence {
            keys: zeros(),
            values: zeros(),
            len: 0,
        };
        Self {
            sequences: (0..sequences).map(|_| empty()).collect(),
            capacity: positions,
        }
    }

    /// Appends rotated keys, and values, to a sequence.
    fn append(&mut self, sequence: usize, keys: GpuMatrix, values: GpuMatrix) {
        let (rows, _) = *keys.shape();
        let cached = &mut self.sequences[sequence];
        let placement = RowPlacement::for_range(self.capacity, cached.len..cached.len + rows);
        cached.keys = cached.keys.clone() + placement.place_rows(keys);
        cached.values = cached.values.clone() + placement.place_rows(values);
        cached.len += rows;
    }
}

impl std::fmt::Debug for GpuKvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} sequences on a GPU", self.sequences.len())
    }
}

/// Appends the rows of every span to its sequence in the cache. Returns the attention of the rows
/// to all cached positions up to their own.
pub(super) fn attend_with_cache(
    q: GpuMatrix,
    k: &GpuMatrix,
    v: &GpuMatrix,
    heads: AttentionHeads,
    layout: &PackLayout,
    cache: &mut GpuKvCache,
) -> GpuMatrix {
    let (pack_rows, _) = *q.shape();
    let mut outputs: Option<GpuMatrix> = None;
    for span in layout.spans.iter() {
        let span_rows = |x: &GpuMatrix| -> GpuMatrix { x.clone().slice((span.rows.clone(), ..)) };
        let start = cache.sequences[span.cache_sequence].len;
        let positions = start..start + span.rows.len();
        let rotation = RotaryAngles::new(&layout.rotary, heads.head_dim, positions);
        let keys = rotation.rotate(span_rows(k), Rotation::Forward);
        cache.append(span.cache_sequence, keys, span_rows(v));
        let queries = rotation.rotate(span_rows(&q), Rotation::Forward);
        let sequence = &cache.sequences[span.cache_sequence];
        for part in attend_span(&queries, sequence, span, start, heads, pack_rows) {
            outputs = Some(add_or_start(outputs, part));
        }
    }
    outputs.unwrap_or(q)
}

/// The outputs of a span's queries, some rows at a time, each placed into the pack's rows. `start`
/// is the position of the first query.
fn attend_span<'a>(
    queries: &'a GpuMatrix,
    sequence: &'a CachedSequence,
    span: &'a SequenceSpan,
    start: usize,
    heads: AttentionHeads,
    pack_rows: usize,
) -> impl Iterator<Item = GpuMatrix> + 'a {
    let rows = span.rows.len();
    (0..rows).step_by(QUERY_CHUNK_ROWS).map(move |first| {
        let chunk = first..(first + QUERY_CHUNK_ROWS).min(rows);
        let key_count = start + chunk.end;
        let batch = AttentionBatch::single_sequence(start + first, chunk.len());
        let visible_rows =
            |cached: &GpuMatrix| -> GpuMatrix { cached.clone().slice((0..key_count, ..)) };
        let chunk_queries: GpuMatrix = queries.clone().slice((chunk.clone(), ..));
        let q = batch.to_query_heads(&chunk_queries, heads);
        let k = batch.to_key_heads(&visible_rows(&sequence.keys), heads);
        let v = batch.to_key_heads(&visible_rows(&sequence.values), heads);
        let o = batch.restore_query_rows(attend(&batch, q, &k, v, heads), heads);
        let pack_range = span.rows.start + chunk.start..span.rows.start + chunk.end;
        RowPlacement::for_range(pack_rows, pack_range).place_rows(o)
    })
}
