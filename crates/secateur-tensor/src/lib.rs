//! Tensors and weights, on the CPU and on a GPU, and every operation of the models ([`ops`]).
//!
//! This is the only crate that knows dfdx, gemm, pulp and cudarc.

pub mod activations;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
pub mod ops;
mod pinned;
pub mod resident;
mod weight;

pub use activations::{Activations, AnyTape, Gradient, GradientTape, PACK_TOKENS, gpu};
pub use device::{
    Device, DeviceError, device_description, memory_limit, resolve_device, select_device,
    selected_gpu_memory, total_gpu_memory,
};
pub use weight::{LowRank, Precision, Weight, WeightFile, WeightReadError};
