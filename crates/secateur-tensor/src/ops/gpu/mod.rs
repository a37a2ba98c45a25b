//! A GPU's face: every operation composed of dfdx's, forward and backward. Ways back are written out, because dfdx's own would
//! make the gradients of frozen weights too, and add up with atomic additions, whose order changes from run to run.
//!
//! Three rules keep bits the same from run to run: sums are products with ones (cuBLAS), rows are gathered and never
//! scattered, and nothing runs beside anything else. A fourth keeps the program small where it runs: of the operations
//! that dfdx compiles when they are first used (reshaping of what does not lie in order, joining), only the conversion to
//! half precision is used.

mod adapter;
mod attention;
mod elementwise;
mod gelu;
mod gradient;
mod layer_norm;
mod linear;
mod loss;
mod norm;
mod past;
mod product;
mod rows;
mod spans;
mod tape;

pub use adapter::linear_with_adapter;
pub use attention::attention;
pub use elementwise::{add, add_bias, swiglu};
pub(crate) use gelu::gelu;
pub use gradient::axis_sums;
pub(crate) use layer_norm::layer_norm;
pub use linear::linear;
pub use loss::{GPU_LOGIT_TILE_ELEMENTS, cross_entropy, token_scores};
pub use norm::rms_norm;
pub use past::GpuKvCache;
pub use product::column_sums;
pub use rows::gather_rows;
pub use spans::QUERY_CHUNK_ROWS;
pub use tape::{backward, embed};
