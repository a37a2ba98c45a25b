//! The operands of attention, as the projections store them.

use std::sync::Arc;

use super::super::gemm::MatrixView;
use crate::ops::layout::AttentionHeads;

/// Rotated queries and keys, and values, of a pack. The channels of a head are contiguous in each
/// row.
pub(super) struct PackedHeads {
    /// (rows, query_heads · head_dim)
    pub(super) q: Vec<f32>,
    /// (rows, key_value_heads · head_dim)
    pub(super) k: Vec<f32>,
    /// As `k`.
    pub(super) v: Arc<Vec<f32>>,
    pub(super) heads: AttentionHeads,
}

impl PackedHeads {
    /// The factor of the scores: 1 / √head_dim.
    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.heads.head_dim as f32).sqrt()
    }

    /// Elements of a row of keys, and of values.
    pub(super) fn key_width(&self) -> usize {
        self.heads.key_value_heads * self.heads.head_dim
    }

    /// Query heads that read one key/value head.
    pub(super) fn group_size(&self) -> usize {
        self.heads.query_heads / self.heads.key_value_heads
    }

    /// The queries of a head from a row on: (rows, head_dim).
    pub(super) fn query_view(&self, query_head: usize, first_row: usize) -> MatrixView<'_> {
        let width = self.heads.query_heads * self.heads.head_dim;
        let start = first_row * width + query_head * self.heads.head_dim;
        MatrixView::row_major(&self.q[start..], width)
    }

    /// The keys or values of a head from a row on: (rows, head_dim). `values` is `k`, `v`, or a
    /// copy of rows of them.
    pub(super) fn key_view<'a>(
        &self,
        values: &'a [f32],
        key_head: usize,
        first_row: usize,
    ) -> MatrixView<'a> {
        let start = first_row * self.key_width() + key_head * self.heads.head_dim;
        MatrixView::row_major(&values[start..], self.key_width())
    }
}
