//! Rows of activations on the CPU: gathered, and summed over.

use crate::activations::CpuActivations;

/// Some rows, in the order given.
pub(crate) fn gather_rows(x: &CpuActivations, rows: &[usize]) -> CpuActivations {
    let (_, width) = *x.shape();
    let values = rows
        .iter()
        .flat_map(|row| &x.values()[row * width..(row + 1) * width])
        .copied()
        .collect();
    CpuActivations::from_vec(values, rows.len(), width)
}

/// Σ x and Σ x² of each column, in f64.
pub(crate) fn column_moments<T>(x: &CpuActivations<T>) -> (Vec<f64>, Vec<f64>) {
    let (_, width) = *x.shape();
    let (mut sums, mut squares) = (vec![0.0; width], vec![0.0; width]);
    for row in x.values().chunks_exact(width) {
        for ((x, sum), square) in row.iter().zip(&mut sums).zip(&mut squares) {
            *sum += f64::from(*x);
            *square += f64::from(*x) * f64::from(*x);
        }
    }
    (sums, squares)
}
