//! Activations on the CPU: plain memory that operations read in place, and a node on dfdx's tape. dfdx's own tensor lends
//! no buffer, so every operation of ours would begin with a copy; here the tensor on the tape is empty, and stands for the
//! identity and the gradient of the values beside it.

use std::sync::{Arc, Mutex, PoisonError};

use dfdx::prelude::{Cpu, Gradients, HasErr, NoneTape, Tensor, TensorFromVec};
use rayon::prelude::*;

use super::AnyTape;

/// Activations, (positions, width), row-major.
#[derive(Clone, Debug)]
pub struct Hidden<T = NoneTape> {
    values: Arc<Vec<f32>>,
    shape: (usize, usize),
    /// Empty: its id names the values on the tape.
    name: Tensor<(usize,), f32, Cpu>,
    recipe: Option<Recipe>,
    tape: T,
}

/// How to make cheap values again from what a tape keeps in any case.
#[derive(Clone)]
struct Recipe(Arc<Made>);

struct Made {
    make: Box<dyn Fn() -> Vec<f32> + Send + Sync>,
    /// Made again, for all who need them, until whoever made them first says that the last has had them.
    again: Mutex<Option<Arc<Vec<f32>>>>,
}

impl std::fmt::Debug for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recipe")
    }
}

/// Activations that an operation needs again on the way back.
pub struct Kept(Keep);

enum Keep {
    Values(Arc<Vec<f32>>),
    Recipe(Recipe),
}

impl Kept {
    pub fn values(&self) -> Arc<Vec<f32>> {
        match &self.0 {
            Keep::Values(values) => values.clone(),
            Keep::Recipe(Recipe(made)) => {
                let mut again = made.again.lock().unwrap_or_else(PoisonError::into_inner);
                again.get_or_insert_with(|| Arc::new((made.make)())).clone()
            }
        }
    }

    /// Everybody has had the values.
    pub fn forget(&self) {
        if let Keep::Recipe(Recipe(made)) = &self.0 {
            *made.again.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// The name of activations among the gradients of a tape. A gradient that is empty there is zero.
#[derive(Clone)]
pub struct Node {
    name: Tensor<(usize,), f32, Cpu>,
    len: usize,
}

/// dfdx's own device, of which only the tape is used.
pub fn device() -> Cpu {
    thread_local! {
        static DEVICE: Cpu = Cpu::default();
    }
    DEVICE.with(Cpu::clone)
}

/// Activations from row-major values, without a copy.
///
/// # Panics
/// If `values` does not hold `rows * cols` numbers.
pub fn hidden(values: Vec<f32>, rows: usize, cols: usize) -> Hidden {
    Hidden::new(values, rows, cols)
}

impl Hidden {
    fn new(values: Vec<f32>, rows: usize, cols: usize) -> Self {
        assert_eq!(values.len(), rows * cols, "activations of {rows} × {cols}");
        let name = device().tensor_from_vec(Vec::new(), (0,));
        Self { values: Arc::new(values), shape: (rows, cols), name, recipe: None, tape: NoneTape }
    }

    pub fn put_tape<T>(self, tape: T) -> Hidden<T> {
        Hidden { values: self.values, shape: self.shape, name: self.name, recipe: self.recipe, tape }
    }

    /// The same activations, which nobody needs to keep: `make` makes them again, to the bit.
    pub fn made_by(mut self, make: impl Fn() -> Vec<f32> + Send + Sync + 'static) -> Self {
        self.recipe = Some(Recipe(Arc::new(Made { make: Box::new(make), again: Mutex::default() })));
        self
    }

    /// The values, to be changed or kept: without a copy where nobody else holds them.
    pub fn into_vec(self) -> Vec<f32> {
        Arc::try_unwrap(self.values).unwrap_or_else(|shared| shared.to_vec())
    }
}

impl<T> Hidden<T> {
    /// (positions, width)
    pub fn shape(&self) -> &(usize, usize) {
        &self.shape
    }

    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The memory itself, to be kept by an operation that runs later.
    pub fn shared(&self) -> Arc<Vec<f32>> {
        self.values.clone()
    }

    /// A copy of the values.
    pub fn as_vec(&self) -> Vec<f32> {
        self.values.to_vec()
    }

    /// The values for the way back, or how to make them again.
    pub fn keep(&self) -> Kept {
        Kept(match &self.recipe {
            Some(recipe) => Keep::Recipe(recipe.clone()),
            None => Keep::Values(self.values.clone()),
        })
    }

    pub fn node(&self) -> Node {
        Node { name: self.name.clone(), len: self.values.len() }
    }

    pub fn split_tape(self) -> (Hidden, T) {
        let Self { values, shape, name, recipe, tape } = self;
        (Hidden { values, shape, name, recipe, tape: NoneTape }, tape)
    }

    /// The same activations on an empty tape.
    pub fn retaped<U: AnyTape>(&self) -> Hidden<U> {
        let (values, name, recipe) = (self.values.clone(), self.name.clone(), self.recipe.clone());
        Hidden { values, shape: self.shape, name, recipe, tape: U::default() }
    }
}

impl Node {
    /// Takes the gradient; nothing reads it afterwards.
    pub fn take(&self, gradients: &mut Gradients<f32, Cpu>) -> Result<Vec<f32>, <Cpu as HasErr>::Err> {
        let taken = std::mem::take(&mut **gradients.get_or_alloc_mut(&self.name)?);
        Ok(if taken.is_empty() { vec![0.0; self.len] } else { taken })
    }

    /// Adds to the gradient.
    pub fn add(&self, gradients: &mut Gradients<f32, Cpu>, part: Vec<f32>) -> Result<(), <Cpu as HasErr>::Err> {
        let sum = &mut **gradients.get_or_alloc_mut(&self.name)?;
        match sum.is_empty() {
            true => *sum = part,
            false => {
                const GRAIN: usize = 1 << 15;
                sum.par_chunks_mut(GRAIN).zip(part.par_chunks(GRAIN)).for_each(|(sum, part)| {
                    sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
                });
            }
        }
        Ok(())
    }

    /// The gradient itself, for an operation that adds to it or writes all of it, and whether it must add.
    pub fn sum<'a>(&self, gradients: &'a mut Gradients<f32, Cpu>) -> Result<(&'a mut [f32], bool), <Cpu as HasErr>::Err> {
        let sum = &mut **gradients.get_or_alloc_mut(&self.name)?;
        let is_begun = !sum.is_empty();
        sum.resize(self.len, 0.0);
        Ok((sum, is_begun))
    }
}
