//! How a weight is held: in memory, or on disk until an operation asks for it. Clones share what they hold.

use std::borrow::Cow;
use std::sync::Arc;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::gpu::Matrix;
use super::resident::{self, Held, Lent};

/// A weight: a matrix (rows = outputs, cols = inputs), or a vector as one row.
#[derive(Clone, Debug)]
pub struct Weight {
    rows: usize,
    cols: usize,
    store: Store,
    /// How a GPU holds it.
    precision: Precision,
    /// Names the values in this precision: two weights of one name are one on a GPU.
    name: Arc<()>,
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
enum Store {
    /// Plain memory, so that the CPU's operations read it in place.
    Memory(Arc<Vec<f32>>),
    /// A tensor of a file, and what is done to it whenever it is read.
    File { tensor: Arc<dyn WeightFile>, steps: Vec<Step> },
}

/// A matrix in a file.
pub trait WeightFile: std::fmt::Debug + Send + Sync {
    /// All of it, row-major, widened to f32.
    fn read(&self) -> Result<Vec<f32>, Unreadable>;
    /// Some rows of it.
    fn read_rows(&self, rows: &[usize]) -> Result<Vec<f32>, Unreadable>;
    /// Columns of the matrix as it is in the file.
    fn cols(&self) -> usize;
}

/// A file that was whole when it was opened cannot be read any more. Operations have no way to say so: they panic with
/// this, and the stage that they belong to fails.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot read `{tensor}` of `{path}` any more: {message}")]
pub struct Unreadable {
    pub tensor: String,
    pub path: String,
    pub message: String,
}

/// What a weight on disk has gone through.
#[derive(Clone, Debug)]
enum Step {
    Rows(Arc<[usize]>),
    Cols(Arc<[usize]>),
    Add(LowRank),
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
        Self::of(Store::Memory(Arc::new(values)), rows, cols)
    }

    /// A weight that stays on disk.
    pub fn on_disk(tensor: Arc<dyn WeightFile>, rows: usize, cols: usize) -> Self {
        Self::of(Store::File { tensor, steps: Vec::new() }, rows, cols)
    }

    fn of(store: Store, rows: usize, cols: usize) -> Self {
        Self { rows, cols, store, precision: Precision::Float32, name: Arc::default() }
    }

    /// The same weight, held by a GPU in this precision. What becomes of it later is held so too.
    pub fn held_in(self, precision: Precision) -> Self {
        Self { precision, name: Arc::default(), ..self }
    }

    /// How a GPU holds it.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// What names it.
    pub(super) fn name(&self) -> &Arc<()> {
        &self.name
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
        matches!(self.store, Store::File { .. })
    }

    /// The values, row-major; borrowed from memory, else read.
    ///
    /// # Panics
    /// With [`Unreadable`].
    pub fn values(&self) -> Cow<'_, [f32]> {
        match &self.store {
            Store::Memory(values) => Cow::Borrowed(values),
            Store::File { tensor, steps } => {
                let start = (orderly(tensor.read()), tensor.cols());
                let (values, _) = steps.iter().fold(start, |(values, cols), step| step.apply(values, cols));
                Cow::Owned(values)
            }
        }
    }

    /// Some rows, in the order given.
    ///
    /// # Panics
    /// With [`Unreadable`], or if there is no such row.
    pub fn gather(&self, rows: &[usize]) -> Vec<f32> {
        match &self.store {
            Store::File { tensor, steps } if steps.iter().all(|step| matches!(step, Step::Cols(_))) => {
                assert!(rows.iter().all(|&row| row < self.rows), "no such row");
                let start = (orderly(tensor.read_rows(rows)), tensor.cols());
                steps.iter().fold(start, |(values, cols), step| step.apply(values, cols)).0
            }
            _ => pick_rows(&self.values(), self.cols, rows),
        }
    }

    /// The weight in memory.
    pub fn resident(&self) -> Self {
        if !self.is_on_disk() {
            return self.clone();
        }
        Self { store: Store::Memory(Arc::new(self.values().into_owned())), ..self.clone() }
    }

    /// The memory itself, to be kept alive by an operation that runs later.
    pub(crate) fn shared(&self) -> Arc<Vec<f32>> {
        match &self.store {
            Store::Memory(values) => values.clone(),
            Store::File { .. } => Arc::new(self.values().into_owned()),
        }
    }

    /// The weight on the GPU, in its precision.
    pub(crate) fn held(&self) -> Held {
        resident::held(self)
    }

    /// The weight on the GPU, in f32.
    pub(crate) fn matrix(&self) -> Matrix {
        self.held().widened()
    }

    /// Whether it is on the GPU, to stay or for a while.
    pub fn is_on_gpu(&self) -> bool {
        resident::is_there(self)
    }

    /// The weight on the GPU for as long as this is held, if this thread computes there.
    pub fn lent(&self) -> Option<Lent> {
        resident::lent(self)
    }

    /// Changes the values in place, and in memory: an optimiser's step.
    pub fn update(&mut self, change: impl FnOnce(&mut [f32])) {
        *self = Self { name: Arc::default(), ..self.resident() };
        if let Store::Memory(values) = &mut self.store {
            change(Arc::make_mut(values).as_mut_slice());
        }
    }

    /// The weight with these rows alone, in the order given.
    pub fn keep_rows(&self, keep: &[usize]) -> Self {
        self.after(Step::Rows(keep.into()), keep.len(), self.cols)
    }

    /// The weight with these columns alone, in the order given.
    pub fn keep_cols(&self, keep: &[usize]) -> Self {
        self.after(Step::Cols(keep.into()), self.rows, keep.len())
    }

    /// The weight with a product of two thin matrices added.
    pub fn plus(&self, low_rank: LowRank) -> Self {
        self.after(Step::Add(low_rank), self.rows, self.cols)
    }

    /// A step taken now, in memory, or whenever the weight is read.
    fn after(&self, step: Step, rows: usize, cols: usize) -> Self {
        match &self.store {
            Store::Memory(_) => Self::new(step.of(&self.values(), self.cols), rows, cols),
            Store::File { tensor, steps } => {
                let steps = steps.iter().cloned().chain([step]).collect();
                Self::of(Store::File { tensor: tensor.clone(), steps }, rows, cols)
            }
        }
        .held_in(self.precision)
    }
}

impl Step {
    /// Of values in rows of `cols`.
    fn of(&self, values: &[f32], cols: usize) -> Vec<f32> {
        match self {
            Self::Rows(keep) => pick_rows(values, cols, keep),
            Self::Cols(keep) => values.chunks_exact(cols).flat_map(|row| keep.iter().map(|&c| row[c])).collect(),
            Self::Add(_) => self.apply(values.to_vec(), cols).0,
        }
    }

    /// The same, and how many columns there are then.
    fn apply(&self, mut values: Vec<f32>, cols: usize) -> (Vec<f32>, usize) {
        match self {
            Self::Rows(_) => (self.of(&values, cols), cols),
            Self::Cols(keep) => (self.of(&values, cols), keep.len()),
            Self::Add(LowRank { a, b, scale }) => {
                let (a_values, b_values) = (a.values(), b.values());
                values.par_chunks_exact_mut(cols).zip(b_values.par_chunks_exact(b.cols())).for_each(|(row, b)| {
                    for (factor, a) in b.iter().zip(a_values.chunks_exact(cols)) {
                        row.iter_mut().zip(a).for_each(|(w, a)| *w += scale * factor * a);
                    }
                });
                (values, cols)
            }
        }
    }
}

fn pick_rows(values: &[f32], cols: usize, rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|&r| &values[r * cols..(r + 1) * cols]).copied().collect()
}

fn orderly(read: Result<Vec<f32>, Unreadable>) -> Vec<f32> {
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
