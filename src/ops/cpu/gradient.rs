//! The gradient of a linear layer's weight, G = δᵀ · x, and what follows from it, on the CPU: whole, as row and column sums
//! that need no G at all, or a band of rows at a time that is reduced before the next is made.
//!
//! For y = x · Wᵀ with output gradient δ: Σ_c W[r,c]·G[r,c] = Σ_t δ[t,r]·y[t,r], and Σ_r W[r,c]·G[r,c] = Σ_t x[t,c]·(δW)[t,c].

use std::sync::Arc;

use rayon::prelude::*;

use super::gemm::{Into, View, product, product_here};
use crate::ops::simd::vectorised;
use crate::ops::slot::{Answer, Ask, SampleAt, SideSums, Sides, Slot, add_squared, side_sums_of};
use crate::tensor::cpu::{Hidden, Kept};

/// A question, with what its answer needs of the way forward.
pub struct Asked {
    slot: Slot,
    x: Kept,
    /// Only where row sums are made of it.
    y: Option<Arc<Vec<f32>>>,
}

impl Asked {
    pub fn new(slot: &Slot, x: &Hidden, y: &Hidden) -> Self {
        let needs_y = matches!(slot.ask, Ask::Products(Sides { rows: true, .. }));
        Self { slot: slot.clone(), x: x.keep(), y: needs_y.then(|| y.shared()) }
    }

    /// δ is (n, outputs), dx = δ · W is (n, inputs).
    pub fn answer(self, weight: &[f32], (outputs, inputs): (usize, usize), n: usize, delta: &[f32], dx: &[f32]) {
        let x = &self.x.values();
        let answer = match &self.slot.ask {
            Ask::Gradient => {
                let mut gradient = vec![0.0; outputs * inputs];
                whole(&mut gradient, (outputs, inputs, n), delta, x);
                Answer::gradient(gradient, outputs, inputs)
            }
            Ask::Squares(samples) => {
                let (mut gradient, mut squares) = (vec![0.0; outputs * inputs], vec![0.0; outputs * inputs]);
                let band = band_rows(inputs, 1 << 17) * inputs;
                gradient.par_chunks_mut(band).zip(squares.par_chunks_mut(band)).enumerate().for_each(|(i, (g, s))| {
                    squared_band((g, s), i * (band / inputs), (outputs, inputs), delta, x, samples);
                });
                Answer::squared(gradient, squares, outputs, inputs)
            }
            Ask::Products(sides) => {
                let rows = self.y.as_deref().map_or_else(Vec::new, |y| products_by_column(delta, y, outputs));
                let cols = if sides.cols { products_by_column(x, dx, inputs) } else { Vec::new() };
                Answer::Sums(SideSums { rows, cols })
            }
            Ask::Elements { samples: None, sides, worth } => {
                let band = band_rows(inputs, 1 << 21);
                let mut sums = SideSums::zeros(outputs, inputs, *sides);
                let mut gradient = vec![0.0; band.min(outputs) * inputs];
                for first in (0..outputs).step_by(band) {
                    let rows = band.min(outputs - first);
                    let gradient = &mut gradient[..rows * inputs];
                    let delta = View { data: &delta[first..], row: 1, col: outputs };
                    product((rows, inputs, n), gradient, inputs, Into::Fresh, delta, View::rows(x, inputs));
                    let own = &weight[first * inputs..(first + rows) * inputs];
                    sums.add_band(first, &side_sums_of(own, gradient, &[], inputs, *sides, worth.as_ref()));
                }
                Answer::Sums(sums)
            }
            Ask::Elements { samples: Some(samples), sides, worth } => {
                let band = band_rows(inputs, 1 << 17);
                let bands: Vec<usize> = (0..outputs).step_by(band).collect();
                let parts: Vec<SideSums> = bands
                    .par_iter()
                    .map(|&first| {
                        let size = band.min(outputs - first) * inputs;
                        let (mut gradient, mut squares) = (vec![0.0; size], vec![0.0; size]);
                        squared_band((&mut gradient, &mut squares), first, (outputs, inputs), delta, x, samples);
                        let own = &weight[first * inputs..first * inputs + size];
                        side_sums_of(own, &gradient, &squares, inputs, *sides, worth.as_ref())
                    })
                    .collect();
                let mut sums = SideSums::zeros(outputs, inputs, *sides);
                bands.iter().zip(&parts).for_each(|(&first, part)| sums.add_band(first, part));
                Answer::Sums(sums)
            }
        };
        self.slot.put(answer);
    }
}

/// G = δᵀ · x.
pub(super) fn whole(gradient: &mut [f32], (outputs, inputs, n): (usize, usize, usize), delta: &[f32], x: &[f32]) {
    product((outputs, inputs, n), gradient, inputs, Into::Fresh, View::transposed(delta, outputs), View::rows(x, inputs));
}

/// Rows of a band that holds about so many elements, in multiples of what the product works on at once.
fn band_rows(inputs: usize, elements: usize) -> usize {
    (elements / inputs.max(1)).next_multiple_of(64)
}

/// Rows `first..` of G and of Σ (share · G_j)², sample by sample.
fn squared_band(
    (gradient, squares): (&mut [f32], &mut [f32]),
    first: usize,
    (outputs, inputs): (usize, usize),
    delta: &[f32],
    x: &[f32],
    samples: &[SampleAt],
) {
    let rows = gradient.len() / inputs;
    let mut own = vec![0.0; gradient.len()];
    for SampleAt { positions, share } in samples {
        let delta = View { data: &delta[positions.start * outputs + first..], row: 1, col: outputs };
        let x = View::rows(&x[positions.start * inputs..], inputs);
        product_here((rows, inputs, positions.len()), &mut own, inputs, Into::Fresh, delta, x);
        vectorised(
            #[inline(always)]
            || add_squared(&mut *gradient, &mut *squares, &own[..], *share),
        );
    }
}

/// Σ_t a[t,c] · b[t,c] for every column c, in f64.
pub(super) fn products_by_column(a: &[f32], b: &[f32], cols: usize) -> Vec<f64> {
    const TOGETHER: usize = 64;
    let mut sums = vec![0.0; cols];
    sums.par_chunks_mut(TOGETHER).enumerate().for_each(|(i, sums)| {
        vectorised(
            #[inline(always)]
            || add_products(sums, a, b, i * TOGETHER, cols),
        );
    });
    sums
}

/// Of the columns from `from` on, as many as there are sums.
#[inline(always)]
fn add_products(sums: &mut [f64], a: &[f32], b: &[f32], from: usize, cols: usize) {
    for (a, b) in a.chunks_exact(cols).zip(b.chunks_exact(cols)) {
        let (a, b) = (&a[from..from + sums.len()], &b[from..from + sums.len()]);
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
}
