//! Which device computes: the processor, or a GPU.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;

use serde::de::Unexpected;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::activations::gpu;
use crate::resident;

/// Where tensors live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// A GPU if the program was built for one and finds it, else the processor.
    #[default]
    Auto,
    /// The processor, with operations of its own.
    Cpu,
    /// The processor, with the operations of a GPU: slow, and there for comparison.
    CpuAsGpu,
    /// The GPU of this number.
    Cuda(usize),
}

/// There is no such device.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DeviceError {
    #[error("this program was built without CUDA")]
    BuiltWithoutCuda,
    #[error("this program was built for CUDA: the operations of its GPU run on no processor")]
    BuiltOnlyForCuda,
    #[error("{library} cannot be opened: {message}")]
    LibraryNotLoaded {
        library: &'static str,
        message: String,
    },
    #[error("the driver has no GPU to offer: {0}")]
    DriverFailed(String),
    #[error("it is there and cannot be used: {0}")]
    Unusable(String),
    #[error("there is no GPU {asked}: the machine has {found}, counted from 0")]
    NoSuchGpu { asked: usize, found: usize },
}

impl DeviceError {
    /// What to do about it.
    pub fn help(&self) -> &'static str {
        match self {
            Self::BuiltWithoutCuda => "build it with --features cuda, or write device = \"cpu\"",
            Self::BuiltOnlyForCuda => "build it without --features cuda, or write device = \"cpu\"",
            Self::LibraryNotLoaded { .. } => {
                "install NVIDIA's driver and the libraries of CUDA (see the README), or write device = \"cpu\""
            }
            Self::DriverFailed(_) => "look at what nvidia-smi says, or write device = \"cpu\"",
            Self::Unusable(_) => {
                "the driver may be older than the program's CUDA (13 asks for 580), or the GPU than its CUDA_ARCH; see the README"
            }
            Self::NoSuchGpu { .. } => {
                "write the number of a GPU that is there, as nvidia-smi counts them"
            }
        }
    }
}

thread_local! {
    static MEMORY_LIMIT: Cell<u64> = const { Cell::new(u64::MAX) };
    static TOTAL_MEMORY: Cell<Option<u64>> = const { Cell::new(None) };
}

/// All bytes of the selected GPU, whoever takes them; None on the processor.
pub fn selected_gpu_memory() -> Option<u64> {
    TOTAL_MEMORY.get()
}

/// Bytes of the selected GPU that this process may take.
pub fn memory_limit() -> u64 {
    MEMORY_LIMIT.get()
}

/// The device that is meant, which is there: `auto` is a GPU if there is one, else the processor.
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

/// What decides the last bits of a GPU's sums, as far as it tells; None for the processor.
pub fn device_description(device: Device) -> Option<String> {
    match resolve_device(device) {
        Ok(Device::Cuda(number)) => Some(gpu_description(number)),
        _ => None,
    }
}

/// All memory of a GPU, in bytes; None for the processor.
pub fn total_gpu_memory(device: Device) -> Option<u64> {
    match resolve_device(device) {
        Ok(Device::Cuda(number)) => total_memory(number),
        _ => None,
    }
}

/// Lets this thread compute on a device.
///
/// # Errors
/// If there is no such device, or it cannot be used.
pub fn select_device(device: Device) -> Result<(), DeviceError> {
    let found = resolve_device(device)?;
    let (opened, memory) = match found {
        Device::Cuda(number) => open_gpu(number)?,
        Device::CpuAsGpu => (Some(gpu::Gpu::default()), u64::MAX),
        Device::Auto | Device::Cpu => (None, u64::MAX),
    };
    gpu::set_device(opened);
    MEMORY_LIMIT.set(memory);
    TOTAL_MEMORY.set(total_gpu_memory(found));
    // the rest is for activations
    resident::set_capacity(memory / 5 * 4);
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

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::CpuAsGpu => f.write_str("cpu-as-gpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for Device {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cpu-as-gpu" => Ok(Self::CpuAsGpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or(()),
        }
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let known = "`auto`, `cpu`, `cuda`, `cuda:` and a number, or `cpu-as-gpu`";
        text.parse()
            .map_err(|()| serde::de::Error::invalid_value(Unexpected::Str(&text), &known))
    }
}
