//! The operands of a low-rank adapter.

use std::sync::Arc;

use super::gradient_query::GradientRequest;
use crate::weight::Weight;

/// A low-rank adapter beside a weight: it adds scale · (mask ⊙ x) · Aᵀ · Bᵀ to the weight's output.
pub struct AdapterInput<'a> {
    /// (rank, inputs)
    pub a: &'a Weight,
    /// (outputs, rank)
    pub b: &'a Weight,
    /// The factor of the adapter's output, usually α / rank.
    pub scale: f32,
    /// Returns the mask, (positions, inputs): the same values at each call. None: no dropout.
    pub dropout_mask: Option<DropoutMaskFn>,
    /// The requests for the gradients of A and B.
    pub gradient_requests: Option<(&'a GradientRequest, &'a GradientRequest)>,
}

/// Returns the values of a dropout mask.
pub type DropoutMaskFn = Arc<dyn Fn() -> Vec<f32> + Send + Sync>;
