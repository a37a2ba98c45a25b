//! How the sequences of a pack are brought together for attention on a GPU: those of about the same length become one batch,
//! padded to the longest. A plan is made once for a layout and serves all blocks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use dfdx::prelude::*;

use super::product::{broadcast_per_row, constant};
use super::rows::{RowIndex, RowPlacement, row_index};
use crate::activations::gpu::{Gpu, GpuMatrix, matrix_from_vec, selected_device};
use crate::ops::{AttentionHeads, PackLayout, RotaryTables, SequenceSpan};

/// Rows of a sequence that meet their keys at once.
pub const QUERY_CHUNK_ROWS: usize = 512;

/// Heads of a batch: (sequences · key heads, rows, dim).
pub type HeadBatch = Tensor<(usize, usize, usize), f32, Gpu>;

/// What attention needs to know of a layout.
pub struct AttentionPlan {
    pub rotation: RotaryAngles,
    pub batches: Vec<AttentionBatch>,
}

/// Sequences of about the same length.
pub struct AttentionBatch {
    /// Sequences, and the rows that each is padded to: queries, keys.
    sequences: usize,
    queries: usize,
    keys: usize,
    /// The pack's rows that they are; None: these are all, in order.
    row_maps: Option<RowMaps>,
    /// Added to the scores: 0 where a query may look, else what no score survives; (sequences, queries, keys).
    mask: HeadBatch,
}

struct RowMaps {
    query_rows: RowIndex,
    key_rows: RowIndex,
    /// 1 for a query that is one, 0 for one that pads; (sequences · queries, 1).
    query_mask: GpuMatrix,
    /// Where the queries' rows come back from.
    query_placement: RowPlacement,
    /// Where the keys' do; only without shared beginnings.
    key_placement: Option<RowPlacement>,
}

/// The angles of rows: cos and sin, (rows, dim).
pub struct RotaryAngles {
    cos: GpuMatrix,
    /// Forward and back.
    sin: [GpuMatrix; 2],
    /// Turns (low, high) into (−high, low): (dim, dim).
    quarter_turn: GpuMatrix,
}

impl AttentionPlan {
    /// The plan of a layout, as it was made before if it was.
    pub fn for_layout(layout: &PackLayout, dim: usize) -> Rc<Self> {
        /// A plan, and what it was made of.
        struct CachedPlan {
            spans: Weak<[SequenceSpan]>,
            rotary: Weak<RotaryTables>,
            dim: usize,
            plan: Rc<AttentionPlan>,
        }
        thread_local! {
            static PLANS: RefCell<Vec<CachedPlan>> = const { RefCell::new(Vec::new()) };
        }
        PLANS.with_borrow_mut(|plans| {
            plans.retain(|known| known.spans.strong_count() > 0 && known.rotary.strong_count() > 0);
            let of_layout = |known: &&CachedPlan| {
                known.dim == dim
                    && std::ptr::addr_eq(known.spans.as_ptr(), Arc::as_ptr(&layout.spans))
                    && std::ptr::eq(known.rotary.as_ptr(), Arc::as_ptr(&layout.rotary))
            };
            if let Some(known) = plans.iter().find(of_layout) {
                return known.plan.clone();
            }
            let plan = Rc::new(Self::build(layout, dim));
            plans.push(CachedPlan {
                spans: Arc::downgrade(&layout.spans),
                rotary: Arc::downgrade(&layout.rotary),
                dim,
                plan: plan.clone(),
            });
            plan
        })
    }

    fn build(layout: &PackLayout, dim: usize) -> Self {
        let rows = layout
            .spans
            .iter()
            .map(|span| span.rows.end)
            .max()
            .unwrap_or(0);
        let mut positions = vec![0; rows];
        // The rows of a sequence are taken some at a time, so that scores never take more than a share of its square; those of one
        // sequence lie in parts of their own, so that in none a key has two places.
        let mut alike: BTreeMap<(usize, usize, usize), Vec<QueryChunk>> = BTreeMap::new();
        for span in layout.spans.iter() {
            let start = span.first_position(0);
            span.rows
                .clone()
                .enumerate()
                .for_each(|(i, row)| positions[row] = start + i);
            for (number, first) in span.rows.clone().step_by(QUERY_CHUNK_ROWS).enumerate() {
                let own = first..(first + QUERY_CHUNK_ROWS).min(span.rows.end);
                let before = span
                    .prefix
                    .iter()
                    .cloned()
                    .chain(std::iter::once(span.rows.start..first))
                    .flatten()
                    .collect();
                let rest = QueryChunk {
                    rows: own,
                    prefix_rows: before,
                    has_shared_prefix: !span.prefix.is_empty(),
                };
                let lengths = (
                    number,
                    rest.rows.len().next_power_of_two(),
                    rest.key_count().next_power_of_two(),
                );
                alike.entry(lengths).or_default().push(rest);
            }
        }
        let parts = alike
            .into_values()
            .map(|spans| AttentionBatch::from_chunks(&spans, rows))
            .collect();
        Self {
            rotation: RotaryAngles::new(&layout.rotary, dim, positions.into_iter()),
            batches: parts,
        }
    }
}

/// Some rows of a sequence, and the rows of the pack that stand before them in it.
struct QueryChunk {
    rows: Range<usize>,
    prefix_rows: Vec<usize>,
    /// Whether some of these are another sequence's too.
    has_shared_prefix: bool,
}

impl QueryChunk {
    /// Keys that its last row looks at.
    fn key_count(&self) -> usize {
        self.prefix_rows.len() + self.rows.len()
    }
}

impl AttentionBatch {
    /// Of sequences in a pack of so many rows.
    fn from_chunks(sequences: &[QueryChunk], rows: usize) -> Self {
        let queries = sequences
            .iter()
            .map(|rest| rest.rows.len())
            .max()
            .unwrap_or(0);
        let keys = sequences
            .iter()
            .map(QueryChunk::key_count)
            .max()
            .unwrap_or(0);
        let (mut of_queries, mut of_keys, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        let (mut back, mut keys_back) = (vec![None; rows], vec![None; rows]);
        for (b, rest) in sequences.iter().enumerate() {
            of_queries.extend((0..queries).map(|i| rest.rows.start + i.min(rest.rows.len() - 1)));
            counts.extend((0..queries).map(|i| if i < rest.rows.len() { 1.0 } else { 0.0 }));
            let all: Vec<usize> = rest
                .prefix_rows
                .iter()
                .copied()
                .chain(rest.rows.clone())
                .collect();
            of_keys.extend((0..keys).map(|j| all[j.min(all.len() - 1)]));
            rest.rows
                .clone()
                .enumerate()
                .for_each(|(i, row)| back[row] = Some(b * queries + i));
            all.iter()
                .enumerate()
                .for_each(|(j, &row)| keys_back[row] = Some(b * keys + j));
        }
        let in_order =
            |of: &[usize]| of.len() == rows && of.iter().enumerate().all(|(i, &row)| i == row);
        let shares = sequences.iter().any(|rest| rest.has_shared_prefix);
        let all = in_order(&of_queries) && in_order(&of_keys);
        let mask = causal_mask(
            queries,
            keys,
            sequences
                .iter()
                .map(|rest| (rest.prefix_rows.len(), rest.rows.len())),
        );
        Self {
            sequences: sequences.len(),
            queries,
            keys,
            row_maps: (!all).then(|| RowMaps {
                query_rows: row_index(of_queries),
                key_rows: row_index(of_keys),
                query_mask: matrix_from_vec(counts, sequences.len() * queries, 1),
                query_placement: RowPlacement::new(&back),
                key_placement: (!shares).then(|| RowPlacement::new(&keys_back)),
            }),
            mask,
        }
    }

    /// Of one sequence alone, whose rows from `start` on look at all before them.
    pub fn single_sequence(start: usize, rows: usize) -> Self {
        let keys = start + rows;
        Self {
            sequences: 1,
            queries: rows,
            keys,
            row_maps: None,
            mask: causal_mask(rows, keys, [(start, rows)].into_iter()),
        }
    }

    /// Query heads, those of one key head after another: (sequences · key heads, group · queries, dim).
    pub fn to_query_heads(&self, q: &GpuMatrix, heads: AttentionHeads) -> HeadBatch {
        let x = self.row_maps.as_ref().map_or_else(
            || q.clone(),
            |rows| q.clone().gather(rows.query_rows.clone()),
        );
        self.group_heads(x, heads)
    }

    /// Gradients of the outputs as query heads: what pads has none.
    pub fn to_gradient_heads(&self, delta: &GpuMatrix, heads: AttentionHeads) -> HeadBatch {
        let x = self.row_maps.as_ref().map_or_else(
            || delta.clone(),
            |rows| {
                let x: GpuMatrix = delta.clone().gather(rows.query_rows.clone());
                let shape = *x.shape();
                x * broadcast_per_row(rows.query_mask.clone(), shape)
            },
        );
        self.group_heads(x, heads)
    }

    fn group_heads(&self, x: GpuMatrix, heads: AttentionHeads) -> HeadBatch {
        let group = heads.query_heads / heads.key_value_heads;
        let x = split_heads(
            x,
            (
                self.sequences,
                self.queries,
                heads.query_heads,
                heads.head_dim,
            ),
        );
        x.reshape_like(&(
            self.sequences * heads.key_value_heads,
            group * self.queries,
            heads.head_dim,
        ))
    }

    /// Key heads, or value heads: (sequences · key heads, keys, dim).
    pub fn to_key_heads(&self, k: &GpuMatrix, heads: AttentionHeads) -> HeadBatch {
        let x = self
            .row_maps
            .as_ref()
            .map_or_else(|| k.clone(), |rows| k.clone().gather(rows.key_rows.clone()));
        split_heads(
            x,
            (
                self.sequences,
                self.keys,
                heads.key_value_heads,
                heads.head_dim,
            ),
        )
        .reshape_like(&(
            self.sequences * heads.key_value_heads,
            self.keys,
            heads.head_dim,
        ))
    }

    /// The pack's rows of query heads; those of other parts are zero.
    pub fn restore_query_rows(&self, x: HeadBatch, heads: AttentionHeads) -> GpuMatrix {
        let x = merge_heads(
            x,
            (
                self.sequences,
                self.queries,
                heads.query_heads,
                heads.head_dim,
            ),
        );
        self.row_maps.as_ref().map_or_else(
            || x.clone(),
            |rows| rows.query_placement.place_rows(x.clone()),
        )
    }

    /// The same of key heads.
    pub fn restore_key_rows(&self, x: HeadBatch, heads: AttentionHeads) -> GpuMatrix {
        let x = merge_heads(
            x,
            (
                self.sequences,
                self.keys,
                heads.key_value_heads,
                heads.head_dim,
            ),
        );
        match &self.row_maps {
            None => x,
            Some(RowMaps {
                key_placement: Some(back),
                ..
            }) => back.place_rows(x),
            Some(_) => unreachable!("there is no way back to what is shared"),
        }
    }

    /// Scores, the future hidden: (sequences · key heads · group · queries, keys).
    pub fn apply_causal_mask(&self, scores: HeadBatch, heads: AttentionHeads) -> GpuMatrix {
        let shape = (self.sequences, heads.query_heads, self.queries, self.keys);
        let scores =
            scores.reshape_like(&shape) + self.mask.clone().broadcast_like::<_, Axis<1>>(&shape);
        scores.reshape_like(&(self.sequences * heads.query_heads * self.queries, self.keys))
    }
}

/// For sequences of which a query at i stands at `start + i`; rows beyond a sequence's own look at its first key.
fn causal_mask(
    queries: usize,
    keys: usize,
    sequences: impl Iterator<Item = (usize, usize)>,
) -> HeadBatch {
    let mut values = Vec::new();
    for (start, rows) in sequences {
        for i in 0..queries {
            let seen = if i < rows { start + i + 1 } else { 1 };
            values.extend((0..keys).map(|j| if j < seen { 0.0 } else { f32::MIN }));
        }
    }
    let sequences = values.len() / (queries * keys).max(1);
    selected_device().tensor_from_vec(values, (sequences, queries, keys))
}

/// (sequences · rows, heads · dim) → (sequences, heads, rows, dim), as it lies then.
fn split_heads(
    x: GpuMatrix,
    (sequences, rows, heads, dim): (usize, usize, usize, usize),
) -> Tensor<(usize, usize, usize, usize), f32, Gpu> {
    let x = x.reshape_like(&(sequences, rows, heads, dim));
    make_contiguous(x.permute::<(usize, usize, usize, usize), Axes4<0, 2, 1, 3>>())
}

/// The way back: (sequences · heads, rows, dim) → (sequences · rows, heads · dim).
fn merge_heads(
    x: HeadBatch,
    (sequences, rows, heads, dim): (usize, usize, usize, usize),
) -> GpuMatrix {
    let x = x.reshape_like(&(sequences, heads, rows, dim));
    make_contiguous(x.permute::<(usize, usize, usize, usize), Axes4<0, 2, 1, 3>>())
        .reshape_like(&(sequences * rows, heads * dim))
}

/// The same values lying in the order of their axes: an operation on two tensors writes them so.
fn make_contiguous(
    x: Tensor<(usize, usize, usize, usize), f32, Gpu>,
) -> Tensor<(usize, usize, usize, usize), f32, Gpu> {
    let shape = *x.shape();
    let one: Tensor<Rank0, f32, Gpu> = constant(1, 1, 1.0).reshape_like(&());
    x * one.broadcast_like::<_, Axes4<0, 1, 2, 3>>(&shape)
}

impl RotaryAngles {
    /// Of rows at these positions.
    pub fn new(
        rotary: &RotaryTables,
        dim: usize,
        positions: impl ExactSizeIterator<Item = usize>,
    ) -> Self {
        let (rows, half) = (positions.len(), rotary.half_dim);
        let unrotated = dim - 2 * half; // cos 1 and sin 0 leave these channels as they are
        let (mut cos, mut sin) = (
            Vec::with_capacity(rows * dim),
            Vec::with_capacity(rows * dim),
        );
        for position in positions {
            let at = position * half..(position + 1) * half;
            (0..2).for_each(|_| cos.extend_from_slice(&rotary.cos[at.clone()]));
            cos.extend(std::iter::repeat_n(1.0, unrotated));
            (0..2).for_each(|_| sin.extend_from_slice(&rotary.sin[at.clone()]));
            sin.extend(std::iter::repeat_n(0.0, unrotated));
        }
        let mut quarter = vec![0.0; dim * dim];
        for i in 0..half {
            quarter[(i + half) * dim + i] = -1.0;
            quarter[i * dim + i + half] = 1.0;
        }
        let back = sin.iter().map(|sin| -sin).collect();
        let sin = [
            matrix_from_vec(sin, rows, dim),
            matrix_from_vec(back, rows, dim),
        ];
        Self {
            cos: matrix_from_vec(cos, rows, dim),
            sin,
            quarter_turn: matrix_from_vec(quarter, dim, dim),
        }
    }

    /// Every head of every row turned by its position's angles.
    pub fn apply_rotary(&self, x: GpuMatrix) -> GpuMatrix {
        self.rotate(x, &self.sin[0])
    }

    /// The way back.
    pub fn undo_rotary(&self, x: GpuMatrix) -> GpuMatrix {
        self.rotate(x, &self.sin[1])
    }

    fn rotate(&self, x: GpuMatrix, sin: &GpuMatrix) -> GpuMatrix {
        let ((rows, width), (dim, _)) = (*x.shape(), *self.quarter_turn.shape());
        let whole = (rows, width / dim, dim);
        let beside = |table: &GpuMatrix| table.clone().broadcast_like::<_, Axis<1>>(&whole);
        let across = x
            .clone()
            .reshape_like(&(rows * (width / dim), dim))
            .matmul(self.quarter_turn.clone())
            .reshape_like(&whole);
        let turned = x.reshape_like(&whole) * beside(&self.cos) + across * beside(sin);
        turned.reshape_like(&(rows, width))
    }
}
