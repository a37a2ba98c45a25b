//! A weight: in memory, or in a file until it is read. Clones share what they hold.
//!
//! Reading a file can fail, so [`Weight::read`], [`Weight::read_rows`], [`Weight::to_memory`] and
//! [`Weight::to_operand`] return a [`WeightReadError`]. The operations do no input: they take
//! weights that are in memory or on the GPU.

use std::borrow::Cow;
use std::sync::Arc;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A weight: a matrix (rows = outputs, cols = inputs), or a vector as one row.
#[derive(Clone, Debug)]
pub struct Weight {
    rows: usize,
    cols: usize,
    store: WeightStore,
    /// The element type in which a GPU holds it.
    precision: Precision,
    /// Shared by the clones of a weight, and by no weight with other values or another precision:
    /// the key of the weight on a GPU.
    identity: Arc<()>,
}

/// The element type in which a GPU holds and multiplies a matrix; products accumulate in f32.
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
    /// A tensor of a file, and the edits that are applied each time it is read.
    File {
        tensor: Arc<dyn WeightFile>,
        edits: Vec<WeightEdit>,
    },
}

/// A matrix in a file.
pub trait WeightFile: std::fmt::Debug + Send + Sync {
    /// All values, row-major, converted to f32.
    fn read(&self) -> Result<Vec<f32>, WeightReadError>;
    /// Some rows, in the order given.
    fn read_rows(&self, rows: &[usize]) -> Result<Vec<f32>, WeightReadError>;
    /// Columns of the matrix in the file.
    fn cols(&self) -> usize;
}

/// A file that was complete when it was opened cannot be read any more.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot read `{tensor}` of `{path}` any more: {message}")]
pub struct WeightReadError {
    pub tensor: String,
    pub path: String,
    pub message: String,
}

/// A change to a weight in a file.
#[derive(Clone, Debug)]
enum WeightEdit {
    KeepRows(Arc<[usize]>),
    KeepCols(Arc<[usize]>),
    AddLowRank(LowRank),
}

/// scale · B · A, a matrix (outputs, inputs) to be added to a weight. A and B are in memory.
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

    /// A weight that stays in its file until it is read.
    pub fn from_file(tensor: Arc<dyn WeightFile>, rows: usize, cols: usize) -> Self {
        let store = WeightStore::File {
            tensor,
            edits: Vec::new(),
        };
        Self::from_store(store, rows, cols)
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

    /// The same weight, held by a GPU in this precision. Edited copies keep the precision.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self {
            precision,
            identity: Arc::default(),
            ..self
        }
    }

    /// The element type in which a GPU holds it.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The key of the weight on a GPU, by its address.
    pub(crate) fn identity(&self) -> &Arc<()> {
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

    /// The values, row-major: borrowed from memory, or read from the file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(&self) -> Result<Cow<'_, [f32]>, WeightReadError> {
        match &self.store {
            WeightStore::Memory(values) => Ok(Cow::Borrowed(values)),
            WeightStore::File { tensor, edits } => {
                let edited = apply_edits(edits, tensor.read()?, tensor.cols());
                Ok(Cow::Owned(edited))
            }
        }
    }

    /// The values of a weight in memory, row-major.
    ///
    /// # Panics
    /// If the weight is on disk: the caller must load it first ([`Weight::to_memory`]).
    pub fn values(&self) -> &[f32] {
        self.shared_memory()
    }

    /// The values of a weight in memory, for a backward step that runs later. Panics as
    /// [`Weight::values`].
    pub(crate) fn shared_values(&self) -> Arc<Vec<f32>> {
        self.shared_memory().clone()
    }

    fn shared_memory(&self) -> &Arc<Vec<f32>> {
        match &self.store {
            WeightStore::Memory(values) => values,
            WeightStore::File { tensor, .. } => {
                unreachable!("a weight on disk must be loaded before it is used: {tensor:?}")
            }
        }
    }

    /// Some rows, in the order given. Reads only these where no edit needs the others.
    ///
    /// # Errors
    /// If the file cannot be read.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn read_rows(&self, rows: &[usize]) -> Result<Vec<f32>, WeightReadError> {
        let keeps_rows = |edits: &[WeightEdit]| {
            let mut edits = edits.iter();
            edits.all(|edit| matches!(edit, WeightEdit::KeepCols(_)))
        };
        match &self.store {
            WeightStore::File { tensor, edits } if keeps_rows(edits) => {
                assert!(rows.iter().all(|&row| row < self.rows), "no such row");
                let values = tensor.read_rows(rows)?;
                Ok(apply_edits(edits, values, tensor.cols()))
            }
            _ => Ok(copy_rows(&self.read()?, self.cols, rows)),
        }
    }

    /// The weight in memory.
    ///
    /// # Errors
    /// If the weight is on disk and the file cannot be read.
    pub fn to_memory(&self) -> Result<Self, WeightReadError> {
        if !self.is_on_disk() {
            return Ok(self.clone());
        }
        Ok(Self {
            store: WeightStore::Memory(Arc::new(self.read()?.into_owned())),
            ..self.clone()
        })
    }

    /// The weight as operations take it on this thread: as it is if the GPU holds it, otherwise in
    /// memory.
    ///
    /// # Errors
    /// As [`Weight::to_memory`].
    pub fn to_operand(&self) -> Result<Self, WeightReadError> {
        match self.is_on_gpu() {
            true => Ok(self.clone()),
            false => self.to_memory(),
        }
    }

    /// Changes the values of a weight in memory in place: an optimiser's step. Panics as
    /// [`Weight::values`].
    pub fn update(&mut self, change: impl FnOnce(&mut [f32])) {
        self.identity = Arc::default();
        match &mut self.store {
            WeightStore::Memory(values) => change(Arc::make_mut(values).as_mut_slice()),
            WeightStore::File { tensor, .. } => {
                unreachable!("a weight on disk must be loaded before it is changed: {tensor:?}")
            }
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

    /// The weight plus a product of two thin matrices.
    pub fn add_low_rank(&self, low_rank: LowRank) -> Self {
        self.with_edit(WeightEdit::AddLowRank(low_rank), self.rows, self.cols)
    }

    /// Applies an edit now to a weight in memory, and at each read to a weight in a file.
    fn with_edit(&self, edit: WeightEdit, rows: usize, cols: usize) -> Self {
        let edited = match &self.store {
            WeightStore::Memory(_) => {
                Self::new(edit.apply_to_copy(self.values(), self.cols), rows, cols)
            }
            WeightStore::File { tensor, edits } => {
                let store = WeightStore::File {
                    tensor: tensor.clone(),
                    edits: edits.iter().cloned().chain([edit]).collect(),
                };
                Self::from_store(store, rows, cols)
            }
        };
        edited.with_precision(self.precision)
    }
}

impl WeightEdit {
    /// The edited values of a row-major matrix with `cols` columns.
    fn apply_to_copy(&self, values: &[f32], cols: usize) -> Vec<f32> {
        match self {
            Self::KeepRows(keep) => copy_rows(values, cols, keep),
            Self::KeepCols(keep) => values
                .chunks_exact(cols)
                .flat_map(|row| keep.iter().map(|&col| row[col]))
                .collect(),
            Self::AddLowRank(_) => self.apply(values.to_vec(), cols).0,
        }
    }

    /// The edited values, in place where their number stays, and the number of columns.
    fn apply(&self, mut values: Vec<f32>, cols: usize) -> (Vec<f32>, usize) {
        match self {
            Self::KeepRows(_) => (self.apply_to_copy(&values, cols), cols),
            Self::KeepCols(keep) => (self.apply_to_copy(&values, cols), keep.len()),
            Self::AddLowRank(LowRank { a, b, scale }) => {
                let (a_values, b_values) = (a.values(), b.values());
                values
                    .par_chunks_exact_mut(cols)
                    .zip(b_values.par_chunks_exact(b.cols()))
                    .for_each(|(row, b_row)| add_low_rank_row(row, a_values, b_row, *scale));
                (values, cols)
            }
        }
    }
}

/// row += scale · (b_row · A). A is (rank, row.len()), b_row is (rank).
fn add_low_rank_row(row: &mut [f32], a: &[f32], b_row: &[f32], scale: f32) {
    for (b, a_row) in b_row.iter().zip(a.chunks_exact(row.len())) {
        for (w, a) in row.iter_mut().zip(a_row) {
            *w += scale * b * a;
        }
    }
}

/// Applies edits in their order to a row-major matrix with `cols` columns.
fn apply_edits(edits: &[WeightEdit], values: Vec<f32>, cols: usize) -> Vec<f32> {
    let unedited = (values, cols);
    let (edited, _) = edits
        .iter()
        .fold(unedited, |(values, cols), edit| edit.apply(values, cols));
    edited
}

fn copy_rows(values: &[f32], cols: usize, rows: &[usize]) -> Vec<f32> {
    rows.iter()
        .flat_map(|&row| &values[row * cols..(row + 1) * cols])
        .copied()
        .collect()
}

/// As (rows, cols, values).
impl Serialize for Weight {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let values = self.read().map_err(serde::ser::Error::custom)?;
        (self.rows, self.cols, &values[..]).serialize(serializer)
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

/// Compares shapes and values. A weight that cannot be read equals no other.
impl PartialEq for Weight {
    fn eq(&self, other: &Self) -> bool {
        (self.rows, self.cols) == (other.rows, other.cols)
            && matches!((self.read(), other.read()), (Ok(own), Ok(others)) if own == others)
    }
}
