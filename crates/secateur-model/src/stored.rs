//! Writes weights as safetensors, one tensor at a time, so that a model whose
//! blocks are on disk is never in memory as a whole.

use std::borrow::Cow;
use std::cell::RefCell;
use std::path::Path;

use rayon::prelude::*;
use safetensors::tensor::Dtype;
use safetensors::{SafeTensorError, View};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use secateur_tensor::Weight;

/// How numbers are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
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
    fn gather(&self, len: usize) -> Cow<'_, [f32]> {
        match self {
            Self::Weight(weight) => weight.values(),
            Self::Zeros => Cow::Owned(vec![0.0; len]),
            Self::Fused {
                parts,
                row_order,
                row_len,
            } => {
                let values: Vec<Option<Cow<'_, [f32]>>> =
                    parts.iter().map(|part| part.map(Weight::values)).collect();
                let mut fused = vec![0.0; len];
                let rows = fused.chunks_exact_mut(*row_len);
                for (to, &(part, row)) in rows.zip(row_order) {
                    if let Some(values) = &values[part] {
                        to.copy_from_slice(&values[row * row_len..(row + 1) * row_len]);
                    }
                }
                Cow::Owned(fused)
            }
        }
    }
}

/// A tensor as the safetensors library takes it: little-endian bytes, which are computed when the
/// library writes them.
struct TensorView<'a> {
    tensor: TensorToWrite<'a>,
    precision: StorageDtype,
    /// The name of the first tensor with a value beyond the range of its type. `View::data` cannot
    /// return an error, so it is recorded here.
    first_overflow: &'a RefCell<Option<String>>,
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
        let len = self.tensor.shape.iter().product();
        let values = self.tensor.values.gather(len);
        match (self.precision, values) {
            (StorageDtype::Float32, Cow::Borrowed(values)) if cfg!(target_endian = "little") => {
                Cow::Borrowed(bytemuck::cast_slice(values))
            }
            (StorageDtype::Float32, values) => Cow::Owned(encode_values(&values, f32::to_le_bytes)),
            (StorageDtype::Float16, values) => {
                if values
                    .par_iter()
                    .any(|&v| v.is_finite() && half::f16::from_f32(v).is_infinite())
                {
                    self.first_overflow
                        .borrow_mut()
                        .get_or_insert_with(|| self.tensor.name.clone());
                }
                Cow::Owned(encode_values(&values, |v| {
                    half::f16::from_f32(v).to_le_bytes()
                }))
            }
            (StorageDtype::Bfloat16, values) => Cow::Owned(encode_values(&values, |v| {
                half::bf16::from_f32(v).to_le_bytes()
            })),
        }
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
    let first_overflow = RefCell::new(None);
    let mut views: Vec<(String, TensorView<'_>)> = Vec::new();
    for tensor in tensors {
        let name = tensor.name.clone();
        let view = TensorView {
            tensor,
            precision,
            first_overflow: &first_overflow,
        };
        views.push((name, view));
    }
    safetensors::serialize_to_file(
        views,
        Some([("format".to_owned(), "pt".to_owned())].into()),
        path,
    )?;
    match first_overflow.into_inner() {
        Some(name) => Err(SafetensorsWriteError::Float16Overflow(name)),
        None => Ok(()),
    }
}
