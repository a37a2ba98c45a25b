//! The way to the GPU: through one piece of host memory that the driver has locked, so that its copies take the whole width of
//! the bus. Numbers are turned into half precision on the way into it.

use std::cell::RefCell;
use std::ops::Range;

use dfdx::dtypes::{AMP, f16};
use dfdx::prelude::{Dtype, Tensor, ZerosTensor};
use rayon::prelude::*;

use crate::activations::gpu::{Gpu, GpuHalfMatrix, GpuMatrix, Half, selected_device};

/// Elements that one thread prepares at a time.
const ELEMENTS_PER_TASK: usize = 1 << 16;

/// Numbers → a matrix on the GPU.
pub fn upload_f32(values: &[f32], shape: (usize, usize)) -> GpuMatrix {
    thread_local! {
        static STAGING_BUFFER: RefCell<StagingBuffer<f32>> = const { RefCell::new(StagingBuffer::new()) };
    }
    STAGING_BUFFER.with_borrow_mut(|stage| stage.upload(values, shape, |value| value))
}

/// Numbers → a matrix of their nearest halves on the GPU.
pub fn upload_f16(values: &[f32], shape: (usize, usize)) -> GpuHalfMatrix {
    thread_local! {
        static STAGING_BUFFER: RefCell<StagingBuffer<Half>> = const { RefCell::new(StagingBuffer::new()) };
    }
    STAGING_BUFFER
        .with_borrow_mut(|stage| stage.upload(values, shape, |value| AMP(f16::from_f32(value))))
}

/// Host memory that is used again and again; it grows to the largest weight. Whole pages of it are locked, so that no other
/// piece of memory is locked with it by half.
struct StagingBuffer<E> {
    memory: Vec<E>,
    /// The locked part.
    locked_range: Range<usize>,
}

/// Bytes of a page.
const PAGE_BYTES: usize = 4096;

impl<E> Drop for StagingBuffer<E> {
    fn drop(&mut self) {
        self.unlock();
    }
}

impl<E> StagingBuffer<E> {
    const fn new() -> Self {
        Self {
            memory: Vec::new(),
            locked_range: 0..0,
        }
    }

    #[cfg(feature = "cuda")]
    fn lock(&self) {
        crate::cuda::lock(&self.memory[self.pages.clone()]);
    }

    #[cfg(feature = "cuda")]
    fn unlock(&self) {
        crate::cuda::unlock(&self.memory[self.pages.clone()]);
    }

    #[cfg(not(feature = "cuda"))]
    fn lock(&self) {}

    #[cfg(not(feature = "cuda"))]
    fn unlock(&self) {}
}

impl<E: Dtype> StagingBuffer<E> {
    fn upload(
        &mut self,
        values: &[f32],
        shape: (usize, usize),
        make: impl Fn(f32) -> E + Sync,
    ) -> Tensor<(usize, usize), E, Gpu>
    where
        Gpu: ZerosTensor<E> + dfdx::prelude::CopySlice<E>,
    {
        if self.locked_range.len() < values.len() {
            self.unlock();
            let (page, len) = (
                PAGE_BYTES / size_of::<E>(),
                values.len().next_multiple_of(PAGE_BYTES / size_of::<E>()),
            );
            self.memory = vec![E::default(); len + page];
            let first = self.memory.as_ptr().align_offset(PAGE_BYTES).min(page);
            self.locked_range = first..first + len;
            self.lock();
        }
        let first = self.locked_range.start;
        let stage = &mut self.memory[first..first + values.len()];
        stage
            .par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(values.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(stage, values)| {
                stage
                    .iter_mut()
                    .zip(values)
                    .for_each(|(to, &value)| *to = make(value));
            });
        let mut matrix = selected_device().zeros_like(&shape);
        // returns when the copy is complete
        matrix.copy_from(stage);
        matrix
    }
}
