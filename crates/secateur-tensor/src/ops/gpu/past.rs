//! A KV cache on a GPU: room for all positions from the start, into which rows are added where zeros are, because dfdx
//! writes into no tensor.

use dfdx::prelude::*;

use super::attention::attend;
use super::rows::RowPlacement;
use super::spans::{AttentionBatch, QUERY_CHUNK_ROWS, RotaryAngles};
use crate::activations::gpu::{GpuMatrix, add_or_start, selected_device};
use crate::ops::{AttentionHeads, PackLayout};

/// Keys, rotated, and values of what was read before, sequence by sequence: a layer's part of a KV cache.
#[derive(Clone)]
pub struct GpuKvCache {
    sequences: Vec<CachedSequence>,
    /// Of each sequence at most.
    capacity: usize,
}

#[derive(Clone)]
struct CachedSequence {
    /// (positions, keys · dim), of which the first `len` rows were read.
    keys: GpuMatrix,
    values: GpuMatrix,
    len: usize,
}

impl GpuKvCache {
    /// Of so many sequences nothing was read; each has room for so many positions, with so many numbers of keys, and of values.
    pub fn new(sequences: usize, positions: usize, width: usize) -> Self {
        let nothing = || selected_device().zeros_like(&(positions, width));
        let one = || CachedSequence {
            keys: nothing(),
            values: nothing(),
            len: 0,
        };
        Self {
            sequences: (0..sequences).map(|_| one()).collect(),
            capacity: positions,
        }
    }
}

impl std::fmt::Debug for GpuKvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} sequences on a GPU", self.sequences.len())
    }
}

/// Attention of every sequence's rows to what was read of it and to themselves.
pub fn attend_with_cache(
    (q, k, v): (GpuMatrix, GpuMatrix, GpuMatrix),
    heads: AttentionHeads,
    layout: &PackLayout,
    past: &mut GpuKvCache,
) -> GpuMatrix {
    let total = q.shape().0;
    let mut outputs: Option<GpuMatrix> = None;
    for span in layout.spans.iter() {
        let positions = past.capacity;
        let remembered = &mut past.sequences[span.cache_sequence];
        let (start, rows) = (remembered.len, span.rows.len());
        let own = |x: &GpuMatrix| -> GpuMatrix { x.clone().slice((span.rows.clone(), ..)) };
        let turn = RotaryAngles::new(&layout.rotary, heads.head_dim, start..start + rows);
        let place = RowPlacement::for_range(positions, start..start + rows);
        remembered.keys = remembered.keys.clone() + place.place_rows(turn.apply_rotary(own(&k)));
        remembered.values = remembered.values.clone() + place.place_rows(own(&v));
        remembered.len += rows;

        let q = turn.apply_rotary(own(&q));
        for first in (0..rows).step_by(QUERY_CHUNK_ROWS) {
            let now = first..(first + QUERY_CHUNK_ROWS).min(rows);
            let part = AttentionBatch::single_sequence(start + first, now.len());
            let read =
                |all: &GpuMatrix| -> GpuMatrix { all.clone().slice((0..start + now.end, ..)) };
            let q = part.to_query_heads(&q.clone().slice((now.clone(), ..)), heads);
            let (k, v) = (
                part.to_key_heads(&read(&remembered.keys), heads),
                part.to_key_heads(&read(&remembered.values), heads),
            );
            let o = part.restore_query_rows(attend(&part, (q, &k, v), heads), heads);
            let back = RowPlacement::for_range(
                total,
                span.rows.start + now.start..span.rows.start + now.end,
            )
            .place_rows(o);
            outputs = Some(add_or_start(outputs, back));
        }
    }
    outputs.unwrap_or(q)
}
