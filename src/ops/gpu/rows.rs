//! Rows of matrices, gathered: nothing on a GPU is ever scattered, because two that meet would have to be added.

use std::ops::Range;

use dfdx::prelude::*;

use crate::tensor::gpu::{Gpu, Hidden, Matrix, device, matrix};

/// Numbers of rows.
pub type Index = Tensor<(usize,), usize, Gpu>;

/// The rows that it names, in order.
pub fn index(rows: Vec<usize>) -> Index {
    let len = rows.len();
    device().tensor_from_vec(rows, (len,))
}

/// Some rows, in the order given.
pub fn picked(x: &Hidden, rows: Vec<usize>) -> Hidden {
    x.matrix().clone().gather(index(rows)).into()
}

/// Where rows come back from: row t is row `from[t]` of what was made of them, or zero.
pub struct Return {
    from: Index,
    /// 1 for a row that comes back, 0 for one that does not; (rows, 1). None: all come back.
    comes: Option<Matrix>,
}

impl Return {
    pub fn of(from: &[Option<usize>]) -> Self {
        let comes = from.iter().map(|row| if row.is_some() { 1.0 } else { 0.0 }).collect();
        let all = from.iter().all(Option::is_some);
        Self {
            from: index(from.iter().map(|row| row.unwrap_or(0)).collect()),
            comes: (!all).then(|| matrix(comes, from.len(), 1)),
        }
    }

    /// Of rows that lie here, in order, among so many.
    pub fn within(all: usize, here: Range<usize>) -> Self {
        Self::of(&(0..all).map(|row| here.contains(&row).then(|| row - here.start)).collect::<Vec<_>>())
    }

    /// The rows where they belong.
    pub fn rows(&self, made: Matrix) -> Matrix {
        let back = made.gather(self.from.clone());
        match &self.comes {
            None => back,
            Some(comes) => {
                let shape = *back.shape();
                back * super::product::by_row(comes.clone(), shape)
            }
        }
    }
}

/// A matrix of ones at these places and zeros elsewhere: multiplied by it, rows move or are added up.
pub fn selection(rows: usize, cols: usize, places: impl Iterator<Item = (usize, usize)>) -> Matrix {
    let mut values = vec![0.0; rows * cols];
    places.for_each(|(row, col)| values[row * cols + col] = 1.0);
    matrix(values, rows, cols)
}
