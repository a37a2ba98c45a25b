//! The gradient of the embedding, computed on the CPU: row `id` of G is the sum of the hidden
//! states' gradients at the positions whose token is `id`. All other rows are zero.

use std::collections::BTreeMap;
use std::ops::Range;

use super::gradient::accumulate_sample_gradient;
use crate::ops::gradient_query::{AxisSums, GradientQuery};
use crate::weight::{Weight, WeightReadError};

/// Computes the column sums of W∘G without G: Σ_r W[r,c]·G[r,c] = Σ_t x[t,c]·δ[t,c], where
/// x[t] = W[ids[t]] is the embedded token and δ, (positions, hidden), the gradient of x. None for
/// any query but column sums of W∘G. Reads the rows of an embedding on disk, so it can fail.
pub(crate) fn embedding_column_sums(
    embedding: &Weight,
    query: &GradientQuery,
    ids: &[u32],
    delta: &[f32],
) -> Result<Option<AxisSums>, WeightReadError> {
    match query {
        GradientQuery::WeightTimesGradientSums(axes) if !axes.rows => {}
        _ => return Ok(None),
    }
    let width = embedding.cols();
    let rows: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
    // (positions, hidden)
    let x = embedding.read_rows(&rows)?;
    let mut cols = vec![0.0; width];
    for (x, delta) in x.chunks_exact(width).zip(delta.chunks_exact(width)) {
        for ((sum, x), delta) in cols.iter_mut().zip(x).zip(delta) {
            *sum += f64::from(*x) * f64::from(*delta);
        }
    }
    Ok(Some(AxisSums {
        rows: Vec::new(),
        cols,
    }))
}

/// G, (vocabulary, hidden), and the squares S if the query names samples.
pub(crate) fn embedding_gradient(
    embedding: &Weight,
    query: &GradientQuery,
    ids: &[u32],
    delta: &[f32],
) -> (Vec<f32>, Option<Vec<f32>>) {
    let width = embedding.cols();
    let row_range = |id: u32| id as usize * width..(id as usize + 1) * width;
    let mut gradient = vec![0.0; embedding.len()];
    let Some(samples) = query.samples() else {
        for (id, row) in rows_by_token(0..ids.len(), ids, delta, width) {
            gradient[row_range(id)].copy_from_slice(&row);
        }
        return (gradient, None);
    };
    let mut squares = vec![0.0; embedding.len()];
    for sample in samples.iter() {
        for (id, row) in rows_by_token(sample.positions.clone(), ids, delta, width) {
            let range = row_range(id);
            accumulate_sample_gradient(
                &mut gradient[range.clone()],
                &mut squares[range],
                &row,
                sample.gradient_scale,
            );
        }
    }
    (gradient, Some(squares))
}

/// The sum of δ over the positions of each token, in the order of the positions, for the tokens
/// that occur: (hidden) each.
fn rows_by_token(
    positions: Range<usize>,
    ids: &[u32],
    delta: &[f32],
    width: usize,
) -> BTreeMap<u32, Vec<f32>> {
    let mut rows: BTreeMap<u32, Vec<f32>> = BTreeMap::new();
    for position in positions {
        let row = rows
            .entry(ids[position])
            .or_insert_with(|| vec![0.0; width]);
        let delta = &delta[position * width..(position + 1) * width];
        for (sum, delta) in row.iter_mut().zip(delta) {
            *sum += delta;
        }
    }
    rows
}
