//! How the sequences of a pack are batched for attention on a GPU. Sequences of about the same
//! length become one batch, padded to the longest, so that a few large products compute all scores.
//! A plan is made once for a layout and used by all blocks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use dfdx::prelude::*;

use super::product::{broadcast_per_row, constant};
use super::rotary::RotaryAngles;
use super::rows::{RowIndex, RowPlacement, row_index};
use crate::gpu::{Gpu, GpuMatrix, matrix_from_vec, selected_device};
use crate::ops::layout::{AttentionHeads, PackLayout, RotaryTables, SequenceSpan};

/// Queries of a sequence whose scores are computed together. Longer sequences are cut, so that
/// scores take QUERY_CHUNK_ROWS · length elements and not length².
pub const QUERY_CHUNK_ROWS: usize = 512;

/// Heads of a batch: (sequences · key heads, rows, head_dim).
pub(super) type HeadBatch = Tensor<(usize, usize, usize), f32, Gpu>;

/// (sequences, heads, rows, head_dim), or a permutation of it.
type SplitHeads = Tensor<(usize, usize, usize, usize), f32, Gpu>;

/// What attention computes from a layout before it reads any tensor.
pub(super) struct AttentionPlan {
    pub(super) rotation: RotaryAngles,
    pub(super) batches: Vec<AttentionBatch>,
}

/// Chunks of queries of about the same length, with about the same number of keys.
pub(super) struct AttentionBatch {
    sequences: usize,
    /// Queries to which each sequence is padded.
    queries: usize,
    /// Keys to which each sequence is padded.
    keys: usize,
    /// The pack's rows of the batch. None: all rows of the pack, in order.
    row_maps: Option<RowMaps>,
    /// Added to the scores: 0 where the query may read the key, f32::MIN elsewhere, which becomes a
    /// probability of 0; (sequences, queries, keys).
    mask: HeadBatch,
}

struct RowMaps {
    /// The pack's row of every query, and of every key. Padding repeats a sequence's last row.
    query_rows: RowIndex,
    key_rows: RowIndex,
    /// 1 for a query, 0 for padding; (sequences · queries, 1).
    query_mask: GpuMatrix,
    /// Puts rows of queries back into the pack.
    query_placement: RowPlacement,
    /// Puts rows of keys back into the pack. None if sequences share a prefix: then a row of the
    /// pack has several places in the batch, and there is no backward step.
    key_placement: Option<RowPlacement>,
}

/// A plan in the cache. It is found by the addresses of what it was made of; as the `Weak` handles
/// keep these from being reused, an entry never matches another layout.
struct CachedPlan {
    spans: Weak<[SequenceSpan]>,
    rotary: Weak<RotaryTables>,
    head_dim: usize,
    plan: Rc<AttentionPlan>,
}

impl CachedPlan {
    fn is_alive(&self) -> bool {
        self.spans.strong_count() > 0 && self.rotary.strong_count() > 0
    }

    fn matches(&self, layout: &PackLayout, head_dim: usize) -> bool {
        self.head_dim == head_dim
            && std::ptr::addr_eq(self.spans.as_ptr(), Arc::as_ptr(&layout.spans))
            && std::ptr::eq(self.rotary.as_ptr(), Arc::as_ptr(&layout.rotary))
    }
}

impl AttentionPlan {
    /// The plan of a layout, from the cache of the current thread or built now.
    pub(super) fn for_layout(layout: &PackLayout, head_dim: usize) -> Rc<Self> {
        thread_local! {
            static PLANS: RefCell<Vec<CachedPlan>> = const { RefCell::new(Vec::new()) };
        }
        PLANS.with_borrow_mut(|plans| {
            plans.retain(CachedPlan::is_alive);
            let mut cached_plans = plans.iter();
            if let Some(cached) = cached_plans.find(|cached| cached.matches(layout, head_dim)) {
                return cached.plan.clone();
            }
            let plan = Rc::new(Self::build(layout, head_dim));
            plans.push(CachedPlan {
                spans: Arc::downgrade(&layout.spans),
                rotary: Arc::downgrade(&layout.rotary),
                head_dim,
                plan: plan.clone(),
            });
            plan
        })
    }

    fn build(layout: &PackLayout, head_dim: usize) -> Self {
        let row_ends = layout.spans.iter().map(|span| span.rows.end);
        let pack_rows = row_ends.max().unwrap_or(0);
        let mut positions = vec![0; pack_rows];
        for span in layout.spans.iter() {
            let first_position = span.first_position(0);
            for (offset, row) in span.rows.clone().enumerate() {
                positions[row] = first_position + offset;
            }
        }
        // Chunks are batched if they have the same index in their spans and the same number of
        // queries and of keys, both rounded up to a power of two. Two chunks of one span share
        // keys, so the index keeps them in different batches: without shared prefixes no batch has
        // a key of the pack twice, and the keys' gradients can be put back by gathering.
        let mut groups: BTreeMap<(usize, usize, usize), Vec<QueryChunk>> = BTreeMap::new();
        for span in layout.spans.iter() {
            for (chunk_index, chunk) in QueryChunk::of_span(span).enumerate() {
                let group = (
                    chunk_index,
                    chunk.rows.len().next_power_of_two(),
                    chunk.key_count().next_power_of_two(),
                );
                groups.entry(group).or_default().push(chunk);
            }
        }
        let batches = groups
            .into_values()
            .map(|chunks| AttentionBatch::from_chunks(&chunks, pack_rows))
            .collect();
        Self {
            rotation: RotaryAngles::new(&layout.rotary, head_dim, positions.into_iter()),
            batches,
        }
    }
}

/// Some queries of a sequence, and the rows of the pack before them in it.
struct QueryChunk {
    rows: Range<usize>,
    prefix_rows: Vec<usize>,
    /// Whether some of the prefix belongs to another span.
    has_shared_prefix: bool,
}

impl QueryChunk {
    /// The chunks of a span, in order.
    fn of_span(span: &SequenceSpan) -> impl Iterator<Item = Self> + '_ {
        let firsts = span.rows.clone().step_by(QUERY_CHUNK_ROWS);
        firsts.map(|first| Self {
            rows: first..(first + QUERY_CHUNK_ROWS).min(span.rows.end),
            prefix_rows: span
                .prefix
                .iter()
                .cloned()
                .chain(std::iter::once(span.rows.start..first))
                .flatten()
                .collect(),
            has_shared_prefix: !span.prefix.is_empty(),
        })
    }

    /// Keys that its last query reads.
    fn key_count(&self) -> usize {
        self.prefix_rows.len() + self.rows.len()
    }
}

impl AttentionBatch {
    /// The batch of some chunks of a pack with `pack_rows` rows.
    fn from_chunks(chunks: &[QueryChunk], pack_rows: usize) -> Self {
        let query_counts = chunks.iter().map(|chunk| chunk.rows.len());
        let queries = query_counts.max().unwrap_or(0);
        let keys = chunks.iter().map(QueryChunk::key_count).max().unwrap_or(0);
        let (mut query_rows, mut key_rows, mut query_mask) = (Vec::new(), Vec::new(), Vec::new());
        // The row of the batch in which each row of the pack is. None: in another batch.
        let mut query_places = vec![None; pack_rows];
        let mut key_places = vec![None; pack_rows];
        for (sequence, chunk) in chunks.iter().enumerate() {
            let len = chunk.rows.len();
            query_rows.extend((0..queries).map(|i| chunk.rows.start + i.min(len - 1)));
            query_mask.extend((0..queries).map(|i| if i < len { 1.0 } else { 0.0 }));
            let prefix_rows = chunk.prefix_rows.iter().copied();
            let chunk_keys: Vec<usize> = prefix_rows.chain(chunk.rows.clone()).collect();
            key_rows.extend((0..keys).map(|j| chunk_keys[j.min(chunk_keys.len() - 1)]));
            for (i, row) in chunk.rows.clone().enumerate() {
                query_places[row] = Some(sequence * queries + i);
            }
            for (j, &row) in chunk_keys.iter().enumerate() {
                key_places[row] = Some(sequence * keys + j);
            }
        }
        let is_identity = |rows: &[usize]| {
            rows.len() == pack_rows && rows.iter().enumerate().all(|(i, &row)| i == row)
        };
        let is_whole_pack = is_identity(&query_rows) && is_identity(&key_rows);
        let shares_prefix = chunks.iter().any(|chunk| chunk.has_shared_prefix);
        let lengths = chunks
            .iter()
            .map(|chunk| (chunk.prefix_rows.len(), chunk.rows.len()));
        Self {
            sequences: chunks.len(),
            queries,
            keys,
            mask: causal_mask(queries, keys, lengths),
            row_maps: (!is_whole_pack).then(|| RowMaps {
                query_rows: row_index(query_rows),
                key_rows: row_index(key_rows),
                query_mask: matrix_from_vec(query_mask, chunks.len() * queries, 1),
                query_placement: RowPlacement::new(&query_places),
                key_placement: (!shares_prefix).then(|| RowPlacement::new(&key_places)),
            }),
        }
    }

    /// One sequence alone: `queries` queries after `prefix` keys.
    pub(super) fn single_sequence(prefix: usize, queries: usize) -> Self {
        let keys = prefix + queries;
        Self {
            sequences: 1,
            queries,
            keys,
            row_maps: None,
            mask: causal_mask(queries, keys, [(prefix, queries)].into_iter()),
        }
    }

    /// Query heads of a pack: (sequences · key heads, group · queries, head_dim). The query heads
    /// that read one key head follow each other, so one product per key head computes all their
    /// scores.
    pub(super) fn to_query_heads(&self, q: &GpuMatrix, heads: AttentionHeads) -> HeadBatch {
        let rows = match &self.row_maps {
            None => q.clone(),
            Some(maps) => q.clone().gather(maps.query_rows.clone()),
        };
        self.group_heads(rows, heads)
    }

    /// Gradients of the outputs as query heads. Padding has gradients of 0, so that it adds nothing
    /// to dK and dV.
    pub(super) fn to_gradient_heads(&self, delta: &GpuMatrix, heads: AttentionHeads) -> HeadBatch {
        let rows = match &self.row_maps {
            None => delta.clone(),
            Some(maps) => {
                let gathered: GpuMatrix = delta.clone().gather(maps.query_rows.clone());
                let shape = *gathered.shape();
                gathered * broadcast_per_row(maps.query_mask.clone(), shape)
            }
        };
        self.group_heads(rows, heads)
    }

    fn group_heads(&self, x: GpuMatrix, heads: AttentionHeads) -> HeadBatch {
        let group = heads.query_heads / heads.key_value_heads;
        split_heads(x, self.query_shape(heads)).reshape_like(&(
            self.sequences * heads.key_value_heads,
            group * self.queries,
            heads.head_dim,
        ))
    }

    /// Key heads or value heads of a pack: (sequences · key heads, keys, head_dim).
    pub(super) fn to_key_heads(&self, k: &GpuMatrix, heads: AttentionHeads) -> HeadBatch {
        let rows = match &self.row_maps {
            None => k.clone(),
            Some(maps) => k.clone().gather(maps.key_rows.clone()),
        };
        split_heads(rows, self.key_shape(heads)).reshape_like(&(
            self.sequences * heads.key_value_heads,
            self.keys,
            heads.head_dim,
        ))
    }

    /// The pack's rows of query heads: (rows, query_heads · head_dim). Rows of other batches are
    /// zero.
    pub(super) fn restore_query_rows(&self, x: HeadBatch, heads: AttentionHeads) -> GpuMatrix {
        let rows = merge_heads(x, self.query_shape(heads));
        match &self.row_maps {
            None => rows,
            Some(maps) => maps.query_placement.place_rows(rows),
        }
    }

    /// The pack's rows of key heads: (rows, key_value_heads · head_dim). Rows of other batches are
    /// zero.
    pub(super) fn restore_key_rows(&self, x: HeadBatch, heads: AttentionHeads) -> GpuMatrix {
        let rows = merge_heads(x, self.key_shape(heads));
        match &self.row_maps {
            None => rows,
            Some(RowMaps {
                key_placement: Some(placement),
                ..
            }) => placement.place_rows(rows),
            Some(_) => unreachable!("there is no backward step through a shared prefix"),
        }
    }

    /// Adds the mask to scores. The result is (sequences · query_heads · queries, keys).
    pub(super) fn apply_causal_mask(&self, scores: HeadBatch, heads: AttentionHeads) -> GpuMatrix {
        let shape = (self.sequences, heads.query_heads, self.queries, self.keys);
        let masked =
            scores.reshape_like(&shape) + self.mask.clone().broadcast_like::<_, Axis<1>>(&shape);
        masked.reshape_like(&(self.sequences * heads.query_heads * self.queries, self.keys))
    }

    /// (sequences, rows, heads, head_dim) of queries.
    fn query_shape(&self, heads: AttentionHeads) -> (usize, usize, usize, usize) {
        let (query_heads, head_dim) = (heads.query_heads, heads.head_dim);
        (self.sequences, self.queries, query_heads, head_dim)
    }

    /// (sequences, rows, heads, head_dim) of keys and values.
    fn key_shape(&self, heads: AttentionHeads) -> (usize, usize, usize, usize) {
        let (key_heads, head_dim) = (heads.key_value_heads, heads.head_dim);
        (self.sequences, self.keys, key_heads, head_dim)
    }
}

/// The causal mask, (sequences, queries, keys), of sequences given as (prefix keys, queries): query
/// i reads the keys 0..=prefix + i. A padding query reads the first key alone, so that its softmax
/// is defined.
fn causal_mask(
    queries: usize,
    keys: usize,
    sequences: impl Iterator<Item = (usize, usize)>,
) -> HeadBatch {
    let mut values = Vec::new();
    for (prefix, query_count) in sequences {
        for i in 0..queries {
            let visible = if i < query_count { prefix + i + 1 } else { 1 };
            values.extend((0..keys).map(|j| if j < visible { 0.0 } else { f32::MIN }));
        }
    }
    let sequences = values.len() / (queries * keys).max(1);
    selected_device().tensor_from_vec(values, (sequences, queries, keys))
}

/// (sequences · rows, heads · head_dim) → (sequences, heads, rows, head_dim), contiguous.
fn split_heads(
    x: GpuMatrix,
    (sequences, rows, heads, head_dim): (usize, usize, usize, usize),
) -> SplitHeads {
    let by_head = x.reshape_like(&(sequences, rows, heads, head_dim));
    make_contiguous(by_head.permute::<(usize, usize, usize, usize), Axes4<0, 2, 1, 3>>())
}

/// (sequences · heads, rows, head_dim) → (sequences · rows, heads · head_dim), contiguous.
fn merge_heads(
    x: HeadBatch,
    (sequences, rows, heads, head_dim): (usize, usize, usize, usize),
) -> GpuMatrix {
    let by_head = x.reshape_like(&(sequences, heads, rows, head_dim));
    make_contiguous(by_head.permute::<(usize, usize, usize, usize), Axes4<0, 2, 1, 3>>())
        .reshape_like(&(sequences * rows, heads * head_dim))
}

/// The same values, contiguous in the order of the axes: a product with 1 writes a new tensor in
/// that order. dfdx's own reshaping would compile a kernel at run time.
fn make_contiguous(x: SplitHeads) -> SplitHeads {
    let shape = *x.shape();
    let one: Tensor<Rank0, f32, Gpu> = constant(1, 1, 1.0).reshape_like(&());
    x * one.broadcast_like::<_, Axes4<0, 1, 2, 3>>(&shape)
}
