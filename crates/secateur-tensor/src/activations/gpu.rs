//! Activations on a GPU: dfdx tensors, whose operations are dfdx's own. dfdx's tape keeps their order; their gradients lie
//! here, because the ways back are ours: they make only what is asked for, and never with atomic additions.
//!
//! Without the feature `cuda` the same operations run on dfdx's CPU device, so that all of them can be tested anywhere.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use dfdx::dtypes::{AMP, f16};
use dfdx::prelude::{HasShape, NoneTape, Tensor, TensorFromVec, ZerosTensor};

use super::AnyTape;

/// dfdx's device.
#[cfg(feature = "cuda")]
pub type Gpu = dfdx::tensor::Cuda;
/// dfdx's device.
#[cfg(not(feature = "cuda"))]
pub type Gpu = dfdx::tensor::Cpu;

/// A matrix on the GPU.
pub type GpuMatrix = Tensor<(usize, usize), f32, Gpu>;

/// A matrix in half precision; products of two accumulate in f32.
pub type GpuHalfMatrix = Tensor<(usize, usize), Half, Gpu>;

/// Half precision of which products accumulate in f32.
pub type Half = AMP<f16>;

thread_local! {
    static SELECTED_DEVICE: RefCell<Option<Gpu>> = const { RefCell::new(None) };
}

/// Lets this thread compute on a device, or on the CPU's own operations.
pub(crate) fn set_device(device: Option<Gpu>) {
    SELECTED_DEVICE.with(|selected| *selected.borrow_mut() = device);
}

/// Whether this thread computes with dfdx's operations.
pub fn is_selected() -> bool {
    SELECTED_DEVICE.with(|selected| selected.borrow().is_some())
}

/// The device of this thread.
///
/// # Panics
/// Without one.
pub fn selected_device() -> Gpu {
    SELECTED_DEVICE.with(|selected| {
        selected
            .borrow()
            .clone()
            .expect("a device was selected in this thread")
    })
}

/// Whether halves can be made here: the kernel that does it is compiled when it is first used.
///
/// # Errors
/// What the compiler said.
pub fn check_half_precision() -> Result<(), String> {
    let there_and_back = || -> Vec<f32> {
        let halves: GpuHalfMatrix = matrix_from_vec(vec![0.5], 1, 1).to_dtype();
        halves.to_dtype::<f32>().as_vec()
    };
    // dfdx has no other way to say so
    match std::panic::catch_unwind(there_and_back) {
        Ok(values) if values == [0.5] => Ok(()),
        Ok(values) => Err(format!("a half became {values:?}")),
        Err(panic) => Err(panic.downcast_ref::<String>().cloned().unwrap_or_default()),
    }
}

/// Activations, (positions, width).
#[derive(Clone)]
pub struct GpuActivations<T = NoneTape> {
    matrix: GpuMatrix,
    node: GpuTapeNode,
    tape: T,
}

/// The name of activations among the gradients of the tape that runs backward.
#[derive(Clone, Copy)]
pub struct GpuTapeNode(u64);

thread_local! {
    /// The gradients of the tape that runs backward.
    static GRADIENTS: RefCell<HashMap<u64, GpuMatrix>> = RefCell::new(HashMap::new());
}

/// Runs a tape backward, with gradients of its own.
pub fn with_gradient_store<O>(run: impl FnOnce() -> O) -> O {
    /// Forgets them, even where the tape breaks off.
    struct ClearOnDrop;
    impl Drop for ClearOnDrop {
        fn drop(&mut self) {
            GRADIENTS.with_borrow_mut(HashMap::clear);
        }
    }
    let _forget = ClearOnDrop;
    run()
}

/// Activations from row-major values.
pub fn activations_from_vec(values: Vec<f32>, rows: usize, cols: usize) -> GpuActivations {
    matrix_from_vec(values, rows, cols).into()
}

/// A matrix from row-major values.
pub fn matrix_from_vec(values: Vec<f32>, rows: usize, cols: usize) -> GpuMatrix {
    selected_device().tensor_from_vec(values, (rows, cols))
}

/// A sum that begins with its first part.
pub fn add_or_start(sum: Option<GpuMatrix>, part: GpuMatrix) -> GpuMatrix {
    match sum {
        Some(sum) => sum + part,
        None => part,
    }
}

impl From<GpuMatrix> for GpuActivations {
    fn from(matrix: GpuMatrix) -> Self {
        Self {
            matrix,
            node: GpuTapeNode::new(),
            tape: NoneTape,
        }
    }
}

impl GpuActivations {
    pub fn put_tape<T>(self, tape: T) -> GpuActivations<T> {
        GpuActivations {
            matrix: self.matrix,
            node: self.node,
            tape,
        }
    }
}

impl<T> GpuActivations<T> {
    pub fn matrix(&self) -> &GpuMatrix {
        &self.matrix
    }

    /// (positions, width)
    pub fn shape(&self) -> (usize, usize) {
        *self.matrix.shape()
    }

    pub fn node(&self) -> GpuTapeNode {
        self.node
    }

    /// The values, their node, and the tape.
    pub fn into_parts(self) -> (GpuMatrix, GpuTapeNode, T) {
        (self.matrix, self.node, self.tape)
    }

    /// The same activations on an empty tape.
    pub fn with_empty_tape<U: AnyTape>(&self) -> GpuActivations<U> {
        GpuActivations {
            matrix: self.matrix.clone(),
            node: self.node,
            tape: U::default(),
        }
    }
}

impl<T> std::fmt::Debug for GpuActivations<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "activations {:?} on a GPU", self.shape())
    }
}

impl GpuTapeNode {
    fn new() -> Self {
        thread_local! {
            static LAST_ID: Cell<u64> = const { Cell::new(0) };
        }
        LAST_ID.set(LAST_ID.get() + 1);
        Self(LAST_ID.get())
    }

    /// Takes the gradient of activations of this shape; nothing reads it afterwards. What nobody added to is zero.
    pub fn take_gradient(&self, shape: (usize, usize)) -> GpuMatrix {
        GRADIENTS
            .with_borrow_mut(|gradients| gradients.remove(&self.0))
            .unwrap_or_else(|| selected_device().zeros_like(&shape))
    }

    /// Adds to the gradient.
    pub fn add_gradient(&self, part: GpuMatrix) {
        GRADIENTS.with_borrow_mut(|gradients| {
            let sum = add_or_start(gradients.remove(&self.0), part);
            gradients.insert(self.0, sum);
        });
    }
}
