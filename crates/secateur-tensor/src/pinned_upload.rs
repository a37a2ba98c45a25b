//! Copies weights to the GPU through one buffer of pinned host memory: the driver copies from
//! pinned (page-locked) memory at the full speed of the bus. Values are rounded to half precision
//! on the way into the buffer.

use std::cell::RefCell;
use std::ops::Range;

use dfdx::dtypes::{AMP, f16};
use dfdx::prelude::{CopySlice, Dtype, Tensor, ZerosTensor};
use rayon::prelude::*;

use crate::gpu::{Gpu, GpuHalfMatrix, GpuMatrix, Half, selected_device};

/// Elements that one task converts.
const ELEMENTS_PER_TASK: usize = 1 << 16;

/// Bytes of a page of memory.
const PAGE_BYTES: usize = 4096;

/// Row-major values → a matrix on the GPU.
pub(crate) fn upload_f32(values: &[f32], shape: (usize, usize)) -> GpuMatrix {
    thread_local! {
        static BUFFER: RefCell<StagingBuffer<f32>> = const { RefCell::new(StagingBuffer::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| buffer.upload(values, shape, |value| value))
}

/// Row-major values → a matrix on the GPU, rounded to the nearest half.
pub(crate) fn upload_f16(values: &[f32], shape: (usize, usize)) -> GpuHalfMatrix {
    thread_local! {
        static BUFFER: RefCell<StagingBuffer<Half>> = const { RefCell::new(StagingBuffer::new()) };
    }
    let round = |value| AMP(f16::from_f32(value));
    BUFFER.with_borrow_mut(|buffer| buffer.upload(values, shape, round))
}

/// Host memory that all uploads of one element type use; it grows to the largest weight. Only whole
/// pages are pinned: a page shared with another allocation could be pinned and freed by either.
struct StagingBuffer<E> {
    memory: Vec<E>,
    /// The pinned part of `memory`, in elements.
    pinned_range: Range<usize>,
}

impl<E> Drop for StagingBuffer<E> {
    fn drop(&mut self) {
        self.unpin();
    }
}

impl<E> StagingBuffer<E> {
    const fn new() -> Self {
        Self {
            memory: Vec::new(),
            pinned_range: 0..0,
        }
    }

    #[cfg(feature = "cuda")]
    fn pin(&self) {
        crate::cuda::pin(&self.memory[self.pinned_range.clone()]);
    }

    #[cfg(feature = "cuda")]
    fn unpin(&self) {
        crate::cuda::unpin(&self.memory[self.pinned_range.clone()]);
    }

    #[cfg(not(feature = "cuda"))]
    fn pin(&self) {}

    #[cfg(not(feature = "cuda"))]
    fn unpin(&self) {}

    /// Replaces the memory by one whose pinned range holds `len` elements.
    fn grow(&mut self, len: usize)
    where
        E: Clone + Default,
    {
        self.unpin();
        let page = PAGE_BYTES / size_of::<E>();
        let pinned_len = len.next_multiple_of(page);
        // one page more than is pinned, so that the pinned range can begin at a page
        self.memory = vec![E::default(); pinned_len + page];
        let first = self.memory.as_ptr().align_offset(PAGE_BYTES).min(page);
        self.pinned_range = first..first + pinned_len;
        self.pin();
    }
}

impl<E: Dtype> StagingBuffer<E> {
    fn upload(
        &mut self,
        values: &[f32],
        shape: (usize, usize),
        convert: impl Fn(f32) -> E + Sync,
    ) -> Tensor<(usize, usize), E, Gpu>
    where
        Gpu: ZerosTensor<E> + CopySlice<E>,
    {
        if self.pinned_range.len() < values.len() {
            self.grow(values.len());
        }
        let first = self.pinned_range.start;
        let staged = &mut self.memory[first..first + values.len()];
        staged
            .par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(values.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(staged, values)| {
                for (element, &value) in staged.iter_mut().zip(values) {
                    *element = convert(value);
                }
            });
        let mut matrix = selected_device().zeros_like(&shape);
        // returns when the copy is complete: the buffer may be reused
        matrix.copy_from(staged);
        matrix
    }
}
