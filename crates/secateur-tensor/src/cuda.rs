//! NVIDIA's GPUs, as far as dfdx leaves them to us: whether there is one, how much memory it has, and memory of the host that the
//! driver locks.

use cudarc::cublas::sys as cublas;
use cudarc::driver::{result, sys};
use dfdx::prelude::{TensorFromVec, TryAdd, TryMatMul};
use dfdx::tensor::Cuda;

use crate::activations::gpu::GpuMatrix;
use crate::device::DeviceError;

mod libraries;

/// Whether there is a GPU of this number.
pub fn check_gpu(number: usize) -> Result<(), DeviceError> {
    libraries::load_all()?;
    result::init().map_err(driver_error)?;
    let found = result::device::get_count().map_err(driver_error)? as usize;
    if number < found {
        Ok(())
    } else {
        Err(DeviceError::NoSuchGpu {
            asked: number,
            found,
        })
    }
}

/// All memory of a GPU that is there, in bytes.
pub fn total_memory(number: usize) -> Option<u64> {
    let device = result::device::get(number as i32).ok()?;
    #[expect(
        unsafe_code,
        reason = "the driver is asked about a device that it has just named"
    )]
    // SAFETY: as the reason says.
    let bytes = unsafe { result::device::total_mem(device) };
    bytes.ok().map(|bytes| bytes as u64)
}

/// The GPU of this number, which is there, and how many bytes of it this process may take: nine tenths of what is free. A small product is made, so
/// that a GPU which cannot be used is found out now.
pub fn open_gpu(number: usize) -> Result<(Option<Cuda>, u64), DeviceError> {
    let failed = |error: &dyn std::fmt::Debug| DeviceError::Unusable(format!("{error:?}"));
    let device = Cuda::try_build(number, 0).map_err(|error| failed(&error))?;
    retain_freed_memory(number);
    let one: GpuMatrix = device
        .try_tensor_from_vec(vec![1.0], (1, 1))
        .map_err(|error| failed(&error))?;
    let two = one
        .clone()
        .try_add(one.clone())
        .and_then(|two| two.try_matmul(one))
        .map_err(|error| failed(&error))?;
    if two.as_vec() != [2.0] {
        return Err(DeviceError::Unusable("1 + 1 is not 2 there".to_owned()));
    }
    let (free, _) = result::mem_get_info().map_err(driver_error)?;
    Ok((Some(device), free as u64 / 10 * 9))
}

/// Has the driver keep memory that is given back for the next who asks: by default it returns it to the system whenever anybody
/// waits for the GPU.
fn retain_freed_memory(number: usize) {
    let Ok(device) = result::device::get(number as i32) else {
        return;
    };
    let (mut pool, mut all) = (std::ptr::null_mut(), u64::MAX);
    #[expect(unsafe_code, reason = "the driver is told how to keep memory")]
    // SAFETY: the pool is the device's own, and the attribute is a number of 64 bits.
    let kept = unsafe {
        match sys::cuDeviceGetDefaultMemPool(&raw mut pool, device) {
            sys::CUresult::CUDA_SUCCESS => {
                let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
                sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut all).cast())
            }
            refused => refused,
        }
    };
    if kept != sys::CUresult::CUDA_SUCCESS {
        tracing::debug!("the driver keeps no memory ({kept:?}); allocations take longer");
    }
}

/// The GPU's name and the version of cuBLAS, which decide the last bits of sums.
pub fn gpu_description(number: usize) -> String {
    let mut name = [0u8; 128];
    let mut version = [0; 3];
    let parts = [
        cublas::libraryPropertyType::MAJOR_VERSION,
        cublas::libraryPropertyType::MINOR_VERSION,
        cublas::libraryPropertyType::PATCH_LEVEL,
    ];
    if let Ok(device) = result::device::get(number as i32) {
        #[expect(unsafe_code, reason = "the driver and cuBLAS are asked who they are")]
        // SAFETY: each writes into memory of the size that it is told, and no further.
        unsafe {
            sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32 - 1, device);
            for (part, number) in parts.into_iter().zip(&mut version) {
                cublas::cublasGetProperty(part, &raw mut *number);
            }
        }
    }
    let name = std::ffi::CStr::from_bytes_until_nul(&name).map_or_else(
        |_| String::new(),
        |name| name.to_string_lossy().into_owned(),
    );
    format!(
        "{name}, cuBLAS {}.{}.{}",
        version[0], version[1], version[2]
    )
}

fn driver_error(error: result::DriverError) -> DeviceError {
    DeviceError::DriverFailed(format!("{error:?}"))
}

/// Has the driver lock a piece of host memory where it lies. Copies from memory that it does not lock are slower, and that is all.
pub fn lock<E>(memory: &[E]) {
    #[expect(unsafe_code, reason = "the driver is told of memory that it may read")]
    // SAFETY: the memory lives until `unlock`, which whoever moves or frees it calls before.
    let locked = unsafe {
        sys::cuMemHostRegister_v2(memory.as_ptr().cast_mut().cast(), size_of_val(memory), 0)
    };
    if locked != sys::CUresult::CUDA_SUCCESS {
        tracing::debug!("host memory cannot be locked ({locked:?}); copies to the GPU take longer");
    }
}

/// Gives a piece of memory free that was locked.
pub fn unlock<E>(memory: &[E]) {
    if memory.is_empty() {
        return;
    }
    #[expect(
        unsafe_code,
        reason = "the driver is told of memory that it may read no longer"
    )]
    // SAFETY: of memory that was never locked the driver says so, and nothing happens.
    let unlocked = unsafe { sys::cuMemHostUnregister(memory.as_ptr().cast_mut().cast()) };
    if unlocked != sys::CUresult::CUDA_SUCCESS {
        tracing::debug!("host memory was not locked ({unlocked:?})");
    }
}
