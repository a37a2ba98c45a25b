//! Where the blocks of a walk come from: memory, or the disk, where the next one is read and widened in a thread of its own
//! while the one at hand computes. On a GPU a block stays where it was brought, if there is room; else it is lent for its turn.

use std::ops::ControlFlow;
use std::thread::ScopedJoinHandle;

use crate::{Block, Model};
use secateur_tensor::{gpu, resident};

/// Hands these blocks to `work`, in memory, one after another, until it says to stop.
pub fn for_each_block(
    model: &Model,
    layers: impl Iterator<Item = usize>,
    mut work: impl FnMut(usize, &Block) -> ControlFlow<()>,
) {
    let mut layers = layers.peekable();
    if gpu::is_selected() {
        resident::reserve_space(model.weights_used_by_walk());
    }
    std::thread::scope(|scope| {
        let mut ahead: Option<ScopedJoinHandle<'_, Block>> = None;
        while let Some(layer) = layers.next() {
            let block = match ahead.take() {
                Some(read) => join_read_ahead(read),
                None if model.blocks[layer].is_on_gpu() => model.blocks[layer].clone(),
                None => model.blocks[layer].load_into_memory(),
            };
            let next = layers.peek().map(|&next| &model.blocks[next]);
            ahead = next
                .filter(|next| next.is_on_disk() && !next.is_on_gpu())
                .map(|next| scope.spawn(|| next.load_into_memory()));
            let lent = block.gpu_leases();
            if work(layer, &block).is_break() {
                break;
            }
            drop(lent);
        }
        ahead.map(join_read_ahead);
    });
}

/// Waits for the block that is read ahead. The reader shares its work out in the pool that this thread is one of, so waiting is
/// helping: with a single thread nobody else would.
fn join_read_ahead(read: ScopedJoinHandle<'_, Block>) -> Block {
    while !read.is_finished() {
        if rayon::yield_now() != Some(rayon::Yield::Executed) {
            std::thread::yield_now();
        }
    }
    read.join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
