//! Finds the device that a run names, and makes it the device of the current thread.

use std::cell::Cell;

use crate::device::{Device, DeviceError};
use crate::{gpu, gpu_weight_cache};

thread_local! {
    static MEMORY_LIMIT: Cell<u64> = const { Cell::new(u64::MAX) };
    static TOTAL_MEMORY: Cell<Option<u64>> = const { Cell::new(None) };
}

/// All memory of the selected GPU in bytes, used or not. None on the CPU.
pub fn selected_gpu_memory() -> Option<u64> {
    TOTAL_MEMORY.get()
}

/// The bytes of the selected GPU's memory that this process may use. `u64::MAX` on the CPU.
pub fn memory_limit() -> u64 {
    MEMORY_LIMIT.get()
}

/// The device to use: `Auto` becomes GPU 0 if there is one, otherwise the CPU.
///
/// # Errors
/// If there is no such device.
pub fn resolve_device(device: Device) -> Result<Device, DeviceError> {
    match device {
        Device::Auto => Ok(check_gpu(0).map_or(Device::Cpu, |()| Device::Cuda(0))),
        Device::Cuda(number) => check_gpu(number).map(|()| device),
        Device::CpuAsGpu if cfg!(feature = "cuda") => Err(DeviceError::BuiltOnlyForCuda),
        Device::Cpu | Device::CpuAsGpu => Ok(device),
    }
}

/// The GPU's name and the version of cuBLAS: results may differ in their last bits between two GPUs
/// whose descriptions differ. None for the CPU.
pub fn device_description(device: Device) -> Option<String> {
    match resolve_device(device) {
        Ok(Device::Cuda(number)) => Some(gpu_description(number)),
        _ => None,
    }
}

/// All memory of a GPU in bytes. None for the CPU.
pub fn total_gpu_memory(device: Device) -> Option<u64> {
    match resolve_device(device) {
        Ok(Device::Cuda(number)) => total_memory(number),
        _ => None,
    }
}

/// Makes a device that of the current thread.
///
/// # Errors
/// If there is no such device, or it cannot be used.
pub fn select_device(device: Device) -> Result<(), DeviceError> {
    let resolved = resolve_device(device)?;
    let (opened, memory) = match resolved {
        Device::Cuda(number) => open_gpu(number)?,
        Device::CpuAsGpu => (Some(gpu::Gpu::default()), u64::MAX),
        Device::Auto | Device::Cpu => (None, u64::MAX),
    };
    gpu::set_device(opened);
    MEMORY_LIMIT.set(memory);
    TOTAL_MEMORY.set(total_gpu_memory(resolved));
    // Four fifths of the memory are for weights that stay, the rest is for activations.
    gpu_weight_cache::set_capacity(memory / 5 * 4);
    Ok(())
}

#[cfg(feature = "cuda")]
use crate::cuda::{check_gpu, gpu_description, open_gpu, total_memory};

#[cfg(not(feature = "cuda"))]
fn check_gpu(_: usize) -> Result<(), DeviceError> {
    Err(DeviceError::BuiltWithoutCuda)
}

#[cfg(not(feature = "cuda"))]
fn gpu_description(_: usize) -> String {
    String::new()
}

#[cfg(not(feature = "cuda"))]
fn total_memory(_: usize) -> Option<u64> {
    None
}

#[cfg(not(feature = "cuda"))]
fn open_gpu(_: usize) -> Result<(Option<gpu::Gpu>, u64), DeviceError> {
    Err(DeviceError::BuiltWithoutCuda)
}
