//! One tensor of a safetensors file, or some of its rows, read when a weight is loaded and widened to f32.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;
use safetensors::tensor::Dtype;

use secateur_tensor::{WeightFile, WeightReadError};

/// A tensor of an opened checkpoint.
#[derive(Debug)]
pub(crate) struct CheckpointTensor {
    pub file: Arc<File>,
    pub path: PathBuf,
    pub name: String,
    pub dtype: Dtype,
    /// Where its bytes begin.
    pub offset: u64,
    pub rows: usize,
    pub cols: usize,
}

impl CheckpointTensor {
    /// Fills `to` with the values from element `first` on.
    fn read_into(&self, to: &mut [f32], first: usize) -> Result<(), WeightReadError> {
        let width = self.dtype.bitsize() / 8;
        let position = self.offset + (first * width) as u64;
        let read = |bytes: &mut [u8]| {
            self.file
                .read_exact_at(bytes, position)
                .map_err(|e| WeightReadError {
                    tensor: self.name.clone(),
                    path: self.path.display().to_string(),
                    message: e.to_string(),
                })
        };
        if self.dtype == Dtype::F32 && cfg!(target_endian = "little") {
            return read(bytemuck::cast_slice_mut(to));
        }
        let mut bytes = vec![0; to.len() * width];
        read(&mut bytes)?;
        match self.dtype {
            Dtype::F16 => bytes
                .chunks_exact(2)
                .zip(to)
                .for_each(|(b, v)| *v = half::f16::from_le_bytes([b[0], b[1]]).to_f32()),
            Dtype::BF16 => bytes
                .chunks_exact(2)
                .zip(to)
                .for_each(|(b, v)| *v = half::bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            _ => bytes
                .chunks_exact(4)
                .zip(to)
                .for_each(|(b, v)| *v = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        }
        Ok(())
    }
}

impl WeightFile for CheckpointTensor {
    fn read(&self) -> Result<Vec<f32>, WeightReadError> {
        /// Values that are read and widened at a time.
        const CHUNK_VALUES: usize = 1 << 18;
        let mut values = vec![0.0; self.rows * self.cols];
        values
            .par_chunks_mut(CHUNK_VALUES)
            .enumerate()
            .try_for_each(|(i, to)| self.read_into(to, i * CHUNK_VALUES))?;
        Ok(values)
    }

    fn read_rows(&self, rows: &[usize]) -> Result<Vec<f32>, WeightReadError> {
        let mut values = vec![0.0; rows.len() * self.cols];
        let mut filled = 0;
        // consecutive rows are read at once
        for run in rows.chunk_by(|a, b| a + 1 == *b) {
            let len = run.len() * self.cols;
            self.read_into(&mut values[filled..filled + len], run[0] * self.cols)?;
            filled += len;
        }
        Ok(values)
    }

    fn cols(&self) -> usize {
        self.cols
    }
}

/// Some rows of a stored tensor, in this order: one part of a fused tensor.
#[derive(Debug)]
pub(crate) struct CheckpointRows {
    pub stored: CheckpointTensor,
    /// Row of the part → row of the stored tensor.
    pub rows: Vec<usize>,
}

impl WeightFile for CheckpointRows {
    fn read(&self) -> Result<Vec<f32>, WeightReadError> {
        self.stored.read_rows(&self.rows)
    }

    fn read_rows(&self, rows: &[usize]) -> Result<Vec<f32>, WeightReadError> {
        let stored_rows: Vec<usize> = rows.iter().map(|&row| self.rows[row]).collect();
        self.stored.read_rows(&stored_rows)
    }

    fn cols(&self) -> usize {
        self.stored.cols
    }
}
