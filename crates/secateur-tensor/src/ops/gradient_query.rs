//! What can be computed from the gradient of one weight, as plain data: a [`GradientQuery`] says
//! what is wanted, a [`GradientResult`] holds it. A [`GradientRequest`] carries the query to the
//! operation that reads the weight, and the result back once the tape has run.
//!
//! Most criteria need only a few sums of W∘G or of a function of W and G, and never G itself. The
//! query says so, and the kernels in `cpu` and `gpu` reduce G a band of rows at a time, or do not
//! compute it at all.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use crate::activations::{CpuActivations, Gradient};
use crate::gpu::GpuMatrix;

/// The positions of one sample in a pack, and the factor of its gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleSpan {
    pub positions: Range<usize>,
    /// The sample's part of G is multiplied by this before it is squared. G is the gradient of the
    /// mean loss of the batch; the factor turns the sample's part of it into the gradient of the
    /// mean loss of the sample.
    pub gradient_scale: f32,
}

/// What is computed from the gradient G of one weight W over one pack. Both are (outputs, inputs).
/// G_j is the part of G that comes from sample j, so G = Σ_j G_j.
#[derive(Clone)]
pub enum GradientQuery {
    /// G.
    Gradient,
    /// G, and the squares S = Σ_j (scale_j · G_j)², element by element.
    GradientAndSampleSquares(Arc<[SampleSpan]>),
    /// Σ W∘G over each row, each column, or both. Computed from activations alone; G is not
    /// computed.
    WeightTimesGradientSums(SumAxes),
    /// Σ score(W, G, S) over each row, each column, or both. G exists a band of rows at a time on
    /// the CPU, as a whole on a GPU. S is computed if `samples` is given.
    ElementScoreSums {
        samples: Option<Arc<[SampleSpan]>>,
        axes: SumAxes,
        score: Arc<dyn ElementScore>,
    },
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

/// A score of each element of a weight, as a function of its value w, its gradient g and its
/// squares s. It is written once for slices on the CPU and once for matrices on a GPU.
pub trait ElementScore: Send + Sync {
    /// Writes the score of each element to `scores`. `squares` is empty if they were not computed,
    /// otherwise all slices have one length.
    fn score_on_cpu(&self, weights: &[f32], gradients: &[f32], squares: &[f32], scores: &mut [f64]);
    /// The scores of whole matrices of one shape.
    fn score_on_gpu(
        &self,
        weight: GpuMatrix,
        gradient: GpuMatrix,
        squares: Option<GpuMatrix>,
    ) -> GpuMatrix;
}

/// The axes along which sums are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SumAxes {
    /// One sum for each row.
    pub rows: bool,
    /// One sum for each column.
    pub cols: bool,
}

/// The sum over each row and the sum over each column of a matrix. A vector is empty if its axis is
/// not wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AxisSums {
    pub rows: Vec<f64>,
    pub cols: Vec<f64>,
}

impl AxisSums {
    /// Sums of a (rows, cols) matrix of zeros.
    pub fn zeros(rows: usize, cols: usize, axes: SumAxes) -> Self {
        Self {
            rows: vec![0.0; if axes.rows { rows } else { 0 }],
            cols: vec![0.0; if axes.cols { cols } else { 0 }],
        }
    }

    /// Includes the sums of a band of rows that begins at `first_row`. Each row lies in one band,
    /// so its sum is set; a column crosses all bands, so its parts are added, in the order of the
    /// calls.
    pub(super) fn add_band(&mut self, first_row: usize, band: &Self) {
        if !self.rows.is_empty() {
            self.rows[first_row..first_row + band.rows.len()].copy_from_slice(&band.rows);
        }
        for (sum, part) in self.cols.iter_mut().zip(&band.cols) {
            *sum += part;
        }
    }

    /// Adds sums over the same axes, element by element.
    pub fn add(&mut self, other: &Self) {
        for (sum, part) in self.rows.iter_mut().zip(&other.rows) {
            *sum += part;
        }
        for (sum, part) in self.cols.iter_mut().zip(&other.cols) {
            *sum += part;
        }
    }
}

/// The result of a query.
#[derive(Clone, Debug, PartialEq)]
pub enum GradientResult {
    /// G, and S if the query names samples. Both have the weight's shape.
    Gradient {
        gradient: Gradient,
        squares: Option<Gradient>,
    },
    Sums(AxisSums),
}

impl GradientResult {
    /// G from row-major values in the CPU's memory.
    pub(super) fn from_gradient(values: Vec<f32>, rows: usize, cols: usize) -> Self {
        Self::Gradient {
            gradient: CpuActivations::from_vec(values, rows, cols).into(),
            squares: None,
        }
    }

    /// G and S from row-major values in the CPU's memory.
    pub(super) fn from_gradient_and_squares(
        gradient: Vec<f32>,
        squares: Vec<f32>,
        rows: usize,
        cols: usize,
    ) -> Self {
        Self::Gradient {
            gradient: CpuActivations::from_vec(gradient, rows, cols).into(),
            squares: Some(CpuActivations::from_vec(squares, rows, cols).into()),
        }
    }
}

/// A query, and the cell for its result. The operation that reads the weight takes the request, and
/// its backward step puts the result into the cell. Clones share the cell: the tape holds one
/// clone, the caller another.
#[derive(Clone)]
pub struct GradientRequest {
    pub query: GradientQuery,
    result: Rc<RefCell<Option<GradientResult>>>,
}

impl GradientRequest {
    pub fn new(query: GradientQuery) -> Self {
        Self {
            query,
            result: Rc::default(),
        }
    }

    /// A request for G itself.
    pub fn for_gradient() -> Self {
        Self::new(GradientQuery::Gradient)
    }

    /// The result, once the tape has run. None: no output depended on the weight, or the result was
    /// taken.
    pub fn take_result(&self) -> Option<GradientResult> {
        self.result.borrow_mut().take()
    }

    /// The values of G, row-major, if the query is for them.
    pub fn take_gradient(&self) -> Option<Vec<f32>> {
        match self.take_result()? {
            GradientResult::Gradient { gradient, .. } => Some(gradient.into_vec()),
            GradientResult::Sums(_) => None,
        }
    }

    pub(super) fn set_result(&self, result: GradientResult) {
        *self.result.borrow_mut() = Some(result);
    }
}
