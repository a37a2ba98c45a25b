//! Which device computes: the processor, or a GPU.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;

use serde::de::Unexpected;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{gpu, resident};

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
pub enum NoDevice {
    #[error("this program was built without CUDA")]
    NotBuilt,
    #[error("this program was built for CUDA: the operations of its GPU run on no processor")]
    OnlyGpu,
    #[error("{library} cannot be opened: {message}")]
    Library { library: &'static str, message: String },
    #[error("the driver has no GPU to offer: {0}")]
    Driver(String),
    #[error("it is there and cannot be used: {0}")]
    Unusable(String),
    #[error("there is no GPU {asked}: the machine has {found}, counted from 0")]
    Missing { asked: usize, found: usize },
}

impl NoDevice {
    /// What to do about it.
    pub fn help(&self) -> &'static str {
        match self {
            Self::NotBuilt => "build it with --features cuda, or write device = \"cpu\"",
            Self::OnlyGpu => "build it without --features cuda, or write device = \"cpu\"",
            Self::Library { .. } => {
                "install NVIDIA's driver and the libraries of CUDA (see the README), or write device = \"cpu\""
            }
            Self::Driver(_) => "look at what nvidia-smi says, or write device = \"cpu\"",
            Self::Unusable(_) => {
                "the driver may be older than the program's CUDA (13 asks for 580), or the GPU than its CUDA_ARCH; see the README"
            }
            Self::Missing { .. } => "write the number of a GPU that is there, as nvidia-smi counts them",
        }
    }
}

thread_local! {
    static MEMORY: Cell<u64> = const { Cell::new(u64::MAX) };
    static WHOLE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// All bytes of the selected GPU, whoever takes them; None on the processor.
pub fn whole_memory() -> Option<u64> {
    WHOLE.get()
}

/// Bytes of the selected GPU that this process may take.
pub fn device_memory() -> u64 {
    MEMORY.get()
}

/// The device that is meant, which is there: `auto` is a GPU if there is one, else the processor.
///
/// # Errors
/// If there is no such device.
pub fn find(device: Device) -> Result<Device, NoDevice> {
    match device {
        Device::Auto => Ok(look_for(0).map_or(Device::Cpu, |()| Device::Cuda(0))),
        Device::Cuda(number) => look_for(number).map(|()| device),
        Device::CpuAsGpu if cfg!(feature = "cuda") => Err(NoDevice::OnlyGpu),
        Device::Cpu | Device::CpuAsGpu => Ok(device),
    }
}

/// What decides the last bits of a GPU's sums, as far as it tells; None for the processor.
pub fn description(device: Device) -> Option<String> {
    match find(device) {
        Ok(Device::Cuda(number)) => Some(describe(number)),
        _ => None,
    }
}

/// All memory of a GPU, in bytes; None for the processor.
pub fn memory_of(device: Device) -> Option<u64> {
    match find(device) {
        Ok(Device::Cuda(number)) => total_memory(number),
        _ => None,
    }
}

/// Lets this thread compute on a device.
///
/// # Errors
/// If there is no such device, or it cannot be used.
pub fn select(device: Device) -> Result<(), NoDevice> {
    let found = find(device)?;
    let (opened, memory) = match found {
        Device::Cuda(number) => open(number)?,
        Device::CpuAsGpu => (Some(gpu::Gpu::default()), u64::MAX),
        Device::Auto | Device::Cpu => (None, u64::MAX),
    };
    gpu::select(opened);
    MEMORY.set(memory);
    WHOLE.set(memory_of(found));
    // the rest is for activations
    resident::set_room(memory / 5 * 4);
    Ok(())
}

#[cfg(feature = "cuda")]
use super::cuda::{describe, look_for, open, total_memory};

#[cfg(not(feature = "cuda"))]
fn look_for(_: usize) -> Result<(), NoDevice> {
    Err(NoDevice::NotBuilt)
}

#[cfg(not(feature = "cuda"))]
fn describe(_: usize) -> String {
    String::new()
}

#[cfg(not(feature = "cuda"))]
fn total_memory(_: usize) -> Option<u64> {
    None
}

#[cfg(not(feature = "cuda"))]
fn open(_: usize) -> Result<(Option<gpu::Gpu>, u64), NoDevice> {
    Err(NoDevice::NotBuilt)
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
            _ => text.strip_prefix("cuda:").and_then(|number| number.parse().ok()).map(Self::Cuda).ok_or(()),
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
        text.parse().map_err(|()| serde::de::Error::invalid_value(Unexpected::Str(&text), &known))
    }
}
