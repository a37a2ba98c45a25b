//! The CPU's face: every operation fused, a file each, forward and backward. Only those gradients of weights are made that a
//! slot asks for, and only as much of them at a time as its question needs.

mod adapter;
mod attention;
mod axis_sums;
mod elementwise;
mod embedding;
mod gelu;
mod gemm;
mod gradient;
mod layer_norm;
mod linear;
mod loss;
mod maths;
mod norm;
mod tape;

pub use adapter::linear_with_adapter;
pub use attention::{CpuKvCache, attention};
pub use axis_sums::axis_sums;
pub use elementwise::{add, add_bias, swiglu};
pub use embedding::{embedding_column_sums, embedding_gradient};
pub(crate) use gelu::gelu;
pub use gradient::accumulate_sample_gradient;
pub(crate) use layer_norm::layer_norm;
pub use linear::linear;
pub use loss::{CPU_LOGIT_TILE_ELEMENTS, cross_entropy, token_scores};
pub use norm::rms_norm;
pub use tape::{backward, embed};
