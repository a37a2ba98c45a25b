//! Activations on a GPU: dfdx tensors. dfdx's tape keeps the order of the backward steps. The
//! gradients are kept here and not in dfdx's `Gradients`, because the backward steps are this
//! crate's own: dfdx's would compute the gradients of frozen weights too, and add with atomic
//! operations.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use dfdx::prelude::{HasShape, NoneTape, ZerosTensor};

use crate::gpu::{GpuMatrix, add_or_start, matrix_from_vec, selected_device};
use crate::tape::AnyTape;

/// Activations, (positions, width).
#[derive(Clone)]
pub struct GpuActivations<T = NoneTape> {
    matrix: GpuMatrix,
    node: GpuTapeNode,
    tape: T,
}

/// The key of activations among the gradients of the tape that runs backward.
#[derive(Clone, Copy)]
pub(crate) struct GpuTapeNode(u64);

thread_local! {
    /// The gradients of the tape that runs backward.
    static GRADIENTS: RefCell<HashMap<u64, GpuMatrix>> = RefCell::new(HashMap::new());
}

/// Calls `run`, which runs a tape backward, and drops the gradients that remain in the store at its
/// end.
pub(crate) fn with_gradient_store<O>(run: impl FnOnce() -> O) -> O {
    /// Clears the gradients even if a backward step panics.
    struct ClearOnDrop;
    impl Drop for ClearOnDrop {
        fn drop(&mut self) {
            GRADIENTS.with_borrow_mut(HashMap::clear);
        }
    }
    let _clear = ClearOnDrop;
    run()
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
    /// Activations from row-major values.
    pub(crate) fn from_vec(values: Vec<f32>, rows: usize, cols: usize) -> Self {
        matrix_from_vec(values, rows, cols).into()
    }

    pub(crate) fn put_tape<T>(self, tape: T) -> GpuActivations<T> {
        GpuActivations {
            matrix: self.matrix,
            node: self.node,
            tape,
        }
    }
}

impl<T> GpuActivations<T> {
    pub(crate) fn matrix(&self) -> &GpuMatrix {
        &self.matrix
    }

    /// (positions, width)
    pub(crate) fn shape(&self) -> (usize, usize) {
        *self.matrix.shape()
    }

    pub(crate) fn node(&self) -> GpuTapeNode {
        self.node
    }

    /// The values, their node, and the tape.
    pub(crate) fn into_parts(self) -> (GpuMatrix, GpuTapeNode, T) {
        (self.matrix, self.node, self.tape)
    }

    /// The same activations with an empty tape.
    pub(crate) fn with_empty_tape<U: AnyTape>(&self) -> GpuActivations<U> {
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

    /// Removes the gradient of activations of this shape from the store and returns it. It is zero
    /// if no step added to it.
    pub(crate) fn take_gradient(&self, shape: (usize, usize)) -> GpuMatrix {
        GRADIENTS
            .with_borrow_mut(|gradients| gradients.remove(&self.0))
            .unwrap_or_else(|| selected_device().zeros_like(&shape))
    }

    /// Adds to the gradient.
    pub(crate) fn add_gradient(&self, part: GpuMatrix) {
        GRADIENTS.with_borrow_mut(|gradients| {
            let sum = add_or_start(gradients.remove(&self.0), part);
            gradients.insert(self.0, sum);
        });
    }
}
