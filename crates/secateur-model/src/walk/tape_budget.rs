//! How many gradient tapes a backward walk keeps. A kept tape saves the recomputation of its block;
//! it costs the memory of all activations inside the block.

use super::pack::Pack;
use crate::cost::{self, F32_BYTES};
use crate::{Block, Model};
use secateur_base::memory;
use secateur_tensor::{gpu, gpu_weight_cache, memory_limit};

/// The lowest block whose tape is kept, at least `lowest_layer`; the number of blocks: none is.
///
/// The backward walk uses the blocks from the last to the first, so the tapes of the last blocks
/// are kept. A tape holds the weights of its block, so none is kept of a model that does not stay
/// in memory: one that is read from disk, or, on a GPU, one for which there is no space.
pub(crate) fn lowest_taped_layer(
    model: &Model,
    packs: &[Pack],
    lowest_layer: usize,
    process_limit: Option<u64>,
) -> usize {
    let layers = model.blocks.len();
    let on_gpu = gpu::is_selected();
    let (weights_stay_resident, bytes_to_upload) = if on_gpu {
        gpu_weight_cache::reserve_space(model.weights_used_by_walk())
    } else {
        (!model.blocks.iter().any(Block::is_on_disk), 0)
    };
    if !weights_stay_resident {
        return layers;
    }
    // Tapes are in the memory of the device that computes; on a GPU that has a limit of its own.
    let (limit, used) = match process_limit {
        _ if on_gpu => (
            memory_limit(),
            gpu_weight_cache::resident_bytes() + bytes_to_upload,
        ),
        Some(limit) => (limit, memory::resident_bytes()),
        None => return lowest_layer,
    };
    let needed =
        working_bytes(model, packs, lowest_layer) + input_bytes(model, packs, lowest_layer);
    let free = limit.saturating_sub(used + needed);
    let mut remaining_bytes = free - free / 16; // 1/16: overhead of the allocator
    let positions: u64 = packs.iter().map(|pack| pack.ids.len() as u64).sum();
    let mut lowest_taped = layers;
    while lowest_taped > lowest_layer {
        let layer = lowest_taped - 1;
        let tape_bytes = positions * tape_bytes_per_position(model, layer);
        // With one pack the last block's tape is used at once, so it costs no more than a
        // recomputation.
        let is_used_at_once = packs.len() == 1 && layer + 1 == layers;
        if tape_bytes > remaining_bytes && !is_used_at_once {
            break;
        }
        remaining_bytes = remaining_bytes.saturating_sub(tape_bytes);
        lowest_taped = layer;
    }
    lowest_taped
}

/// The bytes of a tape of one block, for one position.
fn tape_bytes_per_position(model: &Model, layer: usize) -> u64 {
    let (block, on_gpu) = (&model.blocks[layer], gpu::is_selected());
    let values = cost::tape_values_per_position(model.family, &model.config, block, on_gpu);
    F32_BYTES * values as u64
}

/// The bytes of the inputs of all blocks from `lowest_layer` up, and of three more hidden states:
/// (positions, hidden) each.
fn input_bytes(model: &Model, packs: &[Pack], lowest_layer: usize) -> u64 {
    let layers = model.blocks.len();
    let positions: u64 = packs.iter().map(|pack| pack.ids.len() as u64).sum();
    let states = (layers - lowest_layer.min(layers) + 3) as u64;
    F32_BYTES * positions * model.config.hidden as u64 * states
}

/// The bytes that one step of the backward walk takes while all kept tapes are in memory.
///
/// The backward walk begins with the head, which needs a tile of logits. Then each block's step
/// needs the gradients of the block's activations and of its weights, and frees a tape. Blocks are
/// recomputed only after all kept tapes are freed, so a recomputed tape need not fit beside them.
fn working_bytes(model: &Model, packs: &[Pack], lowest_layer: usize) -> u64 {
    let on_gpu = gpu::is_selected();
    let pack_lengths = packs.iter().map(|pack| pack.ids.len() as u64);
    let longest_pack = pack_lengths.max().unwrap_or(0);
    let tile_values =
        cost::logit_tile_values(longest_pack as f64, model.config.vocab as f64, on_gpu);
    let tile_bytes = F32_BYTES * tile_values as u64;
    let tape_bytes = (lowest_layer..model.blocks.len())
        .map(|layer| tape_bytes_per_position(model, layer))
        .max()
        .unwrap_or(0);
    let largest_block = model.blocks.iter().map(block_bytes).max().unwrap_or(0);
    // Over several packs, and always on a GPU, whole gradients are in memory: those of one pack and
    // their sum over the packs, and the same of their squares. With one pack on the CPU they are
    // reduced a band of rows at a time.
    let gradient_bytes = if packs.len() > 1 || on_gpu {
        4 * largest_block
    } else {
        largest_block / 8
    };
    // 3/2 of a tape: an estimate of the gradients of the activations in the block
    let block_step = longest_pack * tape_bytes * 3 / 2 + gradient_bytes;
    let attention_bytes = if on_gpu {
        F32_BYTES * gpu_attention_elements(model, packs)
    } else {
        0
    };
    block_step.max(tile_bytes) + attention_bytes
}

/// The bytes of a block's weights in f32.
fn block_bytes(block: &Block) -> u64 {
    let lengths = block.weights().map(|(_, weight)| weight.len());
    lengths.map(|len| len as u64).sum::<u64>() * F32_BYTES
}

/// Elements of the score matrices that the attention on a GPU holds at once in its backward pass,
/// for the pack that needs most.
fn gpu_attention_elements(model: &Model, packs: &[Pack]) -> u64 {
    let heads = model
        .blocks
        .iter()
        .map(|block| block.attention_heads(model.config.head_dim).query_heads)
        .max()
        .unwrap_or(0);
    let score_values = |pack: &Pack| {
        let lengths = pack.layout.spans.iter().map(|span| span.rows.len());
        cost::gpu_score_values(heads, lengths)
    };
    packs.iter().map(score_values).fold(0.0, f64::max) as u64
}
