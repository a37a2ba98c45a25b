//! The walk through a model, one block at a time.
//!
//! A model is an embedding, a list of blocks and a head. The forward walk carries the hidden states of all
//! packs through the blocks. The backward walk ([`backward()`]) then goes from the head down to the embedding
//! and hands the gradients of each block to a visitor before it goes on to the next.
//!
//! A walk reads the weights that are on disk: each block before its turn, the rows of the embedding at its
//! start, and the head. If one cannot be read, the walk ends with a [`WeightReadError`].

use std::ops::ControlFlow;
use std::sync::Mutex;

mod backward;
mod decode;
mod pack;
mod source;
mod tape_budget;

pub use backward::{BackwardOptions, GradientVisitor, Loss, backward};
pub use decode::Decoder;
pub use pack::{Pack, Sequence};

use pack::{build_packs, build_prefix_shared_packs};
use source::for_each_block;

use super::Model;
use super::block::BlockSettings;
use super::hooks::{BlockHooks, NoHooks};
use super::wiring::TensorId;
use secateur_tensor::ops::{self, KvCache, TokenScore};
use secateur_tensor::{Activations, WeightReadError};

/// Carries the sequences through all blocks. Returns the last block's output of each pack, before the final
/// norm: (positions, hidden). `hooks` makes the hooks of one block and one pack.
pub fn forward<H: BlockHooks>(
    model: &Model,
    sequences: &[Sequence],
    hooks: impl Fn(usize, &Pack) -> H,
) -> Result<Vec<(Pack, Activations)>, WeightReadError> {
    run_blocks(model, build_packs(model, sequences, false), hooks)
}

fn run_blocks<H: BlockHooks>(
    model: &Model,
    packs: Vec<Pack>,
    hooks: impl Fn(usize, &Pack) -> H,
) -> Result<Vec<(Pack, Activations)>, WeightReadError> {
    let mut states = embed_packs(model, &packs)?;
    for_each_block(model, 0..model.blocks.len(), |layer, block| {
        for (pack, state) in packs.iter().zip(&mut states) {
            let settings = block_settings(model, pack, None);
            *state = block.forward(state.clone(), &settings, &hooks(layer, pack));
        }
        ControlFlow::Continue(())
    })?;
    Ok(packs.into_iter().zip(states).collect())
}

/// The embedded tokens of each pack, (positions, hidden): the first block's input.
fn embed_packs(model: &Model, packs: &[Pack]) -> Result<Vec<Activations>, WeightReadError> {
    packs
        .iter()
        .map(|pack| ops::embed(&model.embedding, &pack.ids))
        .collect()
}

/// The logits of one sequence at every position, (positions, vocabulary).
pub fn logits(model: &Model, ids: &[u32]) -> Result<Activations, WeightReadError> {
    let sequence = Sequence {
        ids: ids.to_vec(),
        targets: Vec::new(),
    };
    let mut outputs = forward(model, &[sequence], |_, _| NoHooks)?;
    let last_hidden = match outputs.pop() {
        Some((_, output)) => output,
        None => ops::embed(&model.embedding, &[])?,
    };
    let head = model.weight(TensorId::LmHead).to_operand()?;
    Ok(ops::linear(final_norm(model, last_hidden), &head, None))
}

/// The final norm of the last block's output, (positions, hidden).
fn final_norm(model: &Model, last_hidden: Activations) -> Activations {
    model.normalize_output(last_hidden, None)
}

/// The log probability of each target, by sequence: one forward walk in which sequences share a common prefix,
/// and logits only at the positions of targets. On the CPU the bits of a sequence's scores do not depend on
/// the other sequences.
pub fn token_scores(
    model: &Model,
    sequences: &[Sequence],
) -> Result<Vec<Vec<TokenScore>>, WeightReadError> {
    let (packs, order) = build_prefix_shared_packs(model, sequences);
    let outputs = run_blocks(model, packs, |_, _| NoHooks)?;
    let head = model.weight(TensorId::LmHead).to_operand()?;
    let _gpu_leases = (head.lease_on_gpu(), model.final_norm.lease_on_gpu());
    let mut scores = vec![Vec::new(); sequences.len()];
    // The packs hold the sequences in the order of `order`.
    let mut sequence_numbers = order.into_iter();
    for (pack, output) in outputs {
        let pack_scores = ops::token_scores(&final_norm(model, output), &head, &pack.targets);
        let sequence_scores = pack.split_by_sequence(pack_scores);
        for (sequence_score, number) in sequence_scores.zip(&mut sequence_numbers) {
            scores[number] = sequence_score;
        }
    }
    Ok(scores)
}

fn block_settings<'a>(
    model: &'a Model,
    pack: &'a Pack,
    kv_cache: Option<&'a Mutex<KvCache>>,
) -> BlockSettings<'a> {
    BlockSettings {
        family: model.family,
        config: &model.config,
        layout: &pack.layout,
        kv_cache,
    }
}
