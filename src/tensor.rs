//! The device, the element, and how weights are held. The only generic in the models is the tape.

use std::borrow::Cow;

use dfdx::prelude::*;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The device of this build: the processor, or one NVIDIA GPU with the feature `cuda`.
#[cfg(not(feature = "cuda"))]
pub type Device = dfdx::tensor::Cpu;
/// The device of this build: the processor, or one NVIDIA GPU with the feature `cuda`.
#[cfg(feature = "cuda")]
pub type Device = dfdx::tensor::Cuda;

/// Activations of one sequence: (positions, width).
pub type Hidden<T = NoneTape> = Tensor<(usize, usize), f32, Device, T>;

/// A tape that records; the other is [`NoneTape`].
pub type Recording = OwnedTape<f32, Device>;

/// What the models ask of a tape.
pub trait AnyTape: Tape<f32, Device> + Merge<Self> + 'static {}
impl<T: Tape<f32, Device> + Merge<T> + 'static> AnyTape for T {}

/// What may cross threads: on the CPU sequences are worked on in parallel; dfdx's CUDA device stays in one thread.
#[cfg(not(feature = "cuda"))]
pub trait Threaded: Send + Sync {}
#[cfg(not(feature = "cuda"))]
impl<T: Send + Sync> Threaded for T {}
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
    debug_assert_eq!(values.len(), rows * cols);
    device().tensor_from_vec(values, (rows, cols))
}

/// Applies `work` to every item, in parallel on the CPU, one after another on a GPU, and returns the results in order.
/// Results never depend on the number of threads, because no two items share a sum.
pub fn for_each_sequence<I: Threaded, O: Threaded>(items: &[I], work: impl Fn(usize, &I) -> O + Threaded) -> Vec<O> {
    #[cfg(not(feature = "cuda"))]
    {
        use rayon::prelude::*;
        items.par_iter().enumerate().map(|(i, item)| work(i, item)).collect()
    }
    #[cfg(feature = "cuda")]
    {
        items.iter().enumerate().map(|(i, item)| work(i, item)).collect()
    }
}

/// How many sequences are worked on before their results are added up, where each leaves so many bytes: at least one for
/// every thread, and more where they are small, so that no thread waits for the longest of a few.
pub fn sequences_at_once(bytes_each: usize) -> usize {
    const TOGETHER: usize = 32 << 20;
    let threads = rayon::current_num_threads();
    if cfg!(feature = "cuda") { 1 } else { threads.max((TOGETHER / bytes_each.max(1)).min(16 * threads)) }
}

/// A weight: a matrix (rows = outputs, cols = inputs), or a vector as one row. Plain memory on the CPU, so that the
/// operations read it in place; a dfdx tensor on CUDA. Clones share the memory until one of them is changed.
#[derive(Clone, Debug)]
pub struct Weight {
    rows: usize,
    cols: usize,
    #[cfg(not(feature = "cuda"))]
    store: std::sync::Arc<Vec<f32>>,
    #[cfg(feature = "cuda")]
    store: Tensor<(usize, usize), f32, Device>,
}

impl Weight {
    /// A weight from row-major values.
    ///
    /// # Panics
    /// If `values` does not hold `rows * cols` numbers.
    pub fn new(values: Vec<f32>, rows: usize, cols: usize) -> Self {
        assert_eq!(values.len(), rows * cols, "a weight of {rows} × {cols}");
        #[cfg(not(feature = "cuda"))]
        let store = std::sync::Arc::new(values);
        #[cfg(feature = "cuda")]
        let store = device().tensor_from_vec(values, (rows, cols));
        Self { rows, cols, store }
    }

    /// Outputs; 1 for a vector.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs; the length of a vector.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values, row-major; borrowed on the CPU, copied from a GPU.
    pub fn values(&self) -> Cow<'_, [f32]> {
        #[cfg(not(feature = "cuda"))]
        {
            Cow::Borrowed(&self.store)
        }
        #[cfg(feature = "cuda")]
        {
            Cow::Owned(self.store.as_vec())
        }
    }

    /// The memory itself, to be kept alive by an operation that runs later.
    #[cfg(not(feature = "cuda"))]
    pub(crate) fn shared(&self) -> std::sync::Arc<Vec<f32>> {
        self.store.clone()
    }

    /// The tensor itself.
    #[cfg(feature = "cuda")]
    pub(crate) fn tensor(&self) -> Tensor<(usize, usize), f32, Device> {
        self.store.clone()
    }

    /// Changes the values in place: an optimiser's step, a merge.
    pub fn update(&mut self, change: impl FnOnce(&mut [f32])) {
        #[cfg(not(feature = "cuda"))]
        change(std::sync::Arc::make_mut(&mut self.store).as_mut_slice());
        #[cfg(feature = "cuda")]
        {
            let mut values = self.store.as_vec();
            change(&mut values);
            self.store = device().tensor_from_vec(values, (self.rows, self.cols));
        }
    }

    /// The weight with these rows alone, in the order given.
    pub fn keep_rows(&self, keep: &[usize]) -> Self {
        let values = self.values();
        let kept = keep.iter().flat_map(|&r| &values[r * self.cols..(r + 1) * self.cols]).copied().collect();
        Self::new(kept, keep.len(), self.cols)
    }

    /// The weight with these columns alone, in the order given.
    pub fn keep_cols(&self, keep: &[usize]) -> Self {
        let values = self.values();
        let kept = values.chunks_exact(self.cols).flat_map(|row| keep.iter().map(|&c| row[c])).collect();
        Self::new(kept, self.rows, keep.len())
    }
}

/// Shape and values.
impl Serialize for Weight {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.rows, self.cols, &self.values()[..]).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (rows, cols, values) = <(usize, usize, Vec<f32>)>::deserialize(deserializer)?;
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(serde::de::Error::custom(format!("{} values for a weight of {rows} × {cols}", values.len())));
        }
        Ok(Self::new(values, rows, cols))
    }
}

impl PartialEq for Weight {
    fn eq(&self, other: &Self) -> bool {
        (self.rows, self.cols) == (other.rows, other.cols) && self.values() == other.values()
    }
}
