//! The walk through a model, one block at a time.
//!
//! Forward carries the hidden states of all packs through the blocks. Backward goes from the head down: run the tape of a
//! block, kept if memory allows, else made again from the block's kept input; start it from the gradient that came from
//! above, hand what was gathered to a [`Visitor`], drop it, pass the input's gradient on. At most one block's gradients are
//! alive (activation checkpointing: Chen et al. 2016; gradients consumed as they appear: Lv et al. 2023, "LOMO").

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Mutex;

mod decode;
mod pack;
mod source;

pub use decode::Decoder;
pub use pack::{Pack, Sequence};

use pack::{build_packs, build_prefix_shared_packs};
use source::for_each_block;

use super::block::BlockSettings;
use super::cost;
use super::hooks::{BlockHooks, NoHooks};
use super::wiring::TensorId;
use super::{Block, Model};
use secateur_base::memory;
use secateur_tensor::ops::{
    self, AxisSums, GradientQuery, GradientRequest, GradientResult, KvCache, TokenScore,
};
use secateur_tensor::{Activations, Gradient, GradientTape, Weight, gpu, memory_limit, resident};

/// Whoever wants gradients. What is found arrives pack by pack in their order, so sums have the same bits on any number of
/// threads.
pub trait GradientVisitor {
    /// Looks on while a pack passes through one block.
    type Hooks: BlockHooks;

    /// A lens for a block and a pack; asked for twice where the block is recomputed, it must do the same.
    fn hooks(&self, layer: usize, pack: &Pack) -> Self::Hooks;
    /// One pack has passed down through one block: what the lens gathered.
    fn visit_block(&mut self, layer: usize, pack: &Pack, lens: Self::Hooks);
    /// All packs have.
    fn finish_block(&mut self, _layer: usize, _block: &Block) {}

    /// What is asked about the embedding, the final norm or the head. The embedding's share of a tied head comes as the head.
    fn query(&self, _outside: TensorId, _pack: &Pack) -> Option<GradientQuery> {
        None
    }
    /// The answer for one pack: the norm's and the head's before the blocks', the embedding's after them.
    fn visit_outer_tensor(&mut self, _at: TensorId, _pack: &Pack, _answer: GradientResult) {}
    /// Whether each sequence must be a pack of its own.
    fn needs_separate_packs(&self) -> bool {
        false
    }
    /// Into how many packs the walk has cut the sequences.
    fn set_pack_count(&mut self, _packs: usize) {}
    /// Bytes that the process may take: as many tapes are kept as fit, the others made again. None: all are kept.
    fn memory_limit(&self) -> Option<u64> {
        None
    }
    /// Whether to end the walk early: asked before each block.
    fn is_done(&self) -> bool {
        false
    }
}

/// What a backward walk found out about the whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// Mean cross entropy over all targets of all sequences, in nats.
    pub mean: f64,
    /// Number of targets.
    pub target_count: usize,
}

/// The final hidden states, before the last norm, pack by pack: (positions, hidden).
pub fn forward<L: BlockHooks>(
    model: &Model,
    sequences: &[Sequence],
    lens: impl Fn(usize, &Pack) -> L,
) -> Vec<(Pack, Activations)> {
    run_blocks(model, build_packs(model, sequences, false), lens)
}

fn run_blocks<L: BlockHooks>(
    model: &Model,
    packs: Vec<Pack>,
    lens: impl Fn(usize, &Pack) -> L,
) -> Vec<(Pack, Activations)> {
    let mut states: Vec<Activations> = packs
        .iter()
        .map(|pack| ops::embed(&model.embedding, &pack.ids))
        .collect();
    for_each_block(model, 0..model.blocks.len(), |layer, block| {
        for (pack, x) in packs.iter().zip(&mut states) {
            *x = block.forward(
                x.clone(),
                &block_settings(model, pack, None),
                &lens(layer, pack),
            );
        }
        ControlFlow::Continue(())
    });
    packs.into_iter().zip(states).collect()
}

/// The logits of one sequence at every position, (positions, vocabulary).
pub fn logits(model: &Model, ids: &[u32]) -> Activations {
    let whole = Sequence {
        ids: ids.to_vec(),
        targets: Vec::new(),
    };
    let mut states = forward(model, &[whole], |_, _| NoHooks);
    let x = states
        .pop()
        .map_or_else(|| ops::embed(&model.embedding, &[]), |(_, x)| x);
    ops::linear(
        model.normalize_output(x, None),
        model.weight(TensorId::LmHead),
        None,
    )
}

/// Rates the targets of each sequence: one forward pass in which sequences share what they begin with, and logits only at the
/// positions that are asked about. On the CPU a sequence's scores have the same bits whatever stands beside it.
pub fn token_scores(model: &Model, sequences: &[Sequence]) -> Vec<Vec<TokenScore>> {
    let (packs, order) = build_prefix_shared_packs(model, sequences);
    let states = run_blocks(model, packs, |_, _| NoHooks);
    let head = model.weight(TensorId::LmHead).to_memory();
    let _lent = (head.lease_on_gpu(), model.final_norm.lease_on_gpu());
    let rate = |(pack, x): (Pack, Activations)| {
        let x = model.normalize_output(x, None);
        pack.split_by_sequence(ops::token_scores(&x, &head, &pack.targets))
            .collect::<Vec<_>>()
    };
    let mut scores = vec![Vec::new(); sequences.len()];
    for (at, rated) in order.into_iter().zip(states.into_iter().flat_map(rate)) {
        scores[at] = rated;
    }
    scores
}

/// Walks all sequences forward, then backward down to the block `lowest`, and lets the visitor see what it asks of the
/// gradients of the mean loss over all their targets.
pub fn backward<V: GradientVisitor>(
    model: &Model,
    sequences: &[Sequence],
    lowest: usize,
    visitor: &mut V,
) -> Loss {
    let targets = sequences.iter().map(|s| s.targets.len()).sum::<usize>();
    let packs = build_packs(model, sequences, visitor.needs_separate_packs());
    visitor.set_pack_count(packs.len());
    let taped = first_taped_layer(model, &packs, lowest, visitor.memory_limit());

    // What the way down needs of every block from `lowest` up, pack by pack.
    let mut kept: Vec<Vec<SavedForBackward<V::Hooks>>> = packs.iter().map(|_| Vec::new()).collect();
    let mut states: Vec<Activations> = packs
        .iter()
        .map(|pack| ops::embed(&model.embedding, &pack.ids))
        .collect();
    for_each_block(model, 0..model.blocks.len(), |layer, block| {
        for ((pack, x), kept) in packs.iter().zip(&mut states).zip(&mut kept) {
            let (lens, settings) = (
                visitor.hooks(layer, pack),
                block_settings(model, pack, None),
            );
            if layer < taped {
                let y = block.forward(x.clone(), &settings, &lens);
                let x = std::mem::replace(x, y);
                if layer >= lowest {
                    kept.push(SavedForBackward::Input(x));
                }
            } else {
                let output = block.forward(x.with_gradient_tape(), &settings, &lens);
                let input = std::mem::replace(x, output.with_empty_tape());
                kept.push(SavedForBackward::Tape {
                    input,
                    output,
                    hooks: lens,
                });
            }
        }
        if visitor.is_done() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });

    let mut nll = 0.0;
    let mut upstream: Vec<Option<Activations>> = Vec::with_capacity(packs.len());
    if visitor.is_done() {
        return Loss {
            mean: nll,
            target_count: targets,
        };
    }
    let head = model.weight(TensorId::LmHead).to_memory();
    let lent = (head.lease_on_gpu(), model.final_norm.lease_on_gpu());
    for (pack, x) in packs.iter().zip(states) {
        let down = head_backward(model, &head, x, pack, 1.0 / targets as f32, visitor);
        nll += down.0;
        upstream.push(Some(down.1));
    }
    drop((head, lent));

    for_each_block(model, (lowest..model.blocks.len()).rev(), |layer, block| {
        if visitor.is_done() {
            return ControlFlow::Break(());
        }
        for ((pack, upstream), kept) in packs.iter().zip(&mut upstream).zip(&mut kept) {
            let (input, output, lens) = match kept.pop() {
                Some(SavedForBackward::Tape {
                    input,
                    output,
                    hooks: lens,
                }) => (input, output, lens),
                Some(SavedForBackward::Input(input)) => {
                    let lens = visitor.hooks(layer, pack);
                    let output = block.forward(
                        input.with_gradient_tape(),
                        &block_settings(model, pack, None),
                        &lens,
                    );
                    (input, output, lens)
                }
                None => continue,
            };
            *upstream = upstream
                .take()
                .map(|upstream| ops::backward(output, upstream, &input));
            visitor.visit_block(layer, pack, lens);
        }
        visitor.finish_block(layer, block);
        ControlFlow::Continue(())
    });

    if lowest == 0 && !visitor.is_done() {
        for (pack, upstream) in packs.iter().zip(&upstream) {
            if let (Some(ask), Some(upstream)) =
                (visitor.query(TensorId::Embedding, pack), upstream)
            {
                visitor.visit_outer_tensor(
                    TensorId::Embedding,
                    pack,
                    embedding_gradient_result(
                        &model.embedding,
                        &ask,
                        &pack.ids,
                        &upstream.values(),
                    ),
                );
            }
        }
    }
    Loss {
        mean: nll / targets as f64,
        target_count: targets,
    }
}

/// How a block is gone through again on the way down.
enum SavedForBackward<L> {
    /// From its input, with a new tape.
    Input(Activations),
    /// By the tape that it left.
    Tape {
        input: Activations,
        output: Activations<GradientTape>,
        hooks: L,
    },
}

/// The lowest block whose tape is kept, `lowest` or above it. A tape holds the weights of its block, so none is kept of a model
/// that does not fit: one on disk, and on a GPU one that finds no room there.
fn first_taped_layer(model: &Model, packs: &[Pack], lowest: usize, memory: Option<u64>) -> usize {
    let layers = model.blocks.len();
    let on_gpu = gpu::is_selected();
    let (stays, missing) = if on_gpu {
        resident::reserve_space(model.weights_used_by_walk())
    } else {
        (!model.blocks.iter().any(Block::is_on_disk), 0)
    };
    if !stays {
        return layers;
    }
    let (memory, taken) = match memory {
        _ if on_gpu => (memory_limit(), resident::resident_bytes() + missing),
        Some(memory) => (memory, memory::resident_bytes()),
        None => return lowest,
    };
    let bytes = size_of::<f32>() as u64;
    let hidden = model.config.hidden as u64;
    let tokens: u64 = packs.iter().map(|pack| pack.ids.len() as u64).sum();
    let largest = packs
        .iter()
        .map(|pack| pack.ids.len() as u64)
        .max()
        .unwrap_or(0);
    let tape = |layer: usize| {
        let block = &model.blocks[layer];
        bytes * cost::tape_values_per_position(model.family, &model.config, block, on_gpu) as u64
    };
    let weights = |block: &Block| {
        block
            .weights()
            .map(|(_, weight)| weight.len() as u64)
            .sum::<u64>()
            * bytes
    };
    let widest = (lowest..layers).map(tape).max().unwrap_or(0);
    // The way down begins with the head, a tile of logits at a time, and gives the kept tapes back one by one, each with the
    // gradients of its activations beside it; blocks are made again only when all kept tapes are gone.
    let gradients = model.blocks.iter().map(weights).max().unwrap_or(0);
    let logits = largest * model.config.vocab as u64;
    let tile = bytes
        * if on_gpu {
            6 * logits.min(1 << 26)
        } else {
            2 * logits.min(1 << 24)
        };
    let whole = packs.len() > 1 || on_gpu;
    let at_work = largest * widest * 3 / 2 + if whole { 4 * gradients } else { gradients / 8 };
    let at_work = at_work.max(tile)
        + if on_gpu {
            bytes * attention_backward_elements(model, packs)
        } else {
            0
        };
    let inputs = bytes * tokens * hidden * (layers - lowest.min(layers) + 3) as u64;
    let room = memory.saturating_sub(taken + at_work + inputs);
    let mut left = room - room / 16; // what the allocator keeps to itself
    (lowest..layers)
        .rev()
        .take_while(|&layer| {
            let needs = tokens * tape(layer);
            // with one pack the last block goes back at once
            let fits = needs <= left || (packs.len() == 1 && layer + 1 == layers);
            left = left.saturating_sub(needs);
            fits
        })
        .last()
        .unwrap_or(layers)
}

/// Numbers that a GPU's attention makes on its way back at once, of one pack: some matrices of scores.
fn attention_backward_elements(model: &Model, packs: &[Pack]) -> u64 {
    let heads = model
        .blocks
        .iter()
        .map(|block| block.attention_heads(model.config.head_dim).query_heads)
        .max()
        .unwrap_or(0);
    let of_pack = |pack: &Pack| {
        pack.layout
            .spans
            .iter()
            .map(|span| span.rows.len().min(ops::QUERY_CHUNK_ROWS) * span.rows.len())
            .sum::<usize>()
    };
    (6 * heads * packs.iter().map(of_pack).max().unwrap_or(0)) as u64
}

/// The final norm, the head and the loss of one pack, and back: Σ −log p, and the gradient of the last block's output.
fn head_backward(
    model: &Model,
    head: &Weight,
    x: Activations,
    pack: &Pack,
    scale: f32,
    visitor: &mut impl GradientVisitor,
) -> (f64, Activations) {
    let slot = |place| visitor.query(place, pack).map(GradientRequest::new);
    let (norm_slot, head_slot) = (slot(TensorId::FinalNorm), slot(TensorId::LmHead));
    let y = model.normalize_output(x.with_gradient_tape(), norm_slot.as_ref());
    let scored = ops::cross_entropy(
        &y.with_empty_tape(),
        head,
        &pack.targets,
        scale,
        head_slot.as_ref(),
    );
    let down = ops::backward(y, scored.gradient, &x);
    for (place, slot) in [
        (TensorId::FinalNorm, norm_slot),
        (TensorId::LmHead, head_slot),
    ] {
        if let Some(answer) = slot.and_then(|slot| slot.take_result()) {
            visitor.visit_outer_tensor(place, pack, answer);
        }
    }
    (scored.nll, down)
}

/// Row id of the embedding's gradient is the sum of the gradients at the positions that hold id.
fn embedding_gradient_result(
    embedding: &Weight,
    ask: &GradientQuery,
    ids: &[u32],
    upstream: &[f32],
) -> GradientResult {
    let width = embedding.cols();
    if let GradientQuery::WeightTimesGradientSums(sides) = ask
        && !sides.rows
    {
        // Σ over the rows of W∘G = Σ over the positions of what was embedded, times its gradient
        let rows: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
        let mut cols = vec![0.0; width];
        for (x, up) in embedding
            .gather_rows(&rows)
            .chunks_exact(width)
            .zip(upstream.chunks_exact(width))
        {
            cols.iter_mut()
                .zip(x)
                .zip(up)
                .for_each(|((sum, x), up)| *sum += f64::from(*x) * f64::from(*up));
        }
        return GradientResult::Sums(AxisSums {
            rows: Vec::new(),
            cols,
        });
    }
    let rows = |positions: std::ops::Range<usize>| {
        let mut rows: BTreeMap<u32, Vec<f32>> = BTreeMap::new();
        for t in positions {
            let row = rows.entry(ids[t]).or_insert_with(|| vec![0.0; width]);
            row.iter_mut()
                .zip(&upstream[t * width..(t + 1) * width])
                .for_each(|(g, u)| *g += u);
        }
        rows.into_iter()
            .map(move |(id, row)| (id as usize * width..(id as usize + 1) * width, row))
    };
    let mut gradient = vec![0.0; embedding.len()];
    let mut squares = Vec::new();
    match ask.samples() {
        None => rows(0..ids.len()).for_each(|(at, row)| gradient[at].copy_from_slice(&row)),
        Some(samples) => {
            squares = vec![0.0; embedding.len()];
            for sample in samples.iter() {
                for (at, row) in rows(sample.positions.clone()) {
                    for ((g, s), own) in gradient[at.clone()]
                        .iter_mut()
                        .zip(&mut squares[at])
                        .zip(row)
                    {
                        *g += own;
                        *s += (own * sample.gradient_scale) * (own * sample.gradient_scale);
                    }
                }
            }
        }
    }
    let slot = GradientRequest::new(ask.clone());
    // where the head's lies: a tied weight's are added up
    let whole = |values| Gradient::new(values, embedding.rows(), width);
    slot.set_from_gradient(
        embedding,
        whole(gradient),
        ask.samples().map(|_| whole(squares)),
    );
    slot.take_result()
        .unwrap_or(GradientResult::Sums(AxisSums::default()))
}

fn block_settings<'a>(
    model: &'a Model,
    pack: &'a Pack,
    past: Option<&'a Mutex<KvCache>>,
) -> BlockSettings<'a> {
    BlockSettings {
        family: model.family,
        config: &model.config,
        layout: &pack.layout,
        kv_cache: past,
    }
}
