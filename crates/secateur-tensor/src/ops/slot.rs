//! What is asked of the gradient of a weight, and where the answer goes when a tape runs backward. Nobody needs to keep a
//! gradient in order to add up what follows from it: an operation can reduce it band by band as it makes it.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use rayon::prelude::*;

use super::gpu;
use super::simd::{dispatch_simd, rows_per_task, sum_f64};
use crate::activations::cpu;
use crate::activations::gpu::GpuMatrix;
use crate::{Activations, Gradient, Weight};

/// A sample of a pack: which positions it has, and by what its own gradient is multiplied before it is squared.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleSpan {
    pub positions: Range<usize>,
    pub gradient_scale: f32,
}

/// What is asked of the gradient G of one weight W, (outputs, inputs), over a pack.
#[derive(Clone)]
pub enum GradientQuery {
    /// G itself.
    Gradient,
    /// G, and Σ (share · G_j)² over the samples j.
    GradientAndSampleSquares(Arc<[SampleSpan]>),
    /// Σ W∘G by row, by column, or both: from activations, G is never made.
    WeightTimesGradientSums(SumAxes),
    /// Σ f(W, G, squares) by row, by column, or both: a band of G at a time. Squares are made where there are samples.
    ElementScoreSums {
        samples: Option<Arc<[SampleSpan]>>,
        axes: SumAxes,
        score: Arc<dyn ElementScore>,
    },
}

/// What each element of a weight is worth, on either face.
pub trait ElementScore: Send + Sync {
    /// Weights, gradients, squares (empty if not asked for) → values.
    fn score_on_cpu(&self, w: &[f32], g: &[f32], squares: &[f32], out: &mut [f64]);
    /// The same for whole matrices.
    fn score_on_gpu(&self, w: GpuMatrix, g: GpuMatrix, squares: Option<GpuMatrix>) -> GpuMatrix;
}

/// Which sums are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SumAxes {
    pub rows: bool,
    pub cols: bool,
}

/// Sums over each row and each column; empty where not asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AxisSums {
    pub rows: Vec<f64>,
    pub cols: Vec<f64>,
}

/// What a slot holds once the tape has run.
#[derive(Clone, Debug, PartialEq)]
pub enum GradientResult {
    /// Of the weight's shape; squares only if they were asked for.
    Gradient {
        gradient: Gradient,
        squares: Option<Gradient>,
    },
    Sums(AxisSums),
}

impl GradientResult {
    /// A gradient in the CPU's memory, row-major.
    pub(super) fn from_gradient(values: Vec<f32>, rows: usize, cols: usize) -> Self {
        Self::Gradient {
            gradient: cpu::activations_from_vec(values, rows, cols).into(),
            squares: None,
        }
    }

    /// A gradient and its samples' squares in the CPU's memory.
    pub(super) fn from_gradient_and_squares(
        values: Vec<f32>,
        squares: Vec<f32>,
        rows: usize,
        cols: usize,
    ) -> Self {
        let [gradient, squares] =
            [values, squares].map(|values| cpu::activations_from_vec(values, rows, cols).into());
        Self::Gradient {
            gradient,
            squares: Some(squares),
        }
    }
}

/// Where the answer for one weight goes.
#[derive(Clone)]
pub struct GradientRequest {
    pub query: GradientQuery,
    result: Rc<RefCell<Option<GradientResult>>>,
}

impl GradientRequest {
    pub fn new(ask: GradientQuery) -> Self {
        Self {
            query: ask,
            result: Rc::default(),
        }
    }

    /// For the gradient itself.
    pub fn for_gradient() -> Self {
        Self::new(GradientQuery::Gradient)
    }

    /// The answer; None if the weight took no part.
    pub fn take_result(&self) -> Option<GradientResult> {
        self.result.borrow_mut().take()
    }

    /// The answer of a slot that asked for the gradient.
    pub fn take_gradient(&self) -> Option<Vec<f32>> {
        match self.take_result()? {
            GradientResult::Gradient { gradient, .. } => Some(gradient.into_vec()),
            GradientResult::Sums(_) => None,
        }
    }

    pub(crate) fn set_result(&self, answer: GradientResult) {
        *self.result.borrow_mut() = Some(answer);
    }

    /// Answers from a gradient that is there as a whole, as are the squares if the question needs them.
    pub fn set_from_gradient(
        &self,
        weight: &Weight,
        gradient: Gradient,
        squares: Option<Gradient>,
    ) {
        let sums = |sides: SumAxes, worth: &dyn ElementScore| {
            GradientResult::Sums(axis_sums(weight, &gradient, squares.as_ref(), sides, worth))
        };
        self.set_result(match &self.query {
            GradientQuery::WeightTimesGradientSums(sides) => sums(*sides, &WeightTimesGradient),
            GradientQuery::ElementScoreSums {
                axes: sides,
                score: worth,
                ..
            } => sums(*sides, worth.as_ref()),
            GradientQuery::Gradient | GradientQuery::GradientAndSampleSquares(_) => {
                GradientResult::Gradient { gradient, squares }
            }
        });
    }
}

impl GradientQuery {
    /// The samples whose gradients are squared.
    pub fn samples(&self) -> Option<&Arc<[SampleSpan]>> {
        match self {
            Self::GradientAndSampleSquares(samples) => Some(samples),
            Self::ElementScoreSums { samples, .. } => samples.as_ref(),
            Self::Gradient | Self::WeightTimesGradientSums(_) => None,
        }
    }
}

impl AxisSums {
    /// Nothing yet.
    pub fn zeros(rows: usize, cols: usize, sides: SumAxes) -> Self {
        Self {
            rows: vec![0.0; if sides.rows { rows } else { 0 }],
            cols: vec![0.0; if sides.cols { cols } else { 0 }],
        }
    }

    /// Takes the sums of a band of rows that begins at `first`.
    pub fn add_band(&mut self, first: usize, band: &Self) {
        if !self.rows.is_empty() {
            self.rows[first..first + band.rows.len()].copy_from_slice(&band.rows);
        }
        self.cols
            .iter_mut()
            .zip(&band.cols)
            .for_each(|(sum, part)| *sum += part);
    }
}

/// A sample's own gradient, added, and its square, times its share.
#[inline(always)]
pub fn accumulate_sample_gradient(
    gradient: &mut [f32],
    squares: &mut [f32],
    own: &[f32],
    share: f32,
) {
    for ((g, s), own) in gradient.iter_mut().zip(squares).zip(own) {
        *g += own;
        *s += (own * share) * (own * share);
    }
}

/// W∘G
pub(super) struct WeightTimesGradient;

impl ElementScore for WeightTimesGradient {
    fn score_on_cpu(&self, w: &[f32], g: &[f32], _: &[f32], out: &mut [f64]) {
        out.iter_mut()
            .zip(w)
            .zip(g)
            .for_each(|((out, w), g)| *out = f64::from(*w) * f64::from(*g));
    }

    fn score_on_gpu(&self, w: GpuMatrix, g: GpuMatrix, _: Option<GpuMatrix>) -> GpuMatrix {
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
pub fn axis_sums(
    weight: &Weight,
    gradient: &Gradient,
    squares: Option<&Gradient>,
    sides: SumAxes,
    worth: &dyn ElementScore,
) -> AxisSums {
    match (gradient, squares) {
        (Activations::Cpu(g), None) => axis_sums_on_cpu(
            &weight.values(),
            g.values(),
            &[],
            weight.cols(),
            sides,
            worth,
        ),
        (Activations::Cpu(g), Some(Activations::Cpu(s))) => axis_sums_on_cpu(
            &weight.values(),
            g.values(),
            s.values(),
            weight.cols(),
            sides,
            worth,
        ),
        (Activations::Gpu(g), squares) => {
            let squares = squares.map(|squares| squares.clone().into_gpu().matrix().clone());
            gpu::axis_sums(
                worth.score_on_gpu(weight.to_gpu_f32(), g.matrix().clone(), squares),
                sides,
            )
        }
        _ => unreachable!("a gradient and its squares lie in one place"),
    }
}

/// The same in the CPU's memory. Rows are shared out in bands whose size depends on the width alone, a
/// few million elements at a time, and added up in their order.
pub(super) fn axis_sums_on_cpu(
    w: &[f32],
    g: &[f32],
    squares: &[f32],
    cols: usize,
    sides: SumAxes,
    worth: &dyn ElementScore,
) -> AxisSums {
    const BATCH_ELEMENTS: usize = 1 << 21;
    let band = rows_per_task(cols) * cols;
    let of_band = |w: &[f32], g: &[f32], squares: &[f32]| {
        let mut sums = AxisSums::zeros(w.len() / cols, cols, sides);
        let mut values = vec![0.0; cols];
        for (r, (w, g)) in w.chunks_exact(cols).zip(g.chunks_exact(cols)).enumerate() {
            worth.score_on_cpu(
                w,
                g,
                squares.get(r * cols..(r + 1) * cols).unwrap_or_default(),
                &mut values,
            );
            if sides.rows {
                sums.rows[r] = dispatch_simd(
                    #[inline(always)]
                    || sum_f64(&values[..]),
                );
            }
            dispatch_simd(
                #[inline(always)]
                || add_values(&mut sums.cols[..], &values[..]),
            );
        }
        sums
    };
    let mut sums = AxisSums::zeros(w.len() / cols, cols, sides);
    let bands: Vec<usize> = (0..w.len()).step_by(band).collect();
    for together in bands.chunks((BATCH_ELEMENTS / band).max(1)) {
        let parts: Vec<AxisSums> = together
            .par_iter()
            .map(|&at| {
                let end = (at + band).min(w.len());
                of_band(
                    &w[at..end],
                    &g[at..end],
                    squares.get(at..end).unwrap_or_default(),
                )
            })
            .collect();
        together
            .iter()
            .zip(&parts)
            .for_each(|(&at, part)| sums.add_band(at / cols, part));
    }
    sums
}
