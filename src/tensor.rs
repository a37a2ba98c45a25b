//! The device, activations, and how weights are held. The only generic in the models is the tape.

use std::borrow::Cow;

use dfdx::prelude::*;

#[cfg(not(feature = "cuda"))]
mod activations;
#[cfg(not(feature = "cuda"))]
pub use activations::{Hidden, Kept, Node};

mod weight;
pub use weight::{LowRank, Unreadable, Weight, WeightFile};

/// The device of this build: the processor, or one NVIDIA GPU with the feature `cuda`.
#[cfg(not(feature = "cuda"))]
pub type Device = dfdx::tensor::Cpu;
/// The device of this build: the processor, or one NVIDIA GPU with the feature `cuda`.
#[cfg(feature = "cuda")]
pub type Device = dfdx::tensor::Cuda;

/// Activations, (positions, width).
#[cfg(feature = "cuda")]
pub type Hidden<T = NoneTape> = Tensor<(usize, usize), f32, Device, T>;

/// A tape that records; the other is [`NoneTape`].
pub type Recording = OwnedTape<f32, Device>;

/// What the models ask of a tape.
pub trait AnyTape: Tape<f32, Device> + Merge<Self> + 'static {}
impl<T: Tape<f32, Device> + Merge<T> + 'static> AnyTape for T {}

/// What may cross threads: on the CPU a walk moves into the pool; dfdx's CUDA device stays in one thread.
#[cfg(not(feature = "cuda"))]
pub trait Threaded: Send {}
#[cfg(not(feature = "cuda"))]
impl<T: Send> Threaded for T {}
/// What may cross threads: nothing needs to, dfdx's CUDA device stays in one.
#[cfg(feature = "cuda")]
pub trait Threaded {}
#[cfg(feature = "cuda")]
impl<T> Threaded for T {}

/// The device of this process.
pub fn device() -> Device {
    thread_local! {
        static DEVICE: Device = Device::default();
    }
    DEVICE.with(Device::clone)
}

/// Activations from row-major values, without a copy on the CPU.
pub fn hidden(values: Vec<f32>, rows: usize, cols: usize) -> Hidden {
    #[cfg(not(feature = "cuda"))]
    {
        Hidden::new(values, rows, cols)
    }
    #[cfg(feature = "cuda")]
    {
        device().tensor_from_vec(values, (rows, cols))
    }
}

/// The numbers themselves: borrowed on the CPU, copied from a GPU.
pub fn values<T>(x: &Hidden<T>) -> Cow<'_, [f32]> {
    #[cfg(not(feature = "cuda"))]
    {
        Cow::Borrowed(x.values())
    }
    #[cfg(feature = "cuda")]
    {
        Cow::Owned(x.as_vec())
    }
}

/// Numbers of each position.
pub fn width<T>(x: &Hidden<T>) -> usize {
    x.shape().1
}

/// The same activations where a tape begins.
pub fn recorded(x: &Hidden) -> Hidden<Recording> {
    x.leaky_trace()
}

/// Runs `work` where the operations find all cores at once: in the pool, so that none of them has to wake it.
pub fn on_all_cores<O: Threaded>(work: impl FnOnce() -> O + Threaded) -> O {
    #[cfg(not(feature = "cuda"))]
    {
        rayon::scope(|_| work())
    }
    #[cfg(feature = "cuda")]
    {
        work()
    }
}

/// Tokens that are worked on at once: on the CPU enough that a product of matrices pays for the way to memory, and few
/// enough that a block's activations stay small; on a GPU one sequence. Sums are taken pack by pack, so results depend on it.
pub const PACK: usize = if cfg!(feature = "cuda") { 1 } else { 2048 };
