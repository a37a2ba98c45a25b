//! The operations on the CPU: one file each, fused, forward and backward. The gradient of a weight
//! is computed only where a request is given, and only as much of it at a time as the query needs.

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
mod norm_weight;
mod rms_norm;
mod rows;
mod tape;

pub(crate) use adapter::linear_with_adapter;
pub(crate) use attention::{CpuKvCache, attention};
pub(crate) use axis_sums::axis_sums;
pub(crate) use elementwise::{add, add_bias, swiglu};
pub(crate) use embedding::{embedding_column_sums, embedding_gradient};
pub(crate) use gelu::gelu;
pub(crate) use gradient::accumulate_sample_gradient;
pub(crate) use layer_norm::layer_norm;
pub(crate) use linear::linear;
pub use loss::CPU_LOGIT_TILE_ELEMENTS;
pub(crate) use loss::{cross_entropy, token_scores};
pub(crate) use rms_norm::rms_norm;
pub(crate) use rows::{column_moments, gather_rows};
pub(crate) use tape::backward;
