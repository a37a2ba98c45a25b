//! Rows of matrices, gathered: nothing on a GPU is ever scattered, because two that meet would have to be added.

use std::ops::Range;

use dfdx::prelude::*;

use crate::activations::gpu::{Gpu, GpuActivations, GpuMatrix, matrix_from_vec, selected_device};

/// Numbers of rows.
pub type RowIndex = Tensor<(usize,), usize, Gpu>;

/// The rows that it names, in order.
pub fn row_index(rows: Vec<usize>) -> RowIndex {
    let len = rows.len();
    selected_device().tensor_from_vec(rows, (len,))
}

/// Some rows, in the order given.
pub fn gather_rows(x: &GpuActivations, rows: Vec<usize>) -> GpuActivations {
    x.matrix().clone().gather(row_index(rows)).into()
}

/// Where rows come back from: row t is row `from[t]` of what was made of them, or zero.
pub struct RowPlacement {
    source_rows: RowIndex,
    /// 1 for a row that comes back, 0 for one that does not; (rows, 1). None: all come back.
    row_mask: Option<GpuMatrix>,
}

impl RowPlacement {
    pub fn new(from: &[Option<usize>]) -> Self {
        let comes = from
            .iter()
            .map(|row| if row.is_some() { 1.0 } else { 0.0 })
            .collect();
        let all = from.iter().all(Option::is_some);
        Self {
            source_rows: row_index(from.iter().map(|row| row.unwrap_or(0)).collect()),
            row_mask: (!all).then(|| matrix_from_vec(comes, from.len(), 1)),
        }
    }

    /// Of rows that lie here, in order, among so many.
    pub fn for_range(all: usize, here: Range<usize>) -> Self {
        Self::new(
            &(0..all)
                .map(|row| here.contains(&row).then(|| row - here.start))
                .collect::<Vec<_>>(),
        )
    }

    /// The rows where they belong.
    pub fn place_rows(&self, made: GpuMatrix) -> GpuMatrix {
        let back = made.gather(self.source_rows.clone());
        match &self.row_mask {
            None => back,
            Some(comes) => {
                let shape = *back.shape();
                back * super::product::broadcast_per_row(comes.clone(), shape)
            }
        }
    }
}

/// A matrix of ones at these places and zeros elsewhere: multiplied by it, rows move or are added up.
pub fn indicator_matrix(
    rows: usize,
    cols: usize,
    places: impl Iterator<Item = (usize, usize)>,
) -> GpuMatrix {
    let mut values = vec![0.0; rows * cols];
    places.for_each(|(row, col)| values[row * cols + col] = 1.0);
    matrix_from_vec(values, rows, cols)
}
