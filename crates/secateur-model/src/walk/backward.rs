//! The backward walk: the loss of a batch, and what a visitor queries about its gradients, with the
//! gradients of at most one block in memory.
//!
//! 1. Forward, block by block. Each block from `lowest_layer` up saves its input, or, where memory
//!    allows, its gradient tape (activation checkpointing: Chen et al. 2016).
//! 2. The head: final norm, logits and cross entropy of each pack, and back to the last block's
//!    output.
//! 3. Backward, from the last block down to `lowest_layer`: recompute the block with a tape if only
//!    its input was saved, run the tape from the gradient of the block's output to that of its
//!    input, and give the visitor the results of its queries. They are dropped before the next
//!    block (Lv et al. 2023, "LOMO").
//! 4. The embedding, if `lowest_layer` is 0.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use super::pack::{Pack, Sequence, build_packs};
use super::source::for_each_block;
use super::tape_budget::lowest_taped_layer;
use super::{block_settings, embed_packs};
use crate::hooks::{BlockHooks, GradientRequests};
use crate::lora_hooks::{LoraHooks, TrainedAdapters};
use crate::parameter::ParameterId;
use crate::wiring::{BlockTensor, TensorId};
use crate::{Block, Model};
use secateur_tensor::ops::{self, GradientQuery, GradientRequest, GradientResult};
use secateur_tensor::{Activations, AnyTape, GradientTape, Weight, WeightReadError};

/// Queries and receives results about the gradients of the mean loss over all targets. Results
/// arrive pack by pack, in the order of the packs, so sums over packs have the same bits on any
/// number of threads.
pub trait GradientVisitor {
    /// What is computed from the gradient of `parameter` over `pack`. None: its gradient is not
    /// computed. The answer must not change during a walk. A tied head is queried as the head, then
    /// as the embedding.
    fn query(&self, parameter: ParameterId, pack: &Pack) -> Option<GradientQuery>;

    /// The result of the query. Order: final norm and head, the blocks from the last to the first,
    /// embedding.
    fn receive(&mut self, parameter: ParameterId, pack: &Pack, result: GradientResult);

    /// Called when the results of this block have been received from all packs.
    fn finish_block(&mut self, _layer: usize, _block: &Block) {}
}

/// How a backward walk runs.
#[derive(Clone, Copy, Default)]
pub struct BackwardOptions<'a> {
    /// The lowest block whose gradients are computed. The walk stops there; the number of blocks:
    /// it computes the head's gradients only.
    pub lowest_layer: usize,
    /// Whether each pack holds one sequence, so that results arrive sequence by sequence.
    pub separate_packs: bool,
    /// Bytes that the process may use. As many gradient tapes are kept as fit; other blocks are
    /// recomputed. None: all tapes are kept.
    pub memory_limit: Option<u64>,
    /// Ends the walk before the next block once it is true.
    pub interrupt: Option<&'a AtomicBool>,
    /// Adapters that are added to the model's matrices. Such a matrix is frozen: the factors'
    /// gradients can be queried, the matrix's own cannot.
    pub adapters: Option<TrainedAdapters<'a>>,
}

/// The loss of a backward walk.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// Mean cross entropy over all targets of all sequences, in nats.
    pub mean: f64,
    /// Number of targets.
    pub target_count: usize,
}

/// Walks all sequences forward, then backward, and gives the visitor the results of its queries about the
/// gradients of the mean loss. After an interrupt the loss and the results are incomplete.
///
/// # Errors
/// If a weight on disk cannot be read.
pub fn backward(
    model: &Model,
    sequences: &[Sequence],
    options: &BackwardOptions<'_>,
    visitor: &mut impl GradientVisitor,
) -> Result<Loss, WeightReadError> {
    let target_count = sequences.iter().map(|s| s.targets.len()).sum::<usize>();
    let packs = build_packs(model, sequences, options.separate_packs);
    let walk = BackwardWalk {
        model,
        options,
        packs: &packs,
    };
    let (outputs, mut saved) = walk.run_forward(visitor)?;
    if walk.is_interrupted() {
        return Ok(Loss {
            mean: 0.0,
            target_count,
        });
    }
    let (nll, output_gradients) = walk.run_head(outputs, target_count, visitor)?;
    let embedding_gradients = walk.run_blocks_backward(output_gradients, &mut saved, visitor)?;
    if options.lowest_layer == 0 && !walk.is_interrupted() {
        walk.run_embedding(&embedding_gradients, visitor)?;
    }
    Ok(Loss {
        mean: nll / target_count as f64,
        target_count,
    })
}

struct BackwardWalk<'a> {
    model: &'a Model,
    options: &'a BackwardOptions<'a>,
    packs: &'a [Pack],
}

/// What the forward pass saves of one block and one pack.
#[expect(
    clippy::large_enum_variant,
    reason = "one for each block and pack, and the memory of its tape is far larger"
)]
enum SavedForBackward<'a> {
    /// The block's input: the block is recomputed with a tape.
    Input(Activations),
    /// The tape of the block's output.
    Tape {
        input: Activations,
        output: Activations<GradientTape>,
        hooks: BackwardHooks<'a>,
    },
}

impl<'a> BackwardWalk<'a> {
    /// Step 1. Returns each pack's output of the last block, and what was saved of each pack and
    /// block, from `lowest_layer` up.
    fn run_forward(
        &self,
        visitor: &impl GradientVisitor,
    ) -> Result<(Vec<Activations>, Vec<Vec<SavedForBackward<'a>>>), WeightReadError> {
        let lowest_layer = self.options.lowest_layer;
        let memory_limit = self.options.memory_limit;
        let lowest_taped = lowest_taped_layer(self.model, self.packs, lowest_layer, memory_limit);
        let mut saved: Vec<Vec<SavedForBackward<'a>>> =
            self.packs.iter().map(|_| Vec::new()).collect();
        let mut states = embed_packs(self.model, self.packs)?;
        for_each_block(self.model, 0..self.model.blocks.len(), |layer, block| {
            for ((pack, state), pack_saved) in self.packs.iter().zip(&mut states).zip(&mut saved) {
                if layer >= lowest_taped {
                    let hooks = self.hooks(layer, pack, |id| visitor.query(id, pack));
                    let output = self.block_output(block, pack, state.with_gradient_tape(), &hooks);
                    let input = std::mem::replace(state, output.with_empty_tape());
                    pack_saved.push(SavedForBackward::Tape {
                        input,
                        output,
                        hooks,
                    });
                } else {
                    let hooks = self.hooks(layer, pack, |_| None);
                    let output = self.block_output(block, pack, state.clone(), &hooks);
                    let input = std::mem::replace(state, output);
                    if layer >= lowest_layer {
                        pack_saved.push(SavedForBackward::Input(input));
                    }
                }
            }
            self.continue_or_break()
        })?;
        Ok((states, saved))
    }

    /// Step 2. Returns Σ −log p over all targets, and the gradient of each pack's output of the
    /// last block.
    fn run_head(
        &self,
        outputs: Vec<Activations>,
        target_count: usize,
        visitor: &mut impl GradientVisitor,
    ) -> Result<(f64, Vec<Activations>), WeightReadError> {
        let head = self.model.weight(TensorId::LmHead).to_operand()?;
        let _gpu_leases = (head.lease_on_gpu(), self.model.final_norm.lease_on_gpu());
        // L = (1 / targets) · Σ −log p
        let scale = 1.0 / target_count as f32;
        let mut nll = 0.0;
        let mut output_gradients = Vec::with_capacity(outputs.len());
        for (pack, output) in self.packs.iter().zip(outputs) {
            let (pack_nll, gradient) = self.head_backward(&head, output, pack, scale, visitor);
            nll += pack_nll;
            output_gradients.push(gradient);
        }
        Ok((nll, output_gradients))
    }

    /// Final norm, head and loss of one pack, and back. `output` and its gradient are (positions,
    /// hidden).
    fn head_backward(
        &self,
        head: &Weight,
        output: Activations,
        pack: &Pack,
        scale: f32,
        visitor: &mut impl GradientVisitor,
    ) -> (f64, Activations) {
        let request = |tensor| {
            let query = visitor.query(ParameterId::Weight(tensor), pack)?;
            Some(GradientRequest::new(query))
        };
        let norm_request = request(TensorId::FinalNorm);
        let head_request = request(TensorId::LmHead);
        let normed = self
            .model
            .normalize_output(output.with_gradient_tape(), norm_request.as_ref());
        // The loss computes its own gradient with respect to `normed`; the norm's tape continues
        // from there.
        let loss = ops::cross_entropy(
            &normed.with_empty_tape(),
            head,
            &pack.targets,
            scale,
            head_request.as_ref(),
        );
        let output_gradient = ops::backward(normed, loss.gradient, &output);
        for (tensor, request) in [
            (TensorId::FinalNorm, norm_request),
            (TensorId::LmHead, head_request),
        ] {
            if let Some(result) = request.and_then(|request| request.take_result()) {
                visitor.receive(ParameterId::Weight(tensor), pack, result);
            }
        }
        (loss.nll, output_gradient)
    }

    /// Step 3. Takes the gradient of each pack's output of the last block, and returns the gradient
    /// of its input of block `lowest_layer`.
    fn run_blocks_backward(
        &self,
        mut gradients: Vec<Activations>,
        saved: &mut [Vec<SavedForBackward<'a>>],
        visitor: &mut impl GradientVisitor,
    ) -> Result<Vec<Activations>, WeightReadError> {
        let layers = self.options.lowest_layer..self.model.blocks.len();
        for_each_block(self.model, layers.rev(), |layer, block| {
            self.continue_or_break()?;
            let output_gradients = std::mem::take(&mut gradients);
            for (i, (pack, gradient)) in self.packs.iter().zip(output_gradients).enumerate() {
                let Some(block_saved) = saved[i].pop() else {
                    unreachable!("every block from `lowest_layer` up saves its input or its tape")
                };
                let input_gradient =
                    self.block_backward(layer, block, pack, block_saved, gradient, visitor);
                gradients.push(input_gradient);
            }
            visitor.finish_block(layer, block);
            ControlFlow::Continue(())
        })?;
        Ok(gradients)
    }

    /// One block and one pack: from the gradient of the block's output to that of its input, both
    /// (positions, hidden).
    fn block_backward(
        &self,
        layer: usize,
        block: &Block,
        pack: &Pack,
        saved: SavedForBackward<'a>,
        output_gradient: Activations,
        visitor: &mut impl GradientVisitor,
    ) -> Activations {
        let (input, output, hooks) = match saved {
            SavedForBackward::Tape {
                input,
                output,
                hooks,
            } => (input, output, hooks),
            SavedForBackward::Input(input) => {
                let hooks = self.hooks(layer, pack, |id| visitor.query(id, pack));
                let output = self.block_output(block, pack, input.with_gradient_tape(), &hooks);
                (input, output, hooks)
            }
        };
        let input_gradient = ops::backward(output, output_gradient, &input);
        for (parameter, result) in hooks.into_results(layer) {
            visitor.receive(parameter, pack, result);
        }
        input_gradient
    }

    /// Step 4.
    fn run_embedding(
        &self,
        gradients: &[Activations],
        visitor: &mut impl GradientVisitor,
    ) -> Result<(), WeightReadError> {
        let embedding = ParameterId::Weight(TensorId::Embedding);
        for (pack, gradient) in self.packs.iter().zip(gradients) {
            let Some(query) = visitor.query(embedding, pack) else {
                continue;
            };
            let weight = &self.model.embedding;
            let result = ops::embedding_gradient(weight, query, &pack.ids, gradient)?;
            visitor.receive(embedding, pack, result);
        }
        Ok(())
    }

    fn block_output<T: AnyTape>(
        &self,
        block: &Block,
        pack: &Pack,
        input: Activations<T>,
        hooks: &BackwardHooks<'_>,
    ) -> Activations<T> {
        block.forward(input, &block_settings(self.model, pack, None), hooks)
    }

    /// The hooks of one block and one pack. A recomputed block gets equal hooks, so its output is
    /// the same.
    fn hooks(
        &self,
        layer: usize,
        pack: &Pack,
        query: impl Fn(ParameterId) -> Option<GradientQuery>,
    ) -> BackwardHooks<'a> {
        let lora = self.options.adapters.map(|adapters| {
            let lengths = pack.layout.spans.iter().map(|span| span.rows.len());
            LoraHooks::new(
                adapters,
                layer,
                pack.sequence_range.clone(),
                lengths,
                &query,
            )
        });
        let queries = self.model.family.block_tensor_ids().filter_map(|tensor| {
            let id = ParameterId::Weight(TensorId::Block(layer, tensor));
            Some((tensor, query(id)?))
        });
        BackwardHooks {
            weights: GradientRequests::from_queries(queries),
            lora,
        }
    }

    fn is_interrupted(&self) -> bool {
        self.options
            .interrupt
            .is_some_and(|interrupt| interrupt.load(Ordering::Relaxed))
    }

    fn continue_or_break(&self) -> ControlFlow<()> {
        match self.is_interrupted() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// The hooks of a backward walk: adapters where there are any, and the visitor's queries.
struct BackwardHooks<'a> {
    weights: GradientRequests,
    lora: Option<LoraHooks<'a>>,
}

impl BackwardHooks<'_> {
    /// The results of all queries about one block, after its tape has run backward.
    fn into_results(self, layer: usize) -> impl Iterator<Item = (ParameterId, GradientResult)> {
        let weight_results = self.weights.into_results().map(move |(tensor, result)| {
            (ParameterId::Weight(TensorId::Block(layer, tensor)), result)
        });
        let factor_results = self.lora.into_iter().flat_map(LoraHooks::into_results);
        weight_results.chain(factor_results)
    }
}

impl BlockHooks for BackwardHooks<'_> {
    fn linear<T: AnyTape>(
        &self,
        tensor: BlockTensor,
        weight: &Weight,
        x: Activations<T>,
    ) -> Activations<T> {
        match &self.lora {
            Some(lora) if lora.has_adapter(tensor) => lora.linear(tensor, weight, x),
            _ => self.weights.linear(tensor, weight, x),
        }
    }

    fn gradient_request(&self, tensor: BlockTensor) -> Option<&GradientRequest> {
        self.weights.gradient_request(tensor)
    }
}
