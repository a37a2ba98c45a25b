//! What is asked of the gradient of a weight, and where the answer goes when a tape runs backward. Nobody needs to keep a
//! gradient in order to add up what follows from it: an operation can reduce it band by band as it makes it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use rayon::prelude::*;

use super::simd::{rows_per_task, sum, vectorised};

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
    Elements { samples: Option<Arc<[SampleAt]>>, sides: Sides, worth: Worth },
}

/// What each element of a row is worth: weights, gradients, squares (empty if not asked for) → values.
pub type Worth = Arc<dyn Fn(&[f32], &[f32], &[f32], &mut [f64]) + Send + Sync>;

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
    /// Row-major, of the weight's shape; squares are empty unless asked for.
    Gradient {
        gradient: Vec<f32>,
        squares: Vec<f32>,
    },
    Sums(SideSums),
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
            Answer::Gradient { gradient, .. } => Some(gradient),
            Answer::Sums(_) => None,
        }
    }

    pub(super) fn put(&self, answer: Answer) {
        *self.answer.borrow_mut() = Some(answer);
    }

    /// Answers from a gradient that is there as a whole, as are the squares if the question needs them.
    pub fn put_whole<'a>(&self, weight: impl FnOnce() -> Cow<'a, [f32]>, cols: usize, gradient: Vec<f32>, squares: Vec<f32>) {
        self.put(match &self.ask {
            Ask::Gradient | Ask::Squares(_) => Answer::Gradient { gradient, squares },
            Ask::Products(sides) => Answer::Sums(side_sums(&weight(), &gradient, &squares, cols, *sides, &products())),
            Ask::Elements { sides, worth, .. } => Answer::Sums(side_sums(&weight(), &gradient, &squares, cols, *sides, worth)),
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

/// W∘G
fn products() -> Worth {
    Arc::new(|w, g, _, out| {
        out.iter_mut().zip(w).zip(g).for_each(|((out, w), g)| *out = f64::from(*w) * f64::from(*g));
    })
}

#[inline(always)]
fn add_values(sums: &mut [f64], values: &[f64]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

/// Sums the worth of every element by row and column. Rows are shared out in bands whose size depends on the width alone, a
/// few million elements at a time, and added up in their order.
pub fn side_sums(w: &[f32], g: &[f32], squares: &[f32], cols: usize, sides: Sides, worth: &Worth) -> SideSums {
    const TOGETHER: usize = 1 << 21;
    let band = rows_per_task(cols) * cols;
    let of_band = |w: &[f32], g: &[f32], squares: &[f32]| {
        let mut sums = SideSums::zeros(w.len() / cols, cols, sides);
        let mut values = vec![0.0; cols];
        for (r, (w, g)) in w.chunks_exact(cols).zip(g.chunks_exact(cols)).enumerate() {
            worth(w, g, squares.get(r * cols..(r + 1) * cols).unwrap_or_default(), &mut values);
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
