//! The gradient of a linear layer's weight, G = δᵀ · x, and what follows from it, on a GPU: as row and column sums that need
//! no G at all, whole, or reduced where it was made.

use super::product::{column_sums, outer, sum_of_rows};
use crate::ops::slot::{Answer, Ask, SampleAt, SideSums, Sides, Slot};
use crate::tensor::Weight;
use crate::tensor::gpu::{Hidden, Matrix};
use crate::tensor::resident::Held;

/// A question, with what its answer needs of the way forward.
pub struct Asked {
    slot: Slot,
    weight: Weight,
    x: Matrix,
    /// Only where row sums are made of it.
    y: Option<Matrix>,
}

impl Asked {
    pub fn new(slot: &Slot, weight: &Weight, x: &Matrix, y: &Matrix) -> Self {
        let needs_y = matches!(slot.ask, Ask::Products(Sides { rows: true, .. }));
        Self { slot: slot.clone(), weight: weight.clone(), x: x.clone(), y: needs_y.then(|| y.clone()) }
    }

    /// δ is (n, outputs), dx = δ · W is (n, inputs).
    pub fn answer(self, held: &Held, delta: &Matrix, dx: &Matrix) {
        if let Ask::Products(sides) = &self.slot.ask {
            let rows = self.y.map_or_else(Vec::new, |y| column_sums(delta.clone() * y));
            let cols = if sides.cols { column_sums(self.x * dx.clone()) } else { Vec::new() };
            return self.slot.put(Answer::Sums(SideSums { rows, cols }));
        }
        let (gradient, squares) = match self.slot.ask.samples() {
            None => (outer(delta, &self.x, held), None),
            Some(samples) => squared(samples, |at| outer(&rows(delta, at), &rows(&self.x, at), held)),
        };
        let whole = |of: Matrix| Hidden::from(of).into();
        self.slot.put_whole(&self.weight, whole(gradient), squares.map(whole));
    }
}

/// Σ over the samples of their gradients, and of (share · gradient)².
pub fn squared(samples: &[SampleAt], own: impl Fn(&SampleAt) -> Matrix) -> (Matrix, Option<Matrix>) {
    let squares = |own: &Matrix, share: f32| (own.clone() * share).square();
    let mut samples = samples.iter();
    let Some(first) = samples.next() else { unreachable!("squares are asked of samples") };
    let gradient = own(first);
    let start = (squares(&gradient, first.share), gradient);
    let (squares, gradient) = samples.fold(start, |(sum, gradient), sample| {
        let own = own(sample);
        (sum + squares(&own, sample.share), gradient + own)
    });
    (gradient, Some(squares))
}

/// A sample's rows.
fn rows(of: &Matrix, at: &SampleAt) -> Matrix {
    of.clone().slice((at.positions.clone(), ..))
}

/// Sums of every element by row and column.
pub fn side_sums(values: Matrix, sides: Sides) -> SideSums {
    let rows = if sides.rows { sum_of_rows(values.clone()).as_vec().into_iter().map(f64::from).collect() } else { Vec::new() };
    let cols = if sides.cols { column_sums(values) } else { Vec::new() };
    SideSums { rows, cols }
}
