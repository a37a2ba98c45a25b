//! Rows of matrices on a GPU. They are gathered and never scattered: scattered rows that meet at
//! one place would have to be added by atomic operations.

use std::ops::Range;

use dfdx::prelude::*;

use super::product::broadcast_per_row;
use crate::activations::GpuActivations;
use crate::gpu::{Gpu, GpuMatrix, matrix_from_vec, selected_device};

/// Indices of rows, on the GPU.
pub(super) type RowIndex = Tensor<(usize,), usize, Gpu>;

pub(super) fn row_index(rows: Vec<usize>) -> RowIndex {
    let len = rows.len();
    selected_device().tensor_from_vec(rows, (len,))
}

/// Some rows, in the order given.
pub(crate) fn gather_rows(x: &GpuActivations, rows: Vec<usize>) -> GpuActivations {
    x.matrix().clone().gather(row_index(rows)).into()
}

/// Puts rows into a larger matrix, by gathering: row t of the result is a row of the source, or
/// zero.
pub(super) struct RowPlacement {
    source_rows: RowIndex,
    /// (rows, 1): 1 for a row that comes from the source, 0 for a row of zeros. None: all are 1.
    row_mask: Option<GpuMatrix>,
}

impl RowPlacement {
    /// `source_rows[t]` is the source's row for row t; None: zeros.
    pub(super) fn new(source_rows: &[Option<usize>]) -> Self {
        let mask = source_rows
            .iter()
            .map(|row| if row.is_some() { 1.0 } else { 0.0 })
            .collect();
        let has_all = source_rows.iter().all(Option::is_some);
        Self {
            source_rows: row_index(source_rows.iter().map(|row| row.unwrap_or(0)).collect()),
            row_mask: (!has_all).then(|| matrix_from_vec(mask, source_rows.len(), 1)),
        }
    }

    /// For a source that becomes the rows `range` of a matrix with `row_count` rows.
    pub(super) fn for_range(row_count: usize, range: Range<usize>) -> Self {
        let source_rows: Vec<Option<usize>> = (0..row_count)
            .map(|row| range.contains(&row).then(|| row - range.start))
            .collect();
        Self::new(&source_rows)
    }

    /// The larger matrix.
    pub(super) fn place_rows(&self, source: GpuMatrix) -> GpuMatrix {
        let placed = source.gather(self.source_rows.clone());
        match &self.row_mask {
            None => placed,
            Some(mask) => {
                let shape = *placed.shape();
                placed * broadcast_per_row(mask.clone(), shape)
            }
        }
    }
}

/// A matrix of ones at these places (row, column) and zeros elsewhere. A product with it adds rows.
pub(super) fn indicator_matrix(
    rows: usize,
    cols: usize,
    places: impl Iterator<Item = (usize, usize)>,
) -> GpuMatrix {
    let mut values = vec![0.0; rows * cols];
    for (row, col) in places {
        values[row * cols + col] = 1.0;
    }
    matrix_from_vec(values, rows, cols)
}
