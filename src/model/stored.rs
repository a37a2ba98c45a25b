//! Weights out: safetensors straight from the weights' memory.

use std::borrow::Cow;
use std::path::Path;

use safetensors::tensor::Dtype;
use safetensors::{SafeTensorError, View};

use crate::tensor::Weight;

/// A weight as safetensors sees it: float32, little-endian; a vector where `vector` says so.
pub struct Stored<'a> {
    values: Cow<'a, [f32]>,
    shape: Vec<usize>,
}

impl<'a> Stored<'a> {
    pub fn matrix(weight: &'a Weight) -> Self {
        Self { values: weight.values(), shape: vec![weight.rows(), weight.cols()] }
    }

    /// A vector of so many zeros.
    pub fn zeros(len: usize) -> Self {
        Self { values: Cow::Owned(vec![0.0; len]), shape: vec![len] }
    }

    pub fn vector(weight: &'a Weight) -> Self {
        Self { values: weight.values(), shape: vec![weight.len()] }
    }
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        if cfg!(target_endian = "little") {
            Cow::Borrowed(bytemuck::cast_slice(&self.values))
        } else {
            Cow::Owned(self.values.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
    }
    fn data_len(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
}

/// Writes a file of tensors; its metadata says `format: pt`, which transformers and PEFT ask for.
pub fn write(path: &Path, tensors: Vec<(String, Stored<'_>)>) -> Result<(), SafeTensorError> {
    safetensors::serialize_to_file(tensors, Some([("format".to_owned(), "pt".to_owned())].into()), path)
}
