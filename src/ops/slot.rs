//! What is asked of the gradient of a weight, and where the answer goes when a tape runs backward. Nobody needs to keep a
//! gradient in order to add up what follows from it: an operation can reduce it band by band as it makes it.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use rayon::prelude::*;

use super::gpu;
use super::simd::{rows_per_task, sum, vectorised};
use crate::tensor::gpu::Matrix;
use crate::tensor::{Gradient, Hidden, Weight, cpu};

/// A sample of a pack: which positions it has, and by what its own gradient is multiplied before it is squared.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleAt {
    pub positions: Range<usize>,
    pub share: f32,
}

/// What is asked of the gradient G of one weight W, (outputs, inputs), over a pack.
#[derive(Clone)]
pub enum Ask {
    /// G itself.
    Gradient,
    /// G, and Σ (share · G_j)² over the samples j.
    Squares(Arc<[SampleAt]>),
    /// Σ W∘G by row, by column, or both: from activations, G is never made.
    Products(Sides),
    /// Σ f(W, G, squares) by row, by column, or both: a band of G at a time. Squares are made where there are samples.
    Elements { samples: Option<Arc<[SampleAt]>>, sides: Sides, worth: Arc<dyn Worth> },
}

/// What each element of a weight is worth, on either face.
pub trait Worth: Send + Sync {
    /// Weights, gradients, squares (empty if not asked for) → values.
    fn on_cpu(&self, w: &[f32], g: &[f32], squares: &[f32], out: &mut [f64]);
    /// The same for whole matrices.
    fn on_gpu(&self, w: Matrix, g: Matrix, squares: Option<Matrix>) -> Matrix;
}

/// Which sums are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sides {
    pub rows: bool,
    pub cols: bool,
}

/// Sums over each row and each column; empty where not asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SideSums {
    pub rows: Vec<f64>,
    pub cols: Vec<f64>,
}

/// What a slot holds once the tape has run.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Of the weight's shape; squares only if they were asked for.
    Gradient {
        gradient: Gradient,
        squares: Option<Gradient>,
    },
    Sums(SideSums),
}

impl Answer {
    /// A gradient in the CPU's memory, row-major.
    pub(super) fn gradient(values: Vec<f32>, rows: usize, cols: usize) -> Self {
        Self::Gradient { gradient: cpu::hidden(values, rows, cols).into(), squares: None }
    }

    /// A gradient and its samples' squares in the CPU's memory.
    pub(super) fn squared(values: Vec<f32>, squares: Vec<f32>, rows: usize, cols: usize) -> Self {
        let [gradient, squares] = [values, squares].map(|values| cpu::hidden(values, rows, cols).into());
        Self::Gradient { gradient, squares: Some(squares) }
    }
}

/// Where the answer for one weight goes.
#[derive(Clone)]
pub struct Slot {
    pub ask: Ask,
    answer: Rc<RefCell<Option<Answer>>>,
}

impl Slot {
    pub fn new(ask: Ask) -> Self {
        Self { ask, answer: Rc::default() }
    }

    /// For the gradient itself.
    pub fn gradient() -> Self {
        Self::new(Ask::Gradient)
    }

    /// The answer; None if the weight took no part.
    pub fn take(&self) -> Option<Answer> {
        self.answer.borrow_mut().take()
    }

    /// The answer of a slot that asked for the gradient.
    pub fn take_gradient(&self) -> Option<Vec<f32>> {
        match self.take()? {
            Answer::Gradient { gradient, .. } => Some(gradient.into_vec()),
            Answer::Sums(_) => None,
        }
    }

    pub(crate) fn put(&self, answer: Answer) {
        *self.answer.borrow_mut() = Some(answer);
    }

    /// Answers from a gradient that is there as a whole, as are the squares if the question needs them.
    pub fn put_whole(&self, weight: &Weight, gradient: Gradient, squares: Option<Gradient>) {
        let sums = |sides: Sides, worth: &dyn Worth| Answer::Sums(side_sums(weight, &gradient, squares.as_ref(), sides, worth));
        self.put(match &self.ask {
            Ask::Products(sides) => sums(*sides, &Product),
            Ask::Elements { sides, worth, .. } => sums(*sides, worth.as_ref()),
            Ask::Gradient | Ask::Squares(_) => Answer::Gradient { gradient, squares },
        });
    }
}

impl Ask {
    /// The samples whose gradients are squared.
    pub fn samples(&self) -> Option<&Arc<[SampleAt]>> {
        match self {
            Self::Squares(samples) => Some(samples),
            Self::Elements { samples, .. } => samples.as_ref(),
            Self::Gradient | Self::Products(_) => None,
        }
    }
}

impl SideSums {
    /// Nothing yet.
    pub fn zeros(rows: usize, cols: usize, sides: Sides) -> Self {
        Self { rows: vec![0.0; if sides.rows { rows } else { 0 }], cols: vec![0.0; if sides.cols { cols } else { 0 }] }
    }

    /// Takes the sums of a band of rows that begins at `first`.
    pub fn add_band(&mut self, first: usize, band: &Self) {
        if !self.rows.is_empty() {
            self.rows[first..first + band.rows.len()].copy_from_slice(&band.rows);
        }
        self.cols.iter_mut().zip(&band.cols).for_each(|(sum, part)| *sum += part);
    }
}

/// A sample's own gradient, added, and its square, times its share.
#[inline(always)]
pub fn add_squared(gradient: &mut [f32], squares: &mut [f32], own: &[f32], share: f32) {
    for ((g, s), own) in gradient.iter_mut().zip(squares).zip(own) {
        *g += own;
        *s += (own * share) * (own * share);
    }
}

/// W∘G
pub(super) struct Product;

impl Worth for Product {
    fn on_cpu(&self, w: &[f32], g: &[f32], _: &[f32], out: &mut [f64]) {
        out.iter_mut().zip(w).zip(g).for_each(|((out, w), g)| *out = f64::from(*w) * f64::from(*g));
    }

    fn on_gpu(&self, w: Matrix, g: Matrix, _: Option<Matrix>) -> Matrix {
        w * g
    }
}

#[inline(always)]
fn add_values(sums: &mut [f64], values: &[f64]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

/// Sums the worth of every element by row and column.
pub fn side_sums(weight: &Weight, gradient: &Gradient, squares: Option<&Gradient>, sides: Sides, worth: &dyn Worth) -> SideSums {
    match (gradient, squares) {
        (Hidden::Cpu(g), None) => side_sums_of(&weight.values(), g.values(), &[], weight.cols(), sides, worth),
        (Hidden::Cpu(g), Some(Hidden::Cpu(s))) => {
            side_sums_of(&weight.values(), g.values(), s.values(), weight.cols(), sides, worth)
        }
        (Hidden::Gpu(g), squares) => {
            let squares = squares.map(|squares| squares.clone().on_gpu().matrix().clone());
            gpu::side_sums(worth.on_gpu(weight.matrix(), g.matrix().clone(), squares), sides)
        }
        _ => unreachable!("a gradient and its squares lie in one place"),
    }
}

/// The same in the CPU's memory. Rows are shared out in bands whose size depends on the width alone, a
/// few million elements at a time, and added up in their order.
pub(super) fn side_sums_of(w: &[f32], g: &[f32], squares: &[f32], cols: usize, sides: Sides, worth: &dyn Worth) -> SideSums {
    const TOGETHER: usize = 1 << 21;
    let band = rows_per_task(cols) * cols;
    let of_band = |w: &[f32], g: &[f32], squares: &[f32]| {
        let mut sums = SideSums::zeros(w.len() / cols, cols, sides);
        let mut values = vec![0.0; cols];
        for (r, (w, g)) in w.chunks_exact(cols).zip(g.chunks_exact(cols)).enumerate() {
            worth.on_cpu(w, g, squares.get(r * cols..(r + 1) * cols).unwrap_or_default(), &mut values);
            if sides.rows {
                sums.rows[r] = vectorised(
                    #[inline(always)]
                    || sum(&values[..]),
                );
            }
            vectorised(
                #[inline(always)]
                || add_values(&mut sums.cols[..], &values[..]),
            );
        }
        sums
    };
    let mut sums = SideSums::zeros(w.len() / cols, cols, sides);
    let bands: Vec<usize> = (0..w.len()).step_by(band).collect();
    for together in bands.chunks((TOGETHER / band).max(1)) {
        let parts: Vec<SideSums> = together
            .par_iter()
            .map(|&at| {
                let end = (at + band).min(w.len());
                of_band(&w[at..end], &g[at..end], squares.get(at..end).unwrap_or_default())
            })
            .collect();
        together.iter().zip(&parts).for_each(|(&at, part)| sums.add_band(at / cols, part));
    }
    sums
}
