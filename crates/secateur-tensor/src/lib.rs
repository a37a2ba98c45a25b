//! Tensors, weights and every operation of secateur's models, on the CPU and on a GPU.
//!
//! - [`Weight`] is a matrix or vector of parameters: in memory, or in a file and read when an
//!   operation needs it.
//! - [`Activations`] are hidden states, (positions, width), on the device of the current thread.
//!   The type parameter says whether a tape records the operations for a backward pass.
//! - [`ops`] has the operations. Each has one implementation for the CPU (fused, on plain memory)
//!   and one for GPUs (composed of dfdx's operations); the call goes to the device that holds its
//!   activations.
//! - [`select_device`] chooses the device of the current thread.
//!
//! This is the only crate that depends on dfdx, gemm, pulp and cudarc.
//!
//! ```
//! use secateur_tensor::ops::{self, GradientRequest};
//! use secateur_tensor::{Activations, Device, Weight, select_device};
//!
//! select_device(Device::Cpu)?;
//! // y = x · Wᵀ, with one position, two inputs and one output
//! let weight = Weight::new(vec![2.0, -1.0], 1, 2);
//! let x = Activations::new(vec![3.0, 4.0], 1, 2);
//! let request = GradientRequest::for_gradient();
//! let y = ops::linear(x.with_gradient_tape(), &weight, Some(&request));
//! assert_eq!(*y.values(), [2.0]);
//!
//! // dL/dy = 1 gives dL/dx = W and dL/dW = x.
//! let dx = ops::backward(y, Activations::new(vec![1.0], 1, 1), &x);
//! assert_eq!(*dx.values(), [2.0, -1.0]);
//! assert_eq!(request.take_gradient(), Some(vec![3.0, 4.0]));
//! # Ok::<(), secateur_tensor::DeviceError>(())
//! ```

mod activations;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod device_selection;
pub mod gpu;
pub mod gpu_weight_cache;
pub mod ops;
mod pinned_upload;
mod tape;
mod weight;

pub use activations::{Activations, Gradient, PACK_TOKENS};
pub use device::{Device, DeviceError};
pub use device_selection::{
    device_description, memory_limit, resolve_device, select_device, selected_gpu_memory,
    total_gpu_memory,
};
pub use tape::{AnyTape, GradientTape};
pub use weight::{LowRank, Precision, Weight, WeightFile, WeightReadError};
