//! Activations on the CPU: plain memory that operations read in place, and a node on dfdx's tape.
//!
//! dfdx's tensors do not lend their buffers, so an operation on them would begin with a copy. Here
//! the tensor on the tape is empty: only its id is used, as the key of the gradient of the values
//! beside it.

use std::sync::{Arc, Mutex, PoisonError};

use dfdx::prelude::{Cpu, Gradients, HasErr, NoneTape, Tensor, TensorFromVec};
use rayon::prelude::*;

use crate::tape::AnyTape;

/// Elements of a gradient that one task adds.
const ELEMENTS_PER_TASK: usize = 1 << 15;

/// Activations, (positions, width), row-major.
#[derive(Clone, Debug)]
pub struct CpuActivations<T = NoneTape> {
    values: Arc<Vec<f32>>,
    shape: (usize, usize),
    /// An empty tensor whose id identifies the values on the tape.
    tape_id: Tensor<(usize,), f32, Cpu>,
    recomputation: Option<Recomputation>,
    tape: T,
}

/// How to compute cheap values again from what the tape keeps in any case.
#[derive(Clone)]
struct Recomputation(Arc<RecomputedValues>);

struct RecomputedValues {
    compute: Box<dyn Fn() -> Vec<f32> + Send + Sync>,
    /// The recomputed values, from the first backward step that reads them until
    /// [`SavedActivations::drop_cached`].
    cached: Mutex<Option<Arc<Vec<f32>>>>,
}

impl std::fmt::Debug for Recomputation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recomputation")
    }
}

/// Activations that a backward step reads: the values, or how to compute them again.
pub(crate) struct SavedActivations(SavedSource);

enum SavedSource {
    Stored(Arc<Vec<f32>>),
    Recomputed(Recomputation),
}

impl SavedActivations {
    pub(crate) fn values(&self) -> Arc<Vec<f32>> {
        match &self.0 {
            SavedSource::Stored(values) => values.clone(),
            SavedSource::Recomputed(Recomputation(recomputed)) => {
                let mut cached = recomputed
                    .cached
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                cached
                    .get_or_insert_with(|| Arc::new((recomputed.compute)()))
                    .clone()
            }
        }
    }

    /// Drops the recomputed values. The operation that made the activations calls this in its own
    /// backward step: the steps of all readers have run by then.
    pub(crate) fn drop_cached(&self) {
        if let SavedSource::Recomputed(Recomputation(recomputed)) = &self.0 {
            let mut cached = recomputed
                .cached
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *cached = None;
        }
    }
}

/// The key of activations among the gradients of a tape. An empty gradient stands for zeros.
#[derive(Clone)]
pub(crate) struct CpuTapeNode {
    tape_id: Tensor<(usize,), f32, Cpu>,
    len: usize,
}

/// dfdx's CPU device. It provides the tape; its operations run only in tests and on
/// `Device::CpuAsGpu`.
pub(crate) fn dfdx_cpu() -> Cpu {
    thread_local! {
        static DFDX_CPU: Cpu = Cpu::default();
    }
    DFDX_CPU.with(Cpu::clone)
}

impl CpuActivations {
    /// Activations from row-major values, without a copy.
    ///
    /// # Panics
    /// If `values` does not hold `rows * cols` numbers.
    pub(crate) fn from_vec(values: Vec<f32>, rows: usize, cols: usize) -> Self {
        assert_eq!(values.len(), rows * cols, "activations of {rows} × {cols}");
        Self {
            values: Arc::new(values),
            shape: (rows, cols),
            tape_id: dfdx_cpu().tensor_from_vec(Vec::new(), (0,)),
            recomputation: None,
            tape: NoneTape,
        }
    }

    pub(crate) fn put_tape<T>(self, tape: T) -> CpuActivations<T> {
        CpuActivations {
            values: self.values,
            shape: self.shape,
            tape_id: self.tape_id,
            recomputation: self.recomputation,
            tape,
        }
    }

    /// The same activations, of which backward steps keep `compute` instead of the values. It must
    /// return the same bits.
    pub(crate) fn with_recomputation(
        mut self,
        compute: impl Fn() -> Vec<f32> + Send + Sync + 'static,
    ) -> Self {
        self.recomputation = Some(Recomputation(Arc::new(RecomputedValues {
            compute: Box::new(compute),
            cached: Mutex::default(),
        })));
        self
    }

    /// The values. Copies only if something else holds them.
    pub(crate) fn into_vec(self) -> Vec<f32> {
        Arc::try_unwrap(self.values).unwrap_or_else(|shared| shared.to_vec())
    }
}

impl<T> CpuActivations<T> {
    /// (positions, width)
    pub(crate) fn shape(&self) -> &(usize, usize) {
        &self.shape
    }

    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    /// The memory itself, for a backward step that runs later.
    pub(crate) fn shared_values(&self) -> Arc<Vec<f32>> {
        self.values.clone()
    }

    /// What a backward step needs to read the values: themselves, or how to compute them again.
    pub(crate) fn save_for_backward(&self) -> SavedActivations {
        SavedActivations(match &self.recomputation {
            Some(recomputation) => SavedSource::Recomputed(recomputation.clone()),
            None => SavedSource::Stored(self.values.clone()),
        })
    }

    pub(crate) fn node(&self) -> CpuTapeNode {
        CpuTapeNode {
            tape_id: self.tape_id.clone(),
            len: self.values.len(),
        }
    }

    pub(crate) fn split_tape(self) -> (CpuActivations, T) {
        let without_tape = CpuActivations {
            values: self.values,
            shape: self.shape,
            tape_id: self.tape_id,
            recomputation: self.recomputation,
            tape: NoneTape,
        };
        (without_tape, self.tape)
    }

    /// The same activations with an empty tape.
    pub(crate) fn with_empty_tape<U: AnyTape>(&self) -> CpuActivations<U> {
        CpuActivations {
            values: self.values.clone(),
            shape: self.shape,
            tape_id: self.tape_id.clone(),
            recomputation: self.recomputation.clone(),
            tape: U::default(),
        }
    }
}

impl CpuTapeNode {
    /// Removes the gradient from the store and returns it. It is zero if no step added to it.
    pub(crate) fn take_gradient(
        &self,
        gradients: &mut Gradients<f32, Cpu>,
    ) -> Result<Vec<f32>, <Cpu as HasErr>::Err> {
        let gradient = std::mem::take(&mut **gradients.get_or_alloc_mut(&self.tape_id)?);
        Ok(if gradient.is_empty() {
            vec![0.0; self.len]
        } else {
            gradient
        })
    }

    /// Adds to the gradient.
    pub(crate) fn add_gradient(
        &self,
        gradients: &mut Gradients<f32, Cpu>,
        part: Vec<f32>,
    ) -> Result<(), <Cpu as HasErr>::Err> {
        let sum = &mut **gradients.get_or_alloc_mut(&self.tape_id)?;
        if sum.is_empty() {
            *sum = part;
            return Ok(());
        }
        sum.par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(part.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(sum, part)| {
                for (sum, part) in sum.iter_mut().zip(part) {
                    *sum += part;
                }
            });
        Ok(())
    }

    /// The gradient, to be changed in place, and whether it has begun. If it has, the operation
    /// must add to it; if not, it must write every element.
    pub(crate) fn gradient_mut<'a>(
        &self,
        gradients: &'a mut Gradients<f32, Cpu>,
    ) -> Result<(&'a mut [f32], bool), <Cpu as HasErr>::Err> {
        let gradient = &mut **gradients.get_or_alloc_mut(&self.tape_id)?;
        let has_begun = !gradient.is_empty();
        gradient.resize(self.len, 0.0);
        Ok((gradient, has_begun))
    }
}
