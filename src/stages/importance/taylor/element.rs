//! The term of one element in the score of its channel (LLM-Pruner, equations 3 and 5): w is its
//! value, g its gradient, s = Σ_j g_j², f = s · fisher_scale its Fisher information. The formulas
//! are written twice, for the CPU (in f64) and for a GPU (in f32).

use std::sync::Arc;

use super::super::{Fisher, Taylor};
use secateur_tensor::gpu::GpuMatrix;
use secateur_tensor::ops::{ElementScore, dispatch_simd};

/// A Taylor criterion.
#[derive(Clone, Copy, Debug)]
pub struct TaylorCriterion {
    pub form: Taylor,
    pub fisher: Fisher,
}

impl TaylorCriterion {
    /// Whether the criterion uses the Fisher information.
    pub(super) fn is_second_order(self) -> bool {
        matches!(
            self.form,
            Taylor::VectorMixed | Taylor::ElementSecond | Taylor::ElementMixed
        )
    }

    /// The element scores of the criterion, if the squares are sums over `samples` samples.
    pub(super) fn element_score(self, samples: usize) -> Arc<dyn ElementScore> {
        let fisher_scale = match self.fisher {
            Fisher::Mean => 1.0 / samples as f64,
            Fisher::Sum => 1.0,
        };
        Arc::new(TaylorElementScore {
            form: self.form,
            fisher_scale,
        })
    }
}

/// The element scores of a criterion. f = `fisher_scale` · Σ_j g_j².
struct TaylorElementScore {
    form: Taylor,
    fisher_scale: f64,
}

impl ElementScore for TaylorElementScore {
    fn score_on_cpu(
        &self,
        weights: &[f32],
        gradients: &[f32],
        squares: &[f32],
        scores: &mut [f64],
    ) {
        let fisher_scale = self.fisher_scale;
        match self.form {
            Taylor::Vector => write_first_order(weights, gradients, scores, |w, g| w * g),
            Taylor::ElementFirst => {
                write_first_order(weights, gradients, scores, |w, g| (w * g).abs());
            }
            Taylor::VectorMixed => {
                let score = |w, g, s| w * g - 0.5 * (s * fisher_scale) * w * w;
                write_second_order(weights, gradients, squares, scores, score);
            }
            Taylor::ElementSecond => {
                let score = |w: f64, _, s: f64| ((s * fisher_scale) * w * w).abs();
                write_second_order(weights, gradients, squares, scores, score);
            }
            Taylor::ElementMixed => {
                let score =
                    |w: f64, g: f64, s: f64| (w * g - 0.5 * (s * fisher_scale) * w * w).abs();
                write_second_order(weights, gradients, squares, scores, score);
            }
        }
    }

    fn score_on_gpu(
        &self,
        weight: GpuMatrix,
        gradient: GpuMatrix,
        squares: Option<GpuMatrix>,
    ) -> GpuMatrix {
        // f · w². A second-order form always comes with squares.
        let curvature = |w: GpuMatrix| {
            squares.unwrap_or_else(|| gradient.clone()) * self.fisher_scale as f32 * w.square()
        };
        let (w, g) = (weight, gradient.clone());
        match self.form {
            Taylor::Vector => w * g,
            Taylor::ElementFirst => (w * g).abs(),
            Taylor::VectorMixed => w.clone() * g - curvature(w) * 0.5,
            Taylor::ElementSecond => curvature(w).abs(),
            Taylor::ElementMixed => (w.clone() * g - curvature(w) * 0.5).abs(),
        }
    }
}

/// Writes `score(w, g)` of every element.
fn write_first_order(
    weights: &[f32],
    gradients: &[f32],
    scores: &mut [f64],
    score: impl Fn(f64, f64) -> f64 + Copy,
) {
    // A first-order score does not use the squares; the gradients are a slice of the same length.
    let ignoring_squares = move |w, g, _| score(w, g);
    write_second_order(weights, gradients, gradients, scores, ignoring_squares);
}

/// Writes `score(w, g, s)` of every element.
fn write_second_order(
    weights: &[f32],
    gradients: &[f32],
    squares: &[f32],
    scores: &mut [f64],
    score: impl Fn(f64, f64, f64) -> f64 + Copy,
) {
    dispatch_simd(
        #[inline(always)]
        || write_element_scores(weights, gradients, squares, &mut *scores, score),
    );
}

/// Widens each element to f64 and scores it.
#[inline(always)]
fn write_element_scores(
    weights: &[f32],
    gradients: &[f32],
    squares: &[f32],
    scores: &mut [f64],
    score: impl Fn(f64, f64, f64) -> f64,
) {
    for (((out, w), g), s) in scores.iter_mut().zip(weights).zip(gradients).zip(squares) {
        *out = score(f64::from(*w), f64::from(*g), f64::from(*s));
    }
}
