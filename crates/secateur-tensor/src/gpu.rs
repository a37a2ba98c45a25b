//! dfdx's GPU device of the current thread, and its matrices.
//!
//! Without the feature `cuda` the GPU's operations run on dfdx's CPU device
//! ([`crate::Device::CpuAsGpu`]), so that all of them can be tested on any machine.

use std::cell::RefCell;

use dfdx::dtypes::{AMP, f16};
use dfdx::prelude::{Tensor, TensorFromVec};

/// dfdx's device.
#[cfg(feature = "cuda")]
pub type Gpu = dfdx::tensor::Cuda;
/// dfdx's device.
#[cfg(not(feature = "cuda"))]
pub type Gpu = dfdx::tensor::Cpu;

/// A matrix on the GPU.
pub type GpuMatrix = Tensor<(usize, usize), f32, Gpu>;

/// Half precision; products of two such matrices accumulate in f32.
pub(crate) type Half = AMP<f16>;

/// A matrix in half precision on the GPU.
pub(crate) type GpuHalfMatrix = Tensor<(usize, usize), Half, Gpu>;

thread_local! {
    static SELECTED_DEVICE: RefCell<Option<Gpu>> = const { RefCell::new(None) };
}

/// Sets the device of the current thread. None: the CPU with its own operations.
pub(crate) fn set_device(device: Option<Gpu>) {
    SELECTED_DEVICE.with(|selected| *selected.borrow_mut() = device);
}

/// Whether the current thread computes with the GPU's operations.
pub fn is_selected() -> bool {
    SELECTED_DEVICE.with(|selected| selected.borrow().is_some())
}

/// The device of the current thread.
///
/// # Panics
/// If the thread has none.
pub(crate) fn selected_device() -> Gpu {
    SELECTED_DEVICE.with(|selected| {
        selected
            .borrow()
            .clone()
            .expect("a GPU was selected in this thread")
    })
}

/// Checks that the device can convert to half precision: dfdx compiles the kernel when it is first
/// used.
///
/// # Errors
/// The compiler's message.
pub fn check_half_precision() -> Result<(), String> {
    let round_trip = || -> Vec<f32> {
        let halves: GpuHalfMatrix = matrix_from_vec(vec![0.5], 1, 1).to_dtype();
        halves.to_dtype::<f32>().as_vec()
    };
    // dfdx reports a kernel that does not compile by a panic alone.
    match std::panic::catch_unwind(round_trip) {
        Ok(values) if values == [0.5] => Ok(()),
        Ok(values) => Err(format!("0.5 became {values:?} in half precision")),
        Err(panic) => Err(panic.downcast_ref::<String>().cloned().unwrap_or_default()),
    }
}

/// A matrix from row-major values.
pub(crate) fn matrix_from_vec(values: Vec<f32>, rows: usize, cols: usize) -> GpuMatrix {
    selected_device().tensor_from_vec(values, (rows, cols))
}

/// sum + part; the part alone if there is no sum yet.
pub(crate) fn add_or_start(sum: Option<GpuMatrix>, part: GpuMatrix) -> GpuMatrix {
    match sum {
        Some(sum) => sum + part,
        None => part,
    }
}
