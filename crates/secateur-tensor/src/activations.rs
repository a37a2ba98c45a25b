//! Activations on the device of the current thread.

use std::borrow::Cow;

use dfdx::prelude::NoneTape;

use crate::gpu;
use crate::tape::{AnyTape, GradientTape};

mod cpu_activations;
mod gpu_activations;

pub(crate) use cpu_activations::{CpuActivations, SavedActivations, dfdx_cpu};
pub(crate) use gpu_activations::{GpuActivations, with_gradient_store};

/// Tokens of a pack, the unit of work of one operation. Larger packs let matrix products read each
/// weight from memory less often; smaller packs keep a block's activations small. Gradients are
/// added pack by pack, so results depend on this number.
pub const PACK_TOKENS: usize = 2048;

/// Activations, (positions, width), in the memory of the CPU or of the GPU.
#[derive(Clone, Debug)]
pub enum Activations<T = NoneTape> {
    Cpu(CpuActivations<T>),
    Gpu(GpuActivations<T>),
}

/// The gradient of a weight, of the weight's shape.
pub type Gradient = Activations;

impl Activations {
    /// Activations from row-major values, on the device of the current thread.
    ///
    /// # Panics
    /// If `values` does not hold `rows * cols` numbers.
    pub fn new(values: Vec<f32>, rows: usize, cols: usize) -> Self {
        if gpu::is_selected() {
            GpuActivations::from_vec(values, rows, cols).into()
        } else {
            CpuActivations::from_vec(values, rows, cols).into()
        }
    }

    /// The same activations with a new recording tape.
    pub fn with_gradient_tape(&self) -> Activations<GradientTape> {
        self.with_empty_tape()
    }

    /// The values, row-major. Copies only if the values are on a GPU or shared.
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

    /// Elements of each position.
    pub fn width(&self) -> usize {
        self.shape().1
    }

    /// The values, row-major: borrowed on the CPU, copied from a GPU.
    pub fn values(&self) -> Cow<'_, [f32]> {
        match self {
            Self::Cpu(x) => Cow::Borrowed(x.values()),
            Self::Gpu(x) => Cow::Owned(x.matrix().as_vec()),
        }
    }

    /// The same activations with an empty tape. If several operations read the same activations,
    /// each gets such a copy; the gradients from all of them are added. The tapes are merged by the
    /// operations that take their outputs together.
    pub fn with_empty_tape<U: AnyTape>(&self) -> Activations<U> {
        match self {
            Self::Cpu(x) => Activations::Cpu(x.with_empty_tape()),
            Self::Gpu(x) => Activations::Gpu(x.with_empty_tape()),
        }
    }

    /// For an operation whose first operand is on the CPU.
    pub(crate) fn into_cpu(self) -> CpuActivations<T> {
        match self {
            Self::Cpu(x) => x,
            Self::Gpu(_) => unreachable!("all operands of an operation are on one device"),
        }
    }

    /// For an operation whose first operand is on the GPU.
    pub(crate) fn into_gpu(self) -> GpuActivations<T> {
        match self {
            Self::Gpu(x) => x,
            Self::Cpu(_) => unreachable!("all operands of an operation are on one device"),
        }
    }
}

impl<T> From<CpuActivations<T>> for Activations<T> {
    fn from(x: CpuActivations<T>) -> Self {
        Self::Cpu(x)
    }
}

impl<T> From<GpuActivations<T>> for Activations<T> {
    fn from(x: GpuActivations<T>) -> Self {
        Self::Gpu(x)
    }
}

/// Compares shapes and values, not tapes.
impl PartialEq for Activations {
    fn eq(&self, other: &Self) -> bool {
        self.shape() == other.shape() && self.values() == other.values()
    }
}
