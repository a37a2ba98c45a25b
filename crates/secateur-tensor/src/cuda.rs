//! Calls of NVIDIA's driver that dfdx does not offer: finding a GPU, measuring its memory, pinning
//! host memory.

use std::ffi::CStr;

use cudarc::cublas::sys as cublas;
use cudarc::driver::{result, sys};
use dfdx::prelude::{TensorFromVec, TryAdd, TryMatMul};
use dfdx::tensor::Cuda;

use crate::device::DeviceError;
use crate::gpu::GpuMatrix;

mod libraries;

/// Checks that there is a GPU of this number.
pub(crate) fn check_gpu(number: usize) -> Result<(), DeviceError> {
    libraries::load_all()?;
    result::init().map_err(driver_error)?;
    let found = result::device::get_count().map_err(driver_error)? as usize;
    if number < found {
        Ok(())
    } else {
        Err(DeviceError::NoSuchGpu { number, found })
    }
}

/// All memory of a GPU in bytes. [`check_gpu`] must have succeeded.
pub(crate) fn total_memory(number: usize) -> Option<u64> {
    let device = result::device::get(number as i32).ok()?;
    #[expect(unsafe_code, reason = "reads an attribute of a device of the driver")]
    // SAFETY: the driver has just returned the device.
    let bytes = unsafe { result::device::total_mem(device) };
    bytes.ok().map(|bytes| bytes as u64)
}

/// Opens the GPU of this number, and returns the bytes of its memory that this process may use:
/// nine tenths of what is free. A small product is computed, so that a GPU that cannot be used is
/// found now.
pub(crate) fn open_gpu(number: usize) -> Result<(Option<Cuda>, u64), DeviceError> {
    let unusable = |error: &dyn std::fmt::Debug| DeviceError::Unusable(format!("{error:?}"));
    let device = Cuda::try_build(number, 0).map_err(|error| unusable(&error))?;
    retain_freed_memory(number);
    let one: GpuMatrix = device
        .try_tensor_from_vec(vec![1.0], (1, 1))
        .map_err(|error| unusable(&error))?;
    let two = one
        .clone()
        .try_add(one.clone())
        .and_then(|sum| sum.try_matmul(one))
        .map_err(|error| unusable(&error))?;
    if two.as_vec() != [2.0] {
        return Err(DeviceError::Unusable(format!(
            "it computes (1 + 1) · 1 = {:?}",
            two.as_vec()
        )));
    }
    let (free, _) = result::mem_get_info().map_err(driver_error)?;
    Ok((Some(device), free as u64 / 10 * 9))
}

/// Lets the driver keep freed memory for the next allocation. By default it returns the memory to
/// the system at each synchronisation, and allocating it again takes long.
fn retain_freed_memory(number: usize) {
    let Ok(device) = result::device::get(number as i32) else {
        return;
    };
    let (mut pool, mut threshold) = (std::ptr::null_mut(), u64::MAX);
    #[expect(unsafe_code, reason = "sets an attribute of the device's memory pool")]
    // SAFETY: the driver returns the device's own pool, and the attribute is a 64-bit number.
    let status = unsafe {
        match sys::cuDeviceGetDefaultMemPool(&raw mut pool, device) {
            sys::CUresult::CUDA_SUCCESS => {
                let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
                sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast())
            }
            error => error,
        }
    };
    if status != sys::CUresult::CUDA_SUCCESS {
        tracing::debug!(
            "the driver does not keep freed memory ({status:?}); allocations take longer"
        );
    }
}

/// The GPU's name and the version of cuBLAS, which decide the last bits of sums.
pub(crate) fn gpu_description(number: usize) -> String {
    let mut name_buffer = [0u8; 128];
    let mut version = [0; 3];
    let version_parts = [
        cublas::libraryPropertyType::MAJOR_VERSION,
        cublas::libraryPropertyType::MINOR_VERSION,
        cublas::libraryPropertyType::PATCH_LEVEL,
    ];
    if let Ok(device) = result::device::get(number as i32) {
        #[expect(unsafe_code, reason = "reads properties of the driver and of cuBLAS")]
        // SAFETY: each call writes into memory of the size that it is given, and no further.
        unsafe {
            let name_len = name_buffer.len() as i32 - 1;
            sys::cuDeviceGetName(name_buffer.as_mut_ptr().cast(), name_len, device);
            for (part, number) in version_parts.into_iter().zip(&mut version) {
                cublas::cublasGetProperty(part, &raw mut *number);
            }
        }
    }
    let name = CStr::from_bytes_until_nul(&name_buffer)
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let [major, minor, patch] = version;
    format!("{name}, cuBLAS {major}.{minor}.{patch}")
}

fn driver_error(error: result::DriverError) -> DeviceError {
    DeviceError::DriverFailed(format!("{error:?}"))
}

/// Pins host memory. If the driver returns an error, copies from the memory are slower, and nothing
/// else changes.
pub(crate) fn pin<E>(memory: &[E]) {
    #[expect(unsafe_code, reason = "registers memory with the driver")]
    // SAFETY: the owner of the memory calls `unpin` before it moves or frees it.
    let status = unsafe {
        sys::cuMemHostRegister_v2(memory.as_ptr().cast_mut().cast(), size_of_val(memory), 0)
    };
    if status != sys::CUresult::CUDA_SUCCESS {
        tracing::debug!("host memory cannot be pinned ({status:?}); copies to the GPU take longer");
    }
}

/// Unpins host memory. Empty memory was never pinned.
pub(crate) fn unpin<E>(memory: &[E]) {
    if memory.is_empty() {
        return;
    }
    #[expect(unsafe_code, reason = "unregisters memory from the driver")]
    // SAFETY: if the memory was not registered the driver returns an error and does nothing.
    let status = unsafe { sys::cuMemHostUnregister(memory.as_ptr().cast_mut().cast()) };
    if status != sys::CUresult::CUDA_SUCCESS {
        tracing::debug!("host memory was not pinned ({status:?})");
    }
}
