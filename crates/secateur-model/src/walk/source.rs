//! Provides the blocks of a walk, from memory or from disk. From disk, a thread reads the next
//! block and widens it to f32 while the current one computes. On a GPU a block that was uploaded
//! stays there if there is space; otherwise it is uploaded before it computes and dropped
//! afterwards.

use std::ops::ControlFlow;
use std::thread::ScopedJoinHandle;

use crate::{Block, Model};
use secateur_tensor::{WeightReadError, gpu, gpu_weight_cache};

/// A thread that reads a block.
type BlockReader<'scope> = ScopedJoinHandle<'scope, Result<Block, WeightReadError>>;

/// Calls `work` with each of these blocks, in memory or on the GPU, until it breaks.
///
/// # Errors
/// If a block on disk cannot be read.
pub(crate) fn for_each_block(
    model: &Model,
    layers: impl Iterator<Item = usize>,
    mut work: impl FnMut(usize, &Block) -> ControlFlow<()>,
) -> Result<(), WeightReadError> {
    let mut layers = layers.peekable();
    if gpu::is_selected() {
        gpu_weight_cache::reserve_space(model.weights_used_by_walk());
    }
    std::thread::scope(|scope| {
        let mut next_block: Option<BlockReader<'_>> = None;
        while let Some(layer) = layers.next() {
            let block = match next_block.take() {
                Some(reader) => join_reader(reader)?,
                None if model.blocks[layer].is_on_gpu() => model.blocks[layer].clone(),
                None => model.blocks[layer].load_into_memory()?,
            };
            next_block = layers
                .peek()
                .map(|&next_layer| &model.blocks[next_layer])
                .filter(|next| next.is_on_disk() && !next.is_on_gpu())
                .map(|next| scope.spawn(|| next.load_into_memory()));
            let gpu_leases = block.gpu_leases();
            if work(layer, &block).is_break() {
                break;
            }
            drop(gpu_leases);
        }
        next_block.map_or(Ok(()), |reader| join_reader(reader).map(drop))
    })
}

/// Waits for the block that is being read. The reader divides its work over the thread pool that this thread
/// belongs to, so the wait executes the pool's tasks: with one thread in the pool no other thread would.
fn join_reader(reader: BlockReader<'_>) -> Result<Block, WeightReadError> {
    while !reader.is_finished() {
        if rayon::yield_now() != Some(rayon::Yield::Executed) {
            std::thread::yield_now();
        }
    }
    reader
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
