//! Activations on the CPU: plain memory that operations read in place, and a node on dfdx's tape. dfdx's own tensor lends
//! no buffer, so every operation of ours would begin with a copy; here the tensor on the tape is empty, and stands for the
//! identity and the gradient of the values beside it.

use std::sync::{Arc, Mutex, PoisonError};

use dfdx::prelude::{Cpu, Gradients, HasErr, NoneTape, Tensor, TensorFromVec};
use rayon::prelude::*;

use super::AnyTape;

/// Activations, (positions, width), row-major.
#[derive(Clone, Debug)]
pub struct CpuActivations<T = NoneTape> {
    values: Arc<Vec<f32>>,
    shape: (usize, usize),
    /// Empty: its id names the values on the tape.
    tape_id: Tensor<(usize,), f32, Cpu>,
    recomputation: Option<Recomputation>,
    tape: T,
}

/// How to make cheap values again from what a tape keeps in any case.
#[derive(Clone)]
struct Recomputation(Arc<RecomputedValues>);

struct RecomputedValues {
    compute: Box<dyn Fn() -> Vec<f32> + Send + Sync>,
    /// Made again, for all who need them, until whoever made them first says that the last has had them.
    cached: Mutex<Option<Arc<Vec<f32>>>>,
}

impl std::fmt::Debug for Recomputation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recipe")
    }
}

/// Activations that an operation needs again on the way back.
pub struct SavedActivations(SavedSource);

enum SavedSource {
    Stored(Arc<Vec<f32>>),
    Recomputed(Recomputation),
}

impl SavedActivations {
    pub fn values(&self) -> Arc<Vec<f32>> {
        match &self.0 {
            SavedSource::Stored(values) => values.clone(),
            SavedSource::Recomputed(Recomputation(made)) => {
                let mut again = made.cached.lock().unwrap_or_else(PoisonError::into_inner);
                again
                    .get_or_insert_with(|| Arc::new((made.compute)()))
                    .clone()
            }
        }
    }

    /// Everybody has had the values.
    pub fn drop_cached(&self) {
        if let SavedSource::Recomputed(Recomputation(made)) = &self.0 {
            *made.cached.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// The name of activations among the gradients of a tape. A gradient that is empty there is zero.
#[derive(Clone)]
pub struct CpuTapeNode {
    tape_id: Tensor<(usize,), f32, Cpu>,
    len: usize,
}

/// dfdx's own device, of which only the tape is used.
pub fn dfdx_cpu() -> Cpu {
    thread_local! {
        static DFDX_CPU: Cpu = Cpu::default();
    }
    DFDX_CPU.with(Cpu::clone)
}

/// Activations from row-major values, without a copy.
///
/// # Panics
/// If `values` does not hold `rows * cols` numbers.
pub fn activations_from_vec(values: Vec<f32>, rows: usize, cols: usize) -> CpuActivations {
    CpuActivations::new(values, rows, cols)
}

impl CpuActivations {
    fn new(values: Vec<f32>, rows: usize, cols: usize) -> Self {
        assert_eq!(values.len(), rows * cols, "activations of {rows} × {cols}");
        let name = dfdx_cpu().tensor_from_vec(Vec::new(), (0,));
        Self {
            values: Arc::new(values),
            shape: (rows, cols),
            tape_id: name,
            recomputation: None,
            tape: NoneTape,
        }
    }

    pub fn put_tape<T>(self, tape: T) -> CpuActivations<T> {
        CpuActivations {
            values: self.values,
            shape: self.shape,
            tape_id: self.tape_id,
            recomputation: self.recomputation,
            tape,
        }
    }

    /// The same activations, which nobody needs to keep: `make` makes them again, to the bit.
    pub fn with_recomputation(
        mut self,
        make: impl Fn() -> Vec<f32> + Send + Sync + 'static,
    ) -> Self {
        self.recomputation = Some(Recomputation(Arc::new(RecomputedValues {
            compute: Box::new(make),
            cached: Mutex::default(),
        })));
        self
    }

    /// The values, to be changed or kept: without a copy where nobody else holds them.
    pub fn into_vec(self) -> Vec<f32> {
        Arc::try_unwrap(self.values).unwrap_or_else(|shared| shared.to_vec())
    }
}

impl<T> CpuActivations<T> {
    /// (positions, width)
    pub fn shape(&self) -> &(usize, usize) {
        &self.shape
    }

    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The memory itself, to be kept by an operation that runs later.
    pub fn shared_values(&self) -> Arc<Vec<f32>> {
        self.values.clone()
    }

    /// A copy of the values.
    pub fn to_vec(&self) -> Vec<f32> {
        self.values.to_vec()
    }

    /// The values for the way back, or how to make them again.
    pub fn save_for_backward(&self) -> SavedActivations {
        SavedActivations(match &self.recomputation {
            Some(recipe) => SavedSource::Recomputed(recipe.clone()),
            None => SavedSource::Stored(self.values.clone()),
        })
    }

    pub fn node(&self) -> CpuTapeNode {
        CpuTapeNode {
            tape_id: self.tape_id.clone(),
            len: self.values.len(),
        }
    }

    pub fn split_tape(self) -> (CpuActivations, T) {
        let Self {
            values,
            shape,
            tape_id: name,
            recomputation: recipe,
            tape,
        } = self;
        (
            CpuActivations {
                values,
                shape,
                tape_id: name,
                recomputation: recipe,
                tape: NoneTape,
            },
            tape,
        )
    }

    /// The same activations on an empty tape.
    pub fn with_empty_tape<U: AnyTape>(&self) -> CpuActivations<U> {
        let (values, name, recipe) = (
            self.values.clone(),
            self.tape_id.clone(),
            self.recomputation.clone(),
        );
        CpuActivations {
            values,
            shape: self.shape,
            tape_id: name,
            recomputation: recipe,
            tape: U::default(),
        }
    }
}

impl CpuTapeNode {
    /// Takes the gradient; nothing reads it afterwards.
    pub fn take_gradient(
        &self,
        gradients: &mut Gradients<f32, Cpu>,
    ) -> Result<Vec<f32>, <Cpu as HasErr>::Err> {
        let taken = std::mem::take(&mut **gradients.get_or_alloc_mut(&self.tape_id)?);
        Ok(if taken.is_empty() {
            vec![0.0; self.len]
        } else {
            taken
        })
    }

    /// Adds to the gradient.
    pub fn add_gradient(
        &self,
        gradients: &mut Gradients<f32, Cpu>,
        part: Vec<f32>,
    ) -> Result<(), <Cpu as HasErr>::Err> {
        let sum = &mut **gradients.get_or_alloc_mut(&self.tape_id)?;
        match sum.is_empty() {
            true => *sum = part,
            false => {
                const GRAIN: usize = 1 << 15;
                sum.par_chunks_mut(GRAIN)
                    .zip(part.par_chunks(GRAIN))
                    .for_each(|(sum, part)| {
                        sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
                    });
            }
        }
        Ok(())
    }

    /// The gradient itself, for an operation that adds to it or writes all of it, and whether it must add.
    pub fn gradient_mut<'a>(
        &self,
        gradients: &'a mut Gradients<f32, Cpu>,
    ) -> Result<(&'a mut [f32], bool), <Cpu as HasErr>::Err> {
        let sum = &mut **gradients.get_or_alloc_mut(&self.tape_id)?;
        let is_begun = !sum.is_empty();
        sum.resize(self.len, 0.0);
        Ok((sum, is_begun))
    }
}
