//! NVIDIA's GPUs, as far as dfdx leaves them to us: whether there is one, how much memory it has, and memory of the host that the
//! driver locks.

use cudarc::driver::{result, sys};
use dfdx::tensor::Cuda;

use super::device::NoDevice;

mod libraries;

/// Whether there is a GPU of this number.
pub fn look_for(number: usize) -> Result<(), NoDevice> {
    libraries::open()?;
    result::init().map_err(refused)?;
    let found = result::device::get_count().map_err(refused)? as usize;
    if number < found { Ok(()) } else { Err(NoDevice::Missing { asked: number, found }) }
}

/// All memory of a GPU that is there, in bytes.
pub fn total_memory(number: usize) -> Option<u64> {
    let device = result::device::get(number as i32).ok()?;
    #[expect(unsafe_code, reason = "the driver is asked about a device that it has just named")]
    // SAFETY: as the reason says.
    let bytes = unsafe { result::device::total_mem(device) };
    bytes.ok().map(|bytes| bytes as u64)
}

/// The GPU of this number, and how many bytes of it this process may take: nine tenths of what is free.
pub fn open(number: usize) -> Result<(Option<Cuda>, u64), NoDevice> {
    look_for(number)?;
    let device = Cuda::try_build(number, 0).map_err(|error| NoDevice::Driver(format!("{error:?}")))?;
    let (free, _) = result::mem_get_info().map_err(refused)?;
    Ok((Some(device), free as u64 / 10 * 9))
}

fn refused(error: result::DriverError) -> NoDevice {
    NoDevice::Driver(format!("{error:?}"))
}

/// Has the driver lock a piece of host memory where it lies. Copies from memory that it does not lock are slower, and that is all.
pub fn lock<E>(memory: &[E]) {
    #[expect(unsafe_code, reason = "the driver is told of memory that it may read")]
    // SAFETY: the memory lives until `unlock`, which whoever moves or frees it calls before.
    let locked = unsafe { sys::cuMemHostRegister_v2(memory.as_ptr().cast_mut().cast(), size_of_val(memory), 0) };
    if locked != sys::CUresult::CUDA_SUCCESS {
        tracing::debug!("host memory cannot be locked ({locked:?}); copies to the GPU take longer");
    }
}

/// Gives a piece of memory free that was locked.
pub fn unlock<E>(memory: &[E]) {
    if memory.is_empty() {
        return;
    }
    #[expect(unsafe_code, reason = "the driver is told of memory that it may read no longer")]
    // SAFETY: of memory that was never locked the driver says so, and nothing happens.
    let unlocked = unsafe { sys::cuMemHostUnregister(memory.as_ptr().cast_mut().cast()) };
    if unlocked != sys::CUresult::CUDA_SUCCESS {
        tracing::debug!("host memory was not locked ({unlocked:?})");
    }
}
