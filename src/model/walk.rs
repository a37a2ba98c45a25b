//! The walk through a model, one block at a time.
//!
//! Forward carries hidden states through the blocks. Backward goes from the head down: recompute a block with a
//! gradient tape from its kept input, start the tape from the gradient that came from above, hand what was gathered to
//! a [`Visitor`], drop it, pass the input's gradient on. At most one block's gradients are alive (activation
//! checkpointing: Chen et al. 2016; gradients consumed as they appear: Lv et al. 2023, "LOMO").

use dfdx::prelude::{HasShape, Trace};

use super::Model;
use super::blocks::{BlockSettings, Lens, Plain};
use super::wiring::{Part, Place};
use crate::ops::{self, Rotary, Slot, Target, TokenScore};
use crate::tensor::{Hidden, Threaded, for_each_sequence, hidden, sequences_at_once};

/// A sequence and which of its predictions count.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    pub ids: Vec<u32>,
    /// The logits at `position` are asked for `id`; no two share a position.
    pub targets: Vec<Target>,
}

impl Sequence {
    /// `counts[i]`: whether the prediction of `ids[i]` from what stands before it counts; the first is never predicted.
    pub fn new(ids: Vec<u32>, counts: &[bool]) -> Self {
        let targets = (1..ids.len()).filter(|&i| counts[i]).map(|i| Target { position: i - 1, id: ids[i] }).collect();
        Self { ids, targets }
    }
}

/// Whoever wants gradients. Sequences are worked on in parallel, but what is found arrives in their order, so sums have
/// the same bits on any number of threads.
pub trait Visitor: Threaded {
    /// Looks on while one sequence passes through one block, in the thread that does the work.
    type Lens: Lens;
    /// What a lens brings back.
    type Found: Threaded;

    /// A lens for a block and a sequence; asked for twice, on the way up and on the way down, it must do the same.
    fn lens(&self, layer: usize, sequence: usize) -> Self::Lens;
    /// What the lens gathered on the way down.
    fn found(lens: Self::Lens) -> Self::Found;
    /// One sequence has passed down through one block.
    fn block(&mut self, layer: usize, sequence: usize, found: Self::Found);
    /// All sequences have.
    fn block_done(&mut self, _layer: usize) {}

    /// Whether the gradient of the embedding, the final norm or the head is wanted. The embedding's share of a tied
    /// head comes as the head.
    fn wants(&self, _outside: Place) -> bool {
        false
    }
    /// The gradient of a weight outside the blocks, from one sequence: the norm's and the head's before the blocks', the
    /// embedding's after them.
    fn outside(&mut self, _at: Place, _sequence: usize, _gradient: Vec<f32>) {}
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
    pub targets: usize,
}

/// The final hidden states of one sequence, (positions, hidden), before the last norm.
pub fn forward<L: Lens>(model: &Model, ids: &[u32], rotary: &Rotary, lens: impl Fn(usize) -> L) -> Hidden {
    let settings = settings(model, rotary);
    let start = ops::embed(&model.embedding, ids);
    model.blocks.iter().enumerate().fold(start, |x, (i, block)| block.forward(x, &settings, &lens(i)))
}

/// The logits of one sequence at every position, (positions, vocabulary).
pub fn logits(model: &Model, ids: &[u32]) -> Hidden {
    head(model, forward(model, ids, &model.rotary(ids.len()), |_| Plain))
}

/// Rates tokens that follow `input`: one forward pass, and logits only at the positions that are asked about.
pub fn token_scores(model: &Model, input: &[u32], targets: &[Target]) -> Vec<TokenScore> {
    let x = forward(model, input, &model.rotary(input.len()), |_| Plain);
    let (width, values) = (x.shape().1, x.as_vec());
    let asked = targets.iter().flat_map(|t| &values[t.position * width..(t.position + 1) * width]).copied().collect();
    let logits = head(model, hidden(asked, targets.len(), width));
    let rows: Vec<Target> = targets.iter().enumerate().map(|(row, t)| Target { position: row, id: t.id }).collect();
    ops::token_scores(&logits, &rows)
}

/// Walks all sequences forward, then backward down to the block `lowest`, and lets the visitor see every gradient of
/// the mean loss over all their targets.
pub fn backward<V: Visitor>(model: &Model, sequences: &[Sequence], lowest: usize, visitor: &mut V) -> Loss {
    let targets = sequences.iter().map(|s| s.targets.len()).sum::<usize>();
    let rotary = model.rotary(sequences.iter().map(|s| s.ids.len()).max().unwrap_or(0));
    let settings = settings(model, &rotary);

    // The inputs of the blocks from `lowest` up, and what the last one makes, per sequence.
    let mut kept: Vec<Vec<Hidden>> = for_each_sequence(sequences, |s, sequence| {
        let mut x = ops::embed(&model.embedding, &sequence.ids);
        let mut kept = Vec::with_capacity(model.blocks.len() + 1 - lowest);
        for (layer, block) in model.blocks.iter().enumerate() {
            if layer >= lowest {
                kept.push(x.clone());
            }
            x = block.forward(x, &settings, &visitor.lens(layer, s));
        }
        kept.push(x);
        kept
    });

    let mut upstream: Vec<Vec<f32>> = Vec::with_capacity(sequences.len());
    let mut nll = 0.0;
    let all: Vec<usize> = (0..sequences.len()).collect();
    let at_once = |weights: usize| sequences_at_once(weights * size_of::<f32>());
    for wave in all.chunks(at_once(model.weight(Place::Head).len())) {
        let ends: Vec<_> = wave.iter().map(|&s| (s, kept[s].pop())).collect();
        let down = for_each_sequence(&ends, |_, (s, end)| {
            end.as_ref().map(|x| head_backward(model, x, &sequences[*s].targets, 1.0 / targets as f32, &*visitor))
        });
        for (&s, down) in wave.iter().zip(down).filter_map(|(s, down)| Some((s, down?))) {
            nll += down.nll;
            upstream.push(down.input);
            for (place, gradient) in down.outside {
                visitor.outside(place, s, gradient);
            }
        }
    }

    for layer in (lowest..model.blocks.len()).rev() {
        if visitor.is_done() {
            break;
        }
        let weights = Part::ALL.iter().map(|&part| model.blocks[layer][part].len()).sum();
        for wave in all.chunks(at_once(weights)) {
            let inputs: Vec<_> = wave.iter().map(|&s| (s, kept[s].pop(), std::mem::take(&mut upstream[s]))).collect();
            let found = for_each_sequence(&inputs, |_, (s, input, upstream)| {
                input.as_ref().map(|x| {
                    let lens = visitor.lens(layer, *s);
                    let y = model.blocks[layer].forward(x.leaky_trace(), &settings, &lens);
                    let gradients = ops::backward(y, upstream.clone());
                    (gradients.get(x).as_vec(), V::found(lens))
                })
            });
            for (&s, (input, found)) in wave.iter().zip(found).filter_map(|(s, found)| Some((s, found?))) {
                upstream[s] = input;
                visitor.block(layer, s, found);
            }
        }
        visitor.block_done(layer);
    }

    if lowest == 0 && visitor.wants(Place::Embedding) && !visitor.is_done() {
        for (s, (sequence, upstream)) in sequences.iter().zip(&upstream).enumerate() {
            visitor.outside(Place::Embedding, s, embedding_gradient(model, &sequence.ids, upstream));
        }
    }
    Loss { mean: nll / targets as f64, targets }
}

struct HeadDown {
    nll: f64,
    input: Vec<f32>,
    outside: Vec<(Place, Vec<f32>)>,
}

/// The final norm, the head and the loss of one sequence, and back.
fn head_backward(model: &Model, x: &Hidden, targets: &[Target], scale: f32, visitor: &impl Visitor) -> HeadDown {
    let slots: Vec<(Place, Slot)> =
        [Place::FinalNorm, Place::Head].into_iter().filter(|&p| visitor.wants(p)).map(|p| (p, Slot::default())).collect();
    let slot = |place| slots.iter().find(|(p, _)| *p == place).map(|(_, slot)| slot);
    let y = ops::rms_norm(x.leaky_trace(), &model.norm, model.config.norm_epsilon, slot(Place::FinalNorm));
    let logits = ops::linear(y, model.weight(Place::Head), slot(Place::Head));
    let scored = ops::cross_entropy(&logits.retaped(), targets, scale);
    let gradients = ops::backward(logits, scored.gradient);
    let outside = slots.into_iter().filter_map(|(place, slot)| Some((place, slot.take()?))).collect();
    HeadDown { nll: scored.nll, input: gradients.get(x).as_vec(), outside }
}

/// Row id of the embedding's gradient is the sum of the gradients at the positions that hold id.
fn embedding_gradient(model: &Model, ids: &[u32], upstream: &[f32]) -> Vec<f32> {
    let width = model.embedding.cols();
    let mut gradient = vec![0.0; model.embedding.len()];
    for (&id, from) in ids.iter().zip(upstream.chunks_exact(width)) {
        let row = &mut gradient[id as usize * width..(id as usize + 1) * width];
        row.iter_mut().zip(from).for_each(|(g, u)| *g += u);
    }
    gradient
}

fn head(model: &Model, x: Hidden) -> Hidden {
    ops::linear(ops::rms_norm(x, &model.norm, model.config.norm_epsilon, None), model.weight(Place::Head), None)
}

fn settings<'a>(model: &Model, rotary: &'a Rotary) -> BlockSettings<'a> {
    BlockSettings { norm_epsilon: model.config.norm_epsilon, head_dim: model.config.head_dim, rotary }
}
