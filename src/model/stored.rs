//! Weights out: safetensors straight from the weights, one tensor at a time, so that a model whose blocks lie on disk passes
//! through memory piece by piece.

use std::borrow::Cow;
use std::cell::RefCell;
use std::path::Path;

use rayon::prelude::*;
use safetensors::tensor::Dtype;
use safetensors::{SafeTensorError, View};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tensor::Weight;

/// How numbers are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// As they are computed: what is read back has the same bits.
    #[default]
    Float32,
    /// Half the size; numbers beyond 65504 are an error.
    Float16,
    /// Half the size, the range of float32.
    Bfloat16,
}

impl Precision {
    /// PyTorch's name of it.
    pub fn torch(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
        }
    }

    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Float16 | Self::Bfloat16 => 2,
        }
    }
}

/// A file of tensors could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    File(#[from] SafeTensorError),
    #[error("`{0}` holds a number beyond the 65504 of float16; write dtype = \"bfloat16\" or \"float32\"")]
    TooLarge(String),
}

/// A tensor to be written.
pub struct Stored<'a> {
    pub name: String,
    pub shape: Vec<usize>,
    /// None: zeros.
    pub weight: Option<&'a Weight>,
}

impl<'a> Stored<'a> {
    pub fn matrix(name: String, weight: &'a Weight) -> Self {
        Self { name, shape: vec![weight.rows(), weight.cols()], weight: Some(weight) }
    }

    pub fn vector(name: String, weight: &'a Weight) -> Self {
        Self { name, shape: vec![weight.len()], weight: Some(weight) }
    }

    /// A vector of so many zeros.
    pub fn zeros(name: String, len: usize) -> Self {
        Self { name, shape: vec![len], weight: None }
    }
}

/// A tensor as safetensors sees it: little-endian bytes, made when they are written.
struct Bytes<'a> {
    stored: Stored<'a>,
    precision: Precision,
    /// The first tensor that did not fit its precision.
    too_large: &'a RefCell<Option<String>>,
}

impl View for Bytes<'_> {
    fn dtype(&self) -> Dtype {
        match self.precision {
            Precision::Float32 => Dtype::F32,
            Precision::Float16 => Dtype::F16,
            Precision::Bfloat16 => Dtype::BF16,
        }
    }
    fn shape(&self) -> &[usize] {
        &self.stored.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let Some(weight) = self.stored.weight else { return Cow::Owned(vec![0; self.data_len()]) };
        let values = weight.values();
        match (self.precision, values) {
            (Precision::Float32, Cow::Borrowed(values)) if cfg!(target_endian = "little") => {
                Cow::Borrowed(bytemuck::cast_slice(values))
            }
            (Precision::Float32, values) => Cow::Owned(narrowed(&values, f32::to_le_bytes)),
            (Precision::Float16, values) => {
                if values.par_iter().any(|&v| v.is_finite() && half::f16::from_f32(v).is_infinite()) {
                    self.too_large.borrow_mut().get_or_insert_with(|| self.stored.name.clone());
                }
                Cow::Owned(narrowed(&values, |v| half::f16::from_f32(v).to_le_bytes()))
            }
            (Precision::Bfloat16, values) => Cow::Owned(narrowed(&values, |v| half::bf16::from_f32(v).to_le_bytes())),
        }
    }
    fn data_len(&self) -> usize {
        self.stored.shape.iter().product::<usize>() * self.precision.bytes()
    }
}

fn narrowed<const N: usize>(values: &[f32], bytes: impl Fn(f32) -> [u8; N] + Sync) -> Vec<u8> {
    const TOGETHER: usize = 1 << 16;
    let mut out = vec![0; values.len() * N];
    out.par_chunks_mut(TOGETHER * N).zip(values.par_chunks(TOGETHER)).for_each(|(out, values)| {
        out.chunks_exact_mut(N).zip(values).for_each(|(out, &value)| out.copy_from_slice(&bytes(value)));
    });
    out
}

/// Writes a file of tensors; its metadata says `format: pt`, which transformers and PEFT ask for.
pub fn write<'a>(path: &Path, precision: Precision, tensors: impl IntoIterator<Item = Stored<'a>>) -> Result<(), WriteError> {
    let too_large = RefCell::new(None);
    let views: Vec<(String, Bytes<'_>)> =
        tensors.into_iter().map(|stored| (stored.name.clone(), Bytes { stored, precision, too_large: &too_large })).collect();
    safetensors::serialize_to_file(views, Some([("format".to_owned(), "pt".to_owned())].into()), path)?;
    too_large.into_inner().map_or(Ok(()), |name| Err(WriteError::TooLarge(name)))
}
