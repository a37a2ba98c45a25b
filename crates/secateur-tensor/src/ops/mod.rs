//! Every operation of the models, forward and backward.
//!
//! Each operation has two implementations: fused loops on plain memory for the CPU (`cpu`), and a
//! composition of dfdx's operations for GPUs (`gpu`). `dispatch` sends a call to the one that its
//! activations need. The tests compare both with dfdx's own operations and gradients.
//!
//! The gradient of a weight is computed only where a [`GradientRequest`] is given, and only as much
//! of it at a time as its query needs.

mod adapter;
mod cpu;
mod dispatch;
mod gpu;
mod gradient_query;
mod gradient_reduction;
mod kv_cache;
mod layout;
mod normal;
mod simd;
mod token_loss;

pub use adapter::{AdapterInput, DropoutMaskFn};
pub use cpu::CPU_LOGIT_TILE_ELEMENTS;
pub use dispatch::{
    add, add_bias, attention, backward, column_moments, cross_entropy, embed, gather_rows, gelu,
    layer_norm, linear, linear_with_adapter, rms_norm, swiglu, token_scores,
};
pub use gpu::{GPU_LOGIT_TILE_ELEMENTS, QUERY_CHUNK_ROWS};
pub use gradient_query::{
    AxisSums, ElementScore, GradientQuery, GradientRequest, GradientResult, SampleSpan, SumAxes,
};
pub use gradient_reduction::{axis_sums, embedding_gradient};
pub use kv_cache::KvCache;
pub use layout::{AttentionHeads, PackLayout, RotaryTables, SequenceSpan};
pub use simd::dispatch_simd;
pub use token_loss::{LossAndGradient, TokenScore, TokenTarget};

#[cfg(test)]
mod tests;
