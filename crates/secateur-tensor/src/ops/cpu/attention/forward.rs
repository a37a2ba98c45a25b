//! The outputs of attention, a tile of queries at a time.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::super::gemm::{
    MIN_STABLE_ROWS, MatrixView, OutputMode, Parallelism, SMALL_PRODUCT_ELEMENTS, SUM_CHUNK_TERMS,
    matmul_single_thread, scaled_matmul,
};
use super::super::maths::{exp, max_or_nan, sum_f32};
use super::kv_cache::{CachedSequence, CpuKvCache};
use super::packed_heads::PackedHeads;
use crate::ops::layout::PackLayout;
use crate::ops::simd::dispatch_simd;

/// Queries of a tile.
pub(super) const TILE_QUERIES: usize = 64;

/// The keys and values before a span's first row, in its sequence.
#[derive(Clone, Copy)]
enum Prefix<'a> {
    Empty,
    /// These rows of the pack.
    SharedRows(&'a [Range<usize>]),
    /// A cache. The span's own rows have been appended to it.
    Cached(&'a CachedSequence),
}

/// Some rows of a span, computed by one core, and the memory of their results.
struct AttentionTask<'a> {
    prefix: Prefix<'a>,
    span_first_row: usize,
    /// Position of the span's first row in its sequence.
    span_first_position: usize,
    rows: Range<usize>,
    /// (rows, query_heads · head_dim)
    outputs: &'a mut [f32],
    /// (rows, query_heads)
    log_sum_exp: &'a mut [f32],
}

/// Keys and values of one sequence, from its beginning: (positions, key_width) each.
struct SequenceKeys<'a> {
    keys: Cow<'a, [f32]>,
    values: Cow<'a, [f32]>,
}

impl PackedHeads {
    /// The outputs, (rows, query_heads · head_dim), and ln Σ exp(score) of every row and head,
    /// (rows, query_heads).
    pub(super) fn forward(
        &self,
        layout: &PackLayout,
        first_positions: &[usize],
        cache: Option<&CpuKvCache>,
    ) -> (Vec<f32>, Vec<f32>) {
        let query_heads = self.heads.query_heads;
        let width = query_heads * self.heads.head_dim;
        let rows = self.q.len() / width;
        let mut outputs = vec![0.0; rows * width];
        let mut log_sum_exp = vec![0.0; rows * query_heads];
        // The tasks divide the outputs into consecutive, disjoint parts.
        let mut tasks = Vec::new();
        let mut remaining_outputs = &mut outputs[..];
        let mut remaining_log_sum_exp = &mut log_sum_exp[..];
        for (span, &span_first_position) in layout.spans.iter().zip(first_positions) {
            let prefix = match cache {
                Some(cache) => Prefix::Cached(cache.sequence(span.cache_sequence)),
                None if span.prefix.is_empty() => Prefix::Empty,
                None => Prefix::SharedRows(&span.prefix),
            };
            // A task with a shared prefix first copies the prefix and its own keys into one block.
            // One task computes the whole span, so that this is done once.
            let task_rows = if matches!(prefix, Prefix::SharedRows(_)) {
                span.rows.len().max(1)
            } else {
                TILE_QUERIES
            };
            for first in span.rows.clone().step_by(task_rows) {
                let rows = first..(first + task_rows).min(span.rows.end);
                let (task_outputs, task_log_sum_exp);
                (task_outputs, remaining_outputs) =
                    remaining_outputs.split_at_mut(rows.len() * width);
                (task_log_sum_exp, remaining_log_sum_exp) =
                    remaining_log_sum_exp.split_at_mut(rows.len() * query_heads);
                tasks.push(AttentionTask {
                    prefix,
                    span_first_row: span.rows.start,
                    span_first_position,
                    rows,
                    outputs: task_outputs,
                    log_sum_exp: task_log_sum_exp,
                });
            }
        }
        tasks.into_par_iter().for_each(|task| self.run_task(task));
        (outputs, log_sum_exp)
    }

    /// All heads of the rows of a task, tile by tile.
    fn run_task(&self, task: AttentionTask<'_>) {
        let query_heads = self.heads.query_heads;
        let sequence = self.gather_keys_values(&task);
        for first in task.rows.clone().step_by(TILE_QUERIES) {
            let rows = first..(first + TILE_QUERIES).min(task.rows.end);
            let task_row = first - task.rows.start;
            self.attend_tile(
                &sequence,
                task.span_first_position + first - task.span_first_row,
                rows,
                &mut task.outputs[task_row * query_heads * self.heads.head_dim..],
                &mut task.log_sum_exp[task_row * query_heads..],
            );
        }
    }

    /// Keys and values from the beginning of the sequence to the task's last row: borrowed if they
    /// are contiguous, copied together otherwise. Fewer than [`MIN_STABLE_ROWS`] are padded with
    /// zeros.
    fn gather_keys_values<'a>(&'a self, task: &AttentionTask<'a>) -> SequenceKeys<'a> {
        let width = self.key_width();
        let key_count = task.span_first_position + task.rows.end - task.span_first_row;
        let shared_rows: &[Range<usize>] = match task.prefix {
            Prefix::SharedRows(rows) => rows,
            Prefix::Empty | Prefix::Cached(_) => &[],
        };
        // The rows of `keys` and `values` that follow the shared ones.
        let (keys, values, own_rows) = match task.prefix {
            Prefix::Cached(sequence) => (&sequence.keys[..], &sequence.values[..], 0..key_count),
            Prefix::Empty | Prefix::SharedRows(_) => {
                (&self.k[..], &self.v[..], task.span_first_row..task.rows.end)
            }
        };
        let gather = |source: &'a [f32]| {
            if shared_rows.is_empty() && key_count >= MIN_STABLE_ROWS {
                return Cow::Borrowed(&source[own_rows.start * width..]);
            }
            let len = key_count.max(MIN_STABLE_ROWS) * width;
            let mut gathered = Vec::with_capacity(len);
            for rows in shared_rows.iter().chain(std::iter::once(&own_rows)) {
                gathered.extend_from_slice(&source[rows.start * width..rows.end * width]);
            }
            gathered.resize(len, 0.0);
            Cow::Owned(gathered)
        };
        SequenceKeys {
            keys: gather(keys),
            values: gather(values),
        }
    }

    /// Computes one tile of queries, head by head, and writes O and ln Σ exp(S) of each row:
    ///
    /// - S = scale · Q · Kᵀ, (tile rows, keys);
    /// - P = softmax(S) over the keys up to the query, (tile rows, keys);
    /// - O = P · V, (tile rows, head_dim).
    ///
    /// `position` is that of the tile's first row; keys and values begin at position 0. The padding
    /// keeps the bits of a row independent of the rest of the tile: every product has a shape for
    /// which gemm adds in the same order, by the rules in `gemm.rs`. P is 0 at padded keys, and the
    /// outputs of padded queries are not copied out.
    fn attend_tile(
        &self,
        sequence: &SequenceKeys<'_>,
        position: usize,
        rows: Range<usize>,
        outputs: &mut [f32],
        log_sum_exp: &mut [f32],
    ) {
        let (query_heads, head_dim) = (self.heads.query_heads, self.heads.head_dim);
        let width = self.key_width();
        let (keys, values): (&[f32], &[f32]) = (&sequence.keys, &sequence.values);
        let padded_rows = rows.len().max(MIN_STABLE_ROWS);
        let key_count = (position + rows.len()).max(MIN_STABLE_ROWS);

        // O is a sum over keys in chunks of SUM_CHUNK_TERMS. gemm adds a last chunk of one or two
        // terms in another way, so such a chunk is padded to MIN_STABLE_ROWS: P with columns and V
        // with rows of zeros.
        let last_chunk = key_count / SUM_CHUNK_TERMS * SUM_CHUNK_TERMS;
        let pads_last_chunk = matches!(key_count % SUM_CHUNK_TERMS, 1 | 2);
        let (row_stride, padded_values) = if pads_last_chunk {
            let mut padded = values[last_chunk * width..key_count * width].to_vec();
            padded.resize(MIN_STABLE_ROWS * width, 0.0);
            (last_chunk + MIN_STABLE_ROWS, padded)
        } else {
            (key_count, Vec::new())
        };
        let mut probabilities = vec![0.0; padded_rows * row_stride];

        // Few rows are copied into padded, column-major queries: padded for the matrix-vector
        // kernels, and column-major because a small product of two contiguous operands is added in
        // vector lanes.
        let copies_queries =
            rows.len() < padded_rows || padded_rows * key_count <= SMALL_PRODUCT_ELEMENTS;
        let copied_len = if copies_queries {
            padded_rows * head_dim
        } else {
            0
        };
        let (mut copied_q, mut copied_o) = (vec![0.0; copied_len], vec![0.0; copied_len]);

        for head in 0..query_heads {
            let key_head = head / self.group_size();
            let mut queries = self.query_view(head, rows.start);
            if copies_queries {
                for (channel, column) in copied_q.chunks_exact_mut(padded_rows).enumerate() {
                    for (row, element) in column.iter_mut().take(rows.len()).enumerate() {
                        *element = queries.data[row * queries.row_stride + channel];
                    }
                }
                queries = MatrixView::column_major(&copied_q, padded_rows);
            }
            // S = scale · Q · Kᵀ
            scaled_matmul(
                Parallelism::CurrentThread,
                self.scale(),
                (padded_rows, key_count, head_dim),
                &mut probabilities,
                row_stride,
                OutputMode::Overwrite,
                queries,
                self.key_view(keys, key_head, 0).transposed(),
            );
            // S → P, row by row
            for row in 0..rows.len() {
                let scores = &mut probabilities[row * row_stride..(row + 1) * row_stride];
                log_sum_exp[row * query_heads + head] = dispatch_simd(
                    #[inline(always)]
                    || causal_softmax(scores, position + row),
                );
            }
            // O = Σ over chunks of P[:, chunk] · V[chunk, :]
            let (tile_output, output_stride) = if copies_queries {
                (&mut copied_o[..], head_dim)
            } else {
                (&mut outputs[head * head_dim..], query_heads * head_dim)
            };
            for chunk in (0..row_stride).step_by(SUM_CHUNK_TERMS) {
                let terms = SUM_CHUNK_TERMS.min(row_stride - chunk);
                let chunk_values = if pads_last_chunk && chunk == last_chunk {
                    self.key_view(&padded_values, key_head, 0)
                } else {
                    self.key_view(values, key_head, chunk)
                };
                matmul_single_thread(
                    (padded_rows, head_dim, terms),
                    tile_output,
                    output_stride,
                    OutputMode::accumulate_if(chunk > 0),
                    MatrixView::row_major(&probabilities[chunk..], row_stride),
                    chunk_values,
                );
            }
            // Without copied queries `copied_o` is empty, and O is already in its place.
            let copied_rows = copied_o.chunks_exact(head_dim).take(rows.len());
            for (row, copied_row) in copied_rows.enumerate() {
                let start = (row * query_heads + head) * head_dim;
                outputs[start..start + head_dim].copy_from_slice(copied_row);
            }
        }
    }
}

/// Turns one row of scores s into probabilities p_j = exp(s_j − max) / Σ_i exp(s_i − max) over the
/// keys 0..=position; later keys get 0. Returns ln Σ exp(s) = max + ln Σ exp(s − max). The sum has
/// `position` + 1 terms whatever the tile, so its bits depend on the row alone.
#[inline(always)]
fn causal_softmax(scores: &mut [f32], position: usize) -> f32 {
    let (visible, future) = scores.split_at_mut(position + 1);
    let max = max_or_nan(visible);
    for score in visible.iter_mut() {
        *score = exp(*score - max);
    }
    let sum = sum_f32(visible);
    let inverse = 1.0 / sum;
    for probability in visible.iter_mut() {
        *probability *= inverse;
    }
    future.fill(0.0);
    max + sum.ln()
}
