//! The interface between a block and its caller: how the block applies its matrices, and which of
//! its tensors get a gradient. The block calls the two methods of [`BlockHooks`] and depends on
//! nothing else of training, calibration or scoring.

use crate::wiring::BlockTensor;
use secateur_tensor::ops::{self, GradientQuery, GradientRequest, GradientResult};
use secateur_tensor::{Activations, AnyTape, Weight};

/// How a block applies its weights: unchanged, with their gradients computed, with adapters
/// added, or with their inputs recorded.
pub trait BlockHooks {
    /// Applies one matrix: y = x · Wᵀ. x is (positions, inputs), W is (outputs, inputs), y is
    /// (positions, outputs). The bias, if any, is added by the block.
    fn linear<T: AnyTape>(
        &self,
        tensor: BlockTensor,
        weight: &Weight,
        x: Activations<T>,
    ) -> Activations<T> {
        ops::linear(x, weight, self.gradient_request(tensor))
    }

    /// The request for the gradient of a tensor. None: its gradient is not computed.
    fn gradient_request(&self, _tensor: BlockTensor) -> Option<&GradientRequest> {
        None
    }
}

/// Applies the weights unchanged and computes no gradient of them.
pub struct NoHooks;

impl BlockHooks for NoHooks {}

/// Requests for the gradients of some tensors of one block.
pub struct GradientRequests(Vec<(BlockTensor, GradientRequest)>);

impl GradientRequests {
    pub fn from_queries(queries: impl IntoIterator<Item = (BlockTensor, GradientQuery)>) -> Self {
        let requests = queries
            .into_iter()
            .map(|(tensor, query)| (tensor, GradientRequest::new(query)));
        Self(requests.collect())
    }

    /// The results, after the block's tape has run backward.
    pub fn into_results(self) -> impl Iterator<Item = (BlockTensor, GradientResult)> {
        self.0
            .into_iter()
            .filter_map(|(tensor, request)| Some((tensor, request.take_result()?)))
    }
}

impl BlockHooks for GradientRequests {
    fn gradient_request(&self, tensor: BlockTensor) -> Option<&GradientRequest> {
        self.0
            .iter()
            .find(|(requested, _)| *requested == tensor)
            .map(|(_, request)| request)
    }
}
