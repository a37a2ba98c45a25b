//! Where tensors live, activations there, and how weights are held. The only generic in the models is the tape.

use std::borrow::Cow;

use dfdx::prelude::{Cpu, Merge, NoneTape, OwnedTape, Tape};

pub mod cpu;
pub mod gpu;

/// A tape that records; the other is [`NoneTape`]. dfdx's tape keeps the order of the operations on either device.
pub type GradientTape = OwnedTape<f32, Cpu>;

/// What the models ask of a tape.
pub trait AnyTape: Tape<f32, Cpu> + Merge<Self> + 'static {}
impl<T: Tape<f32, Cpu> + Merge<T> + 'static> AnyTape for T {}

/// Activations, (positions, width), where the operations of this thread are carried out.
#[derive(Clone, Debug)]
pub enum Activations<T = NoneTape> {
    Cpu(cpu::CpuActivations<T>),
    Gpu(gpu::GpuActivations<T>),
}

/// A gradient, of its weight's shape.
pub type Gradient = Activations;

impl Activations {
    /// Activations from row-major values.
    ///
    /// # Panics
    /// If `values` does not hold `rows * cols` numbers.
    pub fn new(values: Vec<f32>, rows: usize, cols: usize) -> Self {
        if gpu::is_selected() {
            gpu::activations_from_vec(values, rows, cols).into()
        } else {
            cpu::activations_from_vec(values, rows, cols).into()
        }
    }

    /// The same activations where a tape begins.
    pub fn with_gradient_tape(&self) -> Activations<GradientTape> {
        self.with_empty_tape()
    }

    /// The values, row-major: without a copy where the CPU's memory holds them and nobody else does.
    pub fn into_vec(self) -> Vec<f32> {
        match self {
            Self::Cpu(x) => x.into_vec(),
            Self::Gpu(x) => x.matrix().as_vec(),
        }
    }
}

impl<T> Activations<T> {
    /// (positions, width)
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Cpu(x) => *x.shape(),
            Self::Gpu(x) => x.shape(),
        }
    }

    /// Numbers of each position.
    pub fn width(&self) -> usize {
        self.shape().1
    }

    /// The numbers themselves: borrowed on the CPU, copied from a GPU.
    pub fn values(&self) -> Cow<'_, [f32]> {
        match self {
            Self::Cpu(x) => Cow::Borrowed(x.values()),
            Self::Gpu(x) => Cow::Owned(x.matrix().as_vec()),
        }
    }

    /// The same activations on an empty tape.
    pub fn with_empty_tape<U: AnyTape>(&self) -> Activations<U> {
        match self {
            Self::Cpu(x) => Activations::Cpu(x.with_empty_tape()),
            Self::Gpu(x) => Activations::Gpu(x.with_empty_tape()),
        }
    }

    /// In the CPU's memory.
    pub(crate) fn into_cpu(self) -> cpu::CpuActivations<T> {
        match self {
            Self::Cpu(x) => x,
            Self::Gpu(_) => unreachable!("what an operation works on lies in one place"),
        }
    }

    /// On the GPU.
    pub(crate) fn into_gpu(self) -> gpu::GpuActivations<T> {
        match self {
            Self::Gpu(x) => x,
            Self::Cpu(_) => unreachable!("what an operation works on lies in one place"),
        }
    }
}

impl<T> From<cpu::CpuActivations<T>> for Activations<T> {
    fn from(x: cpu::CpuActivations<T>) -> Self {
        Self::Cpu(x)
    }
}

impl<T> From<gpu::GpuActivations<T>> for Activations<T> {
    fn from(x: gpu::GpuActivations<T>) -> Self {
        Self::Gpu(x)
    }
}

/// Values alone.
impl PartialEq for Activations {
    fn eq(&self, other: &Self) -> bool {
        self.shape() == other.shape() && self.values() == other.values()
    }
}

/// Tokens that are worked on at once: enough that a product of matrices pays for the way to memory, and few enough that a
/// block's activations stay small. Sums are taken pack by pack, so results depend on it.
pub const PACK_TOKENS: usize = 2048;
