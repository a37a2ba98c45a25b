//! Reduces a gradient that exists as a whole to what a query wants, on the device that holds it.

use super::gradient_query::{
    AxisSums, ElementScore, GradientQuery, GradientRequest, GradientResult, SumAxes,
};
use super::{cpu, gpu};
use crate::activations::{Activations, Gradient};
use crate::gpu::GpuMatrix;
use crate::weight::{Weight, WeightReadError};

/// The sums of score(W, G, S) over the rows and the columns. All matrices have the weight's shape;
/// the weight is in memory or on the GPU.
pub fn axis_sums(
    weight: &Weight,
    gradient: &Gradient,
    squares: Option<&Gradient>,
    axes: SumAxes,
    score: &dyn ElementScore,
) -> AxisSums {
    match (gradient, squares) {
        (Activations::Cpu(gradient), None) => cpu::axis_sums(
            weight.values(),
            gradient.values(),
            &[],
            weight.cols(),
            axes,
            score,
        ),
        (Activations::Cpu(gradient), Some(Activations::Cpu(squares))) => cpu::axis_sums(
            weight.values(),
            gradient.values(),
            squares.values(),
            weight.cols(),
            axes,
            score,
        ),
        (Activations::Gpu(gradient), squares) => {
            let squares = squares.map(|squares| squares.clone().into_gpu().matrix().clone());
            let gradient = gradient.matrix().clone();
            let scores = score.score_on_gpu(weight.to_gpu_f32(), gradient, squares);
            gpu::axis_sums(scores, axes)
        }
        _ => unreachable!("a gradient and its squares are on one device"),
    }
}

impl GradientRequest {
    /// Sets the result from a gradient that exists as a whole, with its squares if the query names
    /// samples.
    pub(super) fn set_from_gradient(
        &self,
        weight: &Weight,
        gradient: Gradient,
        squares: Option<Gradient>,
    ) {
        self.set_result(reduce(&self.query, weight, gradient, squares));
    }
}

/// What the query wants of a gradient that exists as a whole.
fn reduce(
    query: &GradientQuery,
    weight: &Weight,
    gradient: Gradient,
    squares: Option<Gradient>,
) -> GradientResult {
    let sums = |axes: SumAxes, score: &dyn ElementScore| {
        GradientResult::Sums(axis_sums(weight, &gradient, squares.as_ref(), axes, score))
    };
    match query {
        GradientQuery::WeightTimesGradientSums(axes) => sums(*axes, &WeightTimesGradient),
        GradientQuery::ElementScoreSums { axes, score, .. } => sums(*axes, score.as_ref()),
        GradientQuery::Gradient | GradientQuery::GradientAndSampleSquares(_) => {
            GradientResult::Gradient { gradient, squares }
        }
    }
}

/// The score w · g, for operations that compute Σ W∘G from G because they have no cheaper formula.
pub(super) struct WeightTimesGradient;

impl ElementScore for WeightTimesGradient {
    fn score_on_cpu(&self, weights: &[f32], gradients: &[f32], _: &[f32], scores: &mut [f64]) {
        for ((score, weight), gradient) in scores.iter_mut().zip(weights).zip(gradients) {
            *score = f64::from(*weight) * f64::from(*gradient);
        }
    }

    fn score_on_gpu(
        &self,
        weight: GpuMatrix,
        gradient: GpuMatrix,
        _: Option<GpuMatrix>,
    ) -> GpuMatrix {
        weight * gradient
    }
}

/// The result of a query for the embedding's gradient. `ids` are the tokens of a pack, `delta` is
/// the gradient of their embedded rows, (positions, hidden).
///
/// # Errors
/// If the query needs values of an embedding on disk and they cannot be read.
pub fn embedding_gradient(
    embedding: &Weight,
    query: GradientQuery,
    ids: &[u32],
    delta: &Activations,
) -> Result<GradientResult, WeightReadError> {
    let delta = delta.values();
    if let Some(sums) = cpu::embedding_column_sums(embedding, &query, ids, &delta)? {
        return Ok(GradientResult::Sums(sums));
    }
    let (gradient, squares) = cpu::embedding_gradient(embedding, &query, ids, &delta);
    // `Gradient::new` puts it on the device that holds the head's gradient: a tied weight's two are
    // added.
    let to_gradient = |values| Gradient::new(values, embedding.rows(), embedding.cols());
    let scored_weight = match query {
        GradientQuery::WeightTimesGradientSums(_) | GradientQuery::ElementScoreSums { .. } => {
            embedding.to_operand()?
        }
        // G alone needs no values of the weight.
        GradientQuery::Gradient | GradientQuery::GradientAndSampleSquares(_) => embedding.clone(),
    };
    Ok(reduce(
        &query,
        &scored_weight,
        to_gradient(gradient),
        squares.map(to_gradient),
    ))
}
