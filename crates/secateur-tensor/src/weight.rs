//! How a weight is held: in memory, or on disk until an operation asks for it. Clones share what they hold.

use std::borrow::Cow;
use std::sync::Arc;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::activations::gpu::GpuMatrix;
use crate::resident::{self, GpuLease, GpuWeight};

/// A weight: a matrix (rows = outputs, cols = inputs), or a vector as one row.
#[derive(Clone, Debug)]
pub struct Weight {
    rows: usize,
    cols: usize,
    store: WeightStore,
    /// How a GPU holds it.
    precision: Precision,
    /// Names the values in this precision: two weights of one name are one on a GPU.
    identity: Arc<()>,
}

/// The element in which a GPU holds and multiplies a matrix; products accumulate in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    Float32,
    /// Half precision: 11 bits of mantissa, up to 65504.
    Float16,
}

impl Precision {
    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Float32 => 4,
            Self::Float16 => 2,
        }
    }
}

#[derive(Clone, Debug)]
enum WeightStore {
    /// Plain memory, so that the CPU's operations read it in place.
    Memory(Arc<Vec<f32>>),
    /// A tensor of a file, and what is done to it whenever it is read.
    File {
        tensor: Arc<dyn WeightFile>,
        edits: Vec<WeightEdit>,
    },
}

/// A matrix in a file.
pub trait WeightFile: std::fmt::Debug + Send + Sync {
    /// All of it, row-major, widened to f32.
    fn read(&self) -> Result<Vec<f32>, WeightReadError>;
    /// Some rows of it.
    fn read_rows(&self, rows: &[usize]) -> Result<Vec<f32>, WeightReadError>;
    /// Columns of the matrix as it is in the file.
    fn cols(&self) -> usize;
}

/// A file that was whole when it was opened cannot be read any more. Operations have no way to say so: they panic with
/// this, and the stage that they belong to fails.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot read `{tensor}` of `{path}` any more: {message}")]
pub struct WeightReadError {
    pub tensor: String,
    pub path: String,
    pub message: String,
}

/// What a weight on disk has gone through.
#[derive(Clone, Debug)]
enum WeightEdit {
    KeepRows(Arc<[usize]>),
    KeepCols(Arc<[usize]>),
    AddLowRank(LowRank),
}

/// scale · B · A, to be added to a weight.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// (rank, inputs)
    pub a: Weight,
    /// (outputs, rank)
    pub b: Weight,
    pub scale: f32,
}

impl Weight {
    /// A weight from row-major values.
    ///
    /// # Panics
    /// If `values` does not hold `rows * cols` numbers.
    pub fn new(values: Vec<f32>, rows: usize, cols: usize) -> Self {
        assert_eq!(values.len(), rows * cols, "a weight of {rows} × {cols}");
        Self::from_store(WeightStore::Memory(Arc::new(values)), rows, cols)
    }

    /// A weight that stays on disk.
    pub fn from_file(tensor: Arc<dyn WeightFile>, rows: usize, cols: usize) -> Self {
        Self::from_store(
            WeightStore::File {
                tensor,
                edits: Vec::new(),
            },
            rows,
            cols,
        )
    }

    fn from_store(store: WeightStore, rows: usize, cols: usize) -> Self {
        Self {
            rows,
            cols,
            store,
            precision: Precision::Float32,
            identity: Arc::default(),
        }
    }

    /// The same weight, held by a GPU in this precision. What becomes of it later is held so too.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self {
            precision,
            identity: Arc::default(),
            ..self
        }
    }

    /// How a GPU holds it.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// What names it.
    pub(super) fn identity(&self) -> &Arc<()> {
        &self.identity
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

    pub fn is_on_disk(&self) -> bool {
        matches!(self.store, WeightStore::File { .. })
    }

    /// The values, row-major; borrowed from memory, else read.
    ///
    /// # Panics
    /// With [`Unreadable`].
    pub fn values(&self) -> Cow<'_, [f32]> {
        match &self.store {
            WeightStore::Memory(values) => Cow::Borrowed(values),
            WeightStore::File {
                tensor,
                edits: steps,
            } => {
                let start = (values_or_panic(tensor.read()), tensor.cols());
                let (values, _) = steps
                    .iter()
                    .fold(start, |(values, cols), step| step.apply(values, cols));
                Cow::Owned(values)
            }
        }
    }

    /// Some rows, in the order given.
    ///
    /// # Panics
    /// With [`Unreadable`], or if there is no such row.
    pub fn gather_rows(&self, rows: &[usize]) -> Vec<f32> {
        match &self.store {
            WeightStore::File {
                tensor,
                edits: steps,
            } if steps
                .iter()
                .all(|step| matches!(step, WeightEdit::KeepCols(_))) =>
            {
                assert!(rows.iter().all(|&row| row < self.rows), "no such row");
                let start = (values_or_panic(tensor.read_rows(rows)), tensor.cols());
                steps
                    .iter()
                    .fold(start, |(values, cols), step| step.apply(values, cols))
                    .0
            }
            _ => copy_rows(&self.values(), self.cols, rows),
        }
    }

    /// The weight in memory.
    pub fn to_memory(&self) -> Self {
        if !self.is_on_disk() {
            return self.clone();
        }
        Self {
            store: WeightStore::Memory(Arc::new(self.values().into_owned())),
            ..self.clone()
        }
    }

    /// The memory itself, to be kept alive by an operation that runs later.
    pub(crate) fn shared_values(&self) -> Arc<Vec<f32>> {
        match &self.store {
            WeightStore::Memory(values) => values.clone(),
            WeightStore::File { .. } => Arc::new(self.values().into_owned()),
        }
    }

    /// The weight on the GPU, in its precision.
    pub(crate) fn to_gpu(&self) -> GpuWeight {
        resident::get_or_upload(self)
    }

    /// The weight on the GPU, in f32.
    pub(crate) fn to_gpu_f32(&self) -> GpuMatrix {
        self.to_gpu().into_f32()
    }

    /// Whether it is on the GPU, to stay or for a while.
    pub fn is_on_gpu(&self) -> bool {
        resident::is_on_gpu(self)
    }

    /// The weight on the GPU for as long as this is held, if this thread computes there.
    pub fn lease_on_gpu(&self) -> Option<GpuLease> {
        resident::lease(self)
    }

    /// Changes the values in place, and in memory: an optimiser's step.
    pub fn update(&mut self, change: impl FnOnce(&mut [f32])) {
        *self = Self {
            identity: Arc::default(),
            ..self.to_memory()
        };
        if let WeightStore::Memory(values) = &mut self.store {
            change(Arc::make_mut(values).as_mut_slice());
        }
    }

    /// The weight with these rows alone, in the order given.
    pub fn keep_rows(&self, keep: &[usize]) -> Self {
        self.with_edit(WeightEdit::KeepRows(keep.into()), keep.len(), self.cols)
    }

    /// The weight with these columns alone, in the order given.
    pub fn keep_cols(&self, keep: &[usize]) -> Self {
        self.with_edit(WeightEdit::KeepCols(keep.into()), self.rows, keep.len())
    }

    /// The weight with a product of two thin matrices added.
    pub fn add_low_rank(&self, low_rank: LowRank) -> Self {
        self.with_edit(WeightEdit::AddLowRank(low_rank), self.rows, self.cols)
    }

    /// A step taken now, in memory, or whenever the weight is read.
    fn with_edit(&self, step: WeightEdit, rows: usize, cols: usize) -> Self {
        match &self.store {
            WeightStore::Memory(_) => {
                Self::new(step.apply_to_copy(&self.values(), self.cols), rows, cols)
            }
            WeightStore::File {
                tensor,
                edits: steps,
            } => {
                let steps = steps.iter().cloned().chain([step]).collect();
                Self::from_store(
                    WeightStore::File {
                        tensor: tensor.clone(),
                        edits: steps,
                    },
                    rows,
                    cols,
                )
            }
        }
        .with_precision(self.precision)
    }
}

impl WeightEdit {
    /// Of values in rows of `cols`.
    fn apply_to_copy(&self, values: &[f32], cols: usize) -> Vec<f32> {
        match self {
            Self::KeepRows(keep) => copy_rows(values, cols, keep),
            Self::KeepCols(keep) => values
                .chunks_exact(cols)
                .flat_map(|row| keep.iter().map(|&c| row[c]))
                .collect(),
            Self::AddLowRank(_) => self.apply(values.to_vec(), cols).0,
        }
    }

    /// The same, and how many columns there are then.
    fn apply(&self, mut values: Vec<f32>, cols: usize) -> (Vec<f32>, usize) {
        match self {
            Self::KeepRows(_) => (self.apply_to_copy(&values, cols), cols),
            Self::KeepCols(keep) => (self.apply_to_copy(&values, cols), keep.len()),
            Self::AddLowRank(LowRank { a, b, scale }) => {
                let (a_values, b_values) = (a.values(), b.values());
                values
                    .par_chunks_exact_mut(cols)
                    .zip(b_values.par_chunks_exact(b.cols()))
                    .for_each(|(row, b)| {
                        for (factor, a) in b.iter().zip(a_values.chunks_exact(cols)) {
                            row.iter_mut()
                                .zip(a)
                                .for_each(|(w, a)| *w += scale * factor * a);
                        }
                    });
                (values, cols)
            }
        }
    }
}

fn copy_rows(values: &[f32], cols: usize, rows: &[usize]) -> Vec<f32> {
    rows.iter()
        .flat_map(|&r| &values[r * cols..(r + 1) * cols])
        .copied()
        .collect()
}

fn values_or_panic(read: Result<Vec<f32>, WeightReadError>) -> Vec<f32> {
    read.unwrap_or_else(|unreadable| std::panic::panic_any(unreadable))
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
            return Err(serde::de::Error::custom(format!(
                "{} values for a weight of {rows} × {cols}",
                values.len()
            )));
        }
        Ok(Self::new(values, rows, cols))
    }
}

impl PartialEq for Weight {
    fn eq(&self, other: &Self) -> bool {
        (self.rows, self.cols) == (other.rows, other.cols) && self.values() == other.values()
    }
}
