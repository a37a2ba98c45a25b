//! A layer's part of a KV cache, on the device of the current thread.

use super::{cpu, gpu};

/// Rotated keys, and values, of the positions read so far, sequence by sequence.
#[derive(Clone, Debug)]
pub enum KvCache {
    Cpu(cpu::CpuKvCache),
    Gpu(gpu::GpuKvCache),
}

impl KvCache {
    /// An empty cache for `sequences` sequences of at most `positions` positions. Keys and values
    /// have `width` elements per position each.
    pub fn new(sequences: usize, positions: usize, width: usize) -> Self {
        if crate::gpu::is_selected() {
            Self::Gpu(gpu::GpuKvCache::new(sequences, positions, width))
        } else {
            Self::Cpu(cpu::CpuKvCache::new(sequences, width))
        }
    }

    pub(super) fn as_cpu_mut(&mut self) -> &mut cpu::CpuKvCache {
        match self {
            Self::Cpu(cache) => cache,
            Self::Gpu(_) => unreachable!("a cache is on the device of its activations"),
        }
    }

    pub(super) fn as_gpu_mut(&mut self) -> &mut gpu::GpuKvCache {
        match self {
            Self::Gpu(cache) => cache,
            Self::Cpu(_) => unreachable!("a cache is on the device of its activations"),
        }
    }
}
