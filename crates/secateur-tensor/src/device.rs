//! The name of a device in pipelines and options, and why one cannot be used.

use std::fmt;
use std::str::FromStr;

use serde::de::Unexpected;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where tensors are kept and operations run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first GPU if the program was built with CUDA and finds one, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU, with its own fused operations.
    Cpu,
    /// The CPU, with the operations of a GPU. Slow; for comparing the two implementations.
    CpuAsGpu,
    /// The GPU with this number, counted from 0 as nvidia-smi does.
    Cuda(usize),
}

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DeviceError {
    #[error("this program was built without CUDA")]
    BuiltWithoutCuda,
    #[error("this program was built with CUDA; `cpu-as-gpu` exists only in one built without it")]
    BuiltOnlyForCuda,
    #[error("{library} cannot be opened: {message}")]
    LibraryNotLoaded {
        library: &'static str,
        message: String,
    },
    #[error("NVIDIA's driver reports no usable GPU: {0}")]
    DriverFailed(String),
    #[error("the GPU exists but cannot be used: {0}")]
    Unusable(String),
    #[error("there is no GPU {number}: the machine has {found}, counted from 0")]
    NoSuchGpu { number: usize, found: usize },
}

impl DeviceError {
    /// What the user can do about it.
    pub fn help(&self) -> &'static str {
        match self {
            Self::BuiltWithoutCuda => "build it with --features cuda, or write device = \"cpu\"",
            Self::BuiltOnlyForCuda => "build it without --features cuda, or write device = \"cpu\"",
            Self::LibraryNotLoaded { .. } => {
                "install NVIDIA's driver and the libraries of CUDA (see the README), or write \
                 device = \"cpu\""
            }
            Self::DriverFailed(_) => "look at what nvidia-smi says, or write device = \"cpu\"",
            Self::Unusable(_) => {
                "the driver may be older than the program's CUDA (13 needs 580), or the GPU than \
                 its CUDA_ARCH; see the README"
            }
            Self::NoSuchGpu { .. } => {
                "write the number of a GPU of this machine, as nvidia-smi counts them"
            }
        }
    }
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
        let expected = "`auto`, `cpu`, `cuda`, `cuda:` and a number, or `cpu-as-gpu`";
        text.parse()
            .map_err(|()| serde::de::Error::invalid_value(Unexpected::Str(&text), &expected))
    }
}
