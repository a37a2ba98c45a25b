//! The operations on a GPU, composed of dfdx's operations. The backward steps are written out:
//! dfdx's own would compute the gradients of frozen weights too, and add with atomic operations,
//! whose order changes from run to run.
//!
//! Four rules keep the bits the same from run to run, and the program small:
//! - sums are products with ones (cuBLAS);
//! - rows are gathered and never scattered;
//! - no two operations run at the same time;
//! - dfdx compiles some kernels when they are first used: for reshaping tensors that are not
//!   contiguous, for concatenation, and for conversion to half precision. Only the last is used.

mod adapter;
mod attention;
mod attention_plan;
mod elementwise;
mod gelu;
mod gradient;
mod head_attention;
mod kv_cache;
mod layer_norm;
mod linear;
mod loss;
mod norm_weight;
mod product;
mod rms_norm;
mod rotary;
mod rows;
mod tape;

pub(crate) use adapter::linear_with_adapter;
pub(crate) use attention::attention;
pub use attention_plan::QUERY_CHUNK_ROWS;
pub(crate) use elementwise::{add, add_bias, swiglu};
pub(crate) use gelu::gelu;
pub(crate) use gradient::axis_sums;
pub(crate) use kv_cache::GpuKvCache;
pub(crate) use layer_norm::layer_norm;
pub(crate) use linear::linear;
pub use loss::GPU_LOGIT_TILE_ELEMENTS;
pub(crate) use loss::{cross_entropy, token_scores};
pub(crate) use product::column_sums;
pub(crate) use rms_norm::rms_norm;
pub(crate) use rows::gather_rows;
pub(crate) use tape::backward;
