//! Writes weights as safetensors, one tensor at a time, so that a model whose
//! blocks are on disk is never in memory as a whole.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::path::Path;

use rayon::prelude::*;
use safetensors::tensor::Dtype;
use safetensors::{SafeTensorError, View};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use secateur_base::files::create_empty_file;
use secateur_tensor::{Weight, WeightReadError};

/// How numbers are written.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Deserialize,
    Serialize,
    JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum StorageDtype {
    /// As they are computed: what is read back has the same bits.
    #[default]
    Float32,
    /// Half the size; numbers beyond 65504 are an error.
    Float16,
    /// Half the size, the range of float32.
    Bfloat16,
}

impl StorageDtype {
    /// The type of a stored tensor. None: one that is not read.
    pub(crate) fn from_stored(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::Float32),
            Dtype::F16 => Some(Self::Float16),
            Dtype::BF16 => Some(Self::Bfloat16),
            _ => None,
        }
    }

    /// PyTorch's name of it.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
        }
    }

    /// Bytes of a number.
    pub fn bytes_per_value(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Float16 | Self::Bfloat16 => 2,
        }
    }
}

/// A file of tensors could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsWriteError {
    #[error(transparent)]
    File(#[from] SafeTensorError),
    #[error(transparent)]
    UnreadableWeight(#[from] WeightReadError),
    #[error(
        "`{0}` holds a number beyond the 65504 of float16; write dtype = \"bfloat16\" or \
         \"float32\""
    )]
    Float16Overflow(String),
}

/// A tensor to be written.
pub struct TensorToWrite<'a> {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: ValuesToWrite<'a>,
}

/// Where the values of a tensor come from.
pub enum ValuesToWrite<'a> {
    Weight(&'a Weight),
    Zeros,
    /// Rows of several weights in one tensor.
    Fused {
        /// None: the rows of this part are zeros.
        parts: Vec<Option<&'a Weight>>,
        /// For each row of the tensor the index of its part and its row in that part.
        row_order: Vec<(usize, usize)>,
        /// Values of a row.
        row_len: usize,
    },
}

impl<'a> TensorToWrite<'a> {
    pub fn matrix(name: String, weight: &'a Weight) -> Self {
        Self {
            name,
            shape: vec![weight.rows(), weight.cols()],
            values: ValuesToWrite::Weight(weight),
        }
    }

    pub fn vector(name: String, weight: &'a Weight) -> Self {
        Self {
            name,
            shape: vec![weight.len()],
            values: ValuesToWrite::Weight(weight),
        }
    }

    /// A vector of `len` zeros.
    pub fn zeros(name: String, len: usize) -> Self {
        Self {
            name,
            shape: vec![len],
            values: ValuesToWrite::Zeros,
        }
    }
}

impl ValuesToWrite<'_> {
    /// All values, row-major. A weight on disk is read here.
    fn gather(&self, len: usize) -> Result<Cow<'_, [f32]>, WeightReadError> {
        match self {
            Self::Weight(weight) => weight.read(),
            Self::Zeros => Ok(Cow::Owned(vec![0.0; len])),
            Self::Fused {
                parts,
                row_order,
                row_len,
            } => {
                let values: Vec<Option<Cow<'_, [f32]>>> = parts
                    .iter()
                    .map(|part| part.map(Weight::read).transpose())
                    .collect::<Result<_, _>>()?;
                let mut fused = vec![0.0; len];
                let rows = fused.chunks_exact_mut(*row_len);
                for (to, &(part, row)) in rows.zip(row_order) {
                    if let Some(values) = &values[part] {
                        to.copy_from_slice(&values[row * row_len..(row + 1) * row_len]);
                    }
                }
                Ok(Cow::Owned(fused))
            }
        }
    }
}

/// A tensor as the safetensors library takes it: little-endian bytes, which are computed when the
/// library writes them.
struct TensorView<'a> {
    tensor: TensorToWrite<'a>,
    precision: StorageDtype,
    /// The first error of any tensor: [`View::data`] returns none, so it is set here and returned when the
    /// library is done.
    first_error: &'a OnceCell<SafetensorsWriteError>,
}

impl TensorView<'_> {
    /// The bytes of the values.
    fn encode(&self) -> Result<Cow<'_, [u8]>, SafetensorsWriteError> {
        let len = self.tensor.shape.iter().product();
        let values = self.tensor.values.gather(len)?;
        Ok(match (self.precision, values) {
            (StorageDtype::Float32, Cow::Borrowed(values)) if cfg!(target_endian = "little") => {
                Cow::Borrowed(bytemuck::cast_slice(values))
            }
            (StorageDtype::Float32, values) => Cow::Owned(encode_values(&values, f32::to_le_bytes)),
            (StorageDtype::Float16, values) => {
                let overflows = |&v: &f32| v.is_finite() && half::f16::from_f32(v).is_infinite();
                if values.par_iter().any(overflows) {
                    let name = self.tensor.name.clone();
                    return Err(SafetensorsWriteError::Float16Overflow(name));
                }
                Cow::Owned(encode_values(&values, |v| {
                    half::f16::from_f32(v).to_le_bytes()
                }))
            }
            (StorageDtype::Bfloat16, values) => Cow::Owned(encode_values(&values, |v| {
                half::bf16::from_f32(v).to_le_bytes()
            })),
        })
    }
}

impl View for TensorView<'_> {
    fn dtype(&self) -> Dtype {
        match self.precision {
            StorageDtype::Float32 => Dtype::F32,
            StorageDtype::Float16 => Dtype::F16,
            StorageDtype::Bfloat16 => Dtype::BF16,
        }
    }
    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        // After an error the file is of no use, so nothing more is read or encoded.
        if self.first_error.get().is_some() {
            return Cow::Borrowed(&[]);
        }
        self.encode().unwrap_or_else(|error| {
            self.first_error.get_or_init(|| error);
            Cow::Borrowed(&[])
        })
    }
    fn data_len(&self) -> usize {
        self.tensor.shape.iter().product::<usize>() * self.precision.bytes_per_value()
    }
}

/// The bytes of every value, N each.
fn encode_values<const N: usize>(
    values: &[f32],
    to_bytes: impl Fn(f32) -> [u8; N] + Sync,
) -> Vec<u8> {
    /// Values that one task encodes.
    const TASK_VALUES: usize = 1 << 16;
    let encode_chunk = |(chunk_bytes, chunk_values): (&mut [u8], &[f32])| {
        for (bytes, &value) in chunk_bytes.chunks_exact_mut(N).zip(chunk_values) {
            bytes.copy_from_slice(&to_bytes(value));
        }
    };
    let mut encoded = vec![0; values.len() * N];
    encoded
        .par_chunks_mut(TASK_VALUES * N)
        .zip(values.par_chunks(TASK_VALUES))
        .for_each(encode_chunk);
    encoded
}

/// Writes a file of tensors. Its metadata says `format: pt`, which transformers and PEFT require.
pub fn write_safetensors<'a>(
    path: &Path,
    precision: StorageDtype,
    tensors: impl IntoIterator<Item = TensorToWrite<'a>>,
) -> Result<(), SafetensorsWriteError> {
    let first_error = OnceCell::new();
    let views: Vec<(String, TensorView<'_>)> = tensors
        .into_iter()
        .map(|stored| {
            (
                stored.name.clone(),
                TensorView {
                    tensor: stored,
                    precision,
                    first_error: &first_error,
                },
            )
        })
        .collect();
    // The library writes a temporary file that only its owner can read, and renames it.
    let permissions = create_empty_file(path).map_err(SafeTensorError::from)?;
    safetensors::serialize_to_file(
        views,
        Some([("format".to_owned(), "pt".to_owned())].into()),
        path,
    )?;
    std::fs::set_permissions(path, permissions).map_err(SafeTensorError::from)?;
    match first_error.into_inner() {
        None => Ok(()),
        Some(error) => {
            // The library has written an incomplete file. If it cannot be removed, the error is still returned.
            _ = std::fs::remove_file(path);
            Err(error)
        }
    }
}
