//! Adapters in training: the hooks that add them to a block's matrices, drop a share of their
//! inputs, and request the gradients of their factors.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use rand::Rng;
use rayon::prelude::*;

use crate::hooks::BlockHooks;
use crate::lora::{Adapter, LoraFactors};
use crate::parameter::{Factor, ParameterId};
use crate::wiring::{BlockTensor, TensorId};
use secateur_base::random::Seed;
use secateur_tensor::ops::{
    self, AdapterInput, DropoutMaskFn, GradientQuery, GradientRequest, GradientResult,
    dispatch_simd,
};
use secateur_tensor::{Activations, AnyTape, Weight};

/// Adapters that a walk adds to the model's matrices.
#[derive(Clone, Copy, Debug)]
pub struct TrainedAdapters<'a> {
    pub adapter: &'a Adapter,
    pub dropout: Dropout,
}

/// Dropout of the adapters' inputs. Each sequence has a random stream of its own, so the mask
/// depends neither on the packs nor on the micro-batches, and a recomputed block drops the same
/// inputs.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// The share of inputs that is dropped, 0 to below 1.
    pub probability: f64,
    pub seed: Seed,
    /// The number of the walk's first sequence: sequence i of the walk uses stream `first_sequence
    /// + i`.
    pub first_sequence: usize,
}

/// Random numbers that are drawn at once for a mask: a whole number of ChaCha's blocks.
const NUMBERS_PER_DRAW: usize = 1024;

/// The dropout of one pack.
#[derive(Clone, Debug)]
struct PackDropout {
    probability: f64,
    /// The seed of each sequence and its number of positions, in the order of the pack's rows.
    sequences: Vec<(Seed, usize)>,
}

/// The requests for the gradients of A and B of one matrix's adapter.
type FactorRequests = (GradientRequest, GradientRequest);

/// Applies the adapters of one block to one pack.
pub(crate) struct LoraHooks<'a> {
    adapter: &'a Adapter,
    layer: usize,
    dropout: Option<PackDropout>,
    requests: BTreeMap<BlockTensor, FactorRequests>,
}

impl<'a> LoraHooks<'a> {
    /// `sequences` are the numbers of the pack's sequences in the walk, `lengths` their positions.
    /// The gradients of the two factors are computed if `query` answers for both; the only query
    /// that the adapter's kernel supports is [`GradientQuery::Gradient`].
    pub(crate) fn new(
        adapters: TrainedAdapters<'a>,
        layer: usize,
        sequences: Range<usize>,
        lengths: impl Iterator<Item = usize>,
        query: impl Fn(ParameterId) -> Option<GradientQuery>,
    ) -> Self {
        let TrainedAdapters { adapter, dropout } = adapters;
        let tensors = adapter
            .factors
            .keys()
            .filter(|(factor_layer, _)| *factor_layer == layer)
            .map(|&(_, tensor)| tensor);
        let request = |tensor, factor| {
            let query = query(ParameterId::LoraFactor(layer, tensor, factor))?;
            debug_assert!(matches!(query, GradientQuery::Gradient));
            Some(GradientRequest::new(query))
        };
        let requests = tensors.filter_map(|tensor| {
            let a_request = request(tensor, Factor::A)?;
            let b_request = request(tensor, Factor::B)?;
            Some((tensor, (a_request, b_request)))
        });
        Self {
            adapter,
            layer,
            dropout: dropout.for_pack(sequences, lengths),
            requests: requests.collect(),
        }
    }

    /// Whether this matrix has an adapter.
    pub(crate) fn has_adapter(&self, tensor: BlockTensor) -> bool {
        self.adapter.factors.contains_key(&(self.layer, tensor))
    }

    /// The gradients of the factors, after the block's tape has run backward.
    pub(crate) fn into_results(self) -> impl Iterator<Item = (ParameterId, GradientResult)> {
        let layer = self.layer;
        self.requests.into_iter().flat_map(move |(tensor, (a, b))| {
            let parameter = |factor| ParameterId::LoraFactor(layer, tensor, factor);
            let a_result = a.take_result().map(|result| (parameter(Factor::A), result));
            let b_result = b.take_result().map(|result| (parameter(Factor::B), result));
            a_result.into_iter().chain(b_result)
        })
    }

    /// The function that makes the mask of one matrix's inputs. None: no input is dropped.
    fn dropout_mask(&self, tensor: BlockTensor, inputs: usize) -> Option<DropoutMaskFn> {
        let dropout = self.dropout.clone()?;
        let id = TensorId::Block(self.layer, tensor);
        let tensor_name = self.adapter.family.tensor_name(id);
        Some(Arc::new(move || dropout.mask(&tensor_name, inputs)))
    }
}

impl BlockHooks for LoraHooks<'_> {
    /// y = x · Wᵀ + (alpha / rank) · dropout(x) · Aᵀ · Bᵀ; y = x · Wᵀ for a matrix without an
    /// adapter.
    fn linear<T: AnyTape>(
        &self,
        tensor: BlockTensor,
        weight: &Weight,
        x: Activations<T>,
    ) -> Activations<T> {
        let Some(LoraFactors { a, b }) = self.adapter.factors.get(&(self.layer, tensor)) else {
            return ops::linear(x, weight, None);
        };
        let input = AdapterInput {
            a,
            b,
            scale: self.adapter.scale(),
            dropout_mask: self.dropout_mask(tensor, x.width()),
            gradient_requests: self.requests.get(&tensor).map(|(a, b)| (a, b)),
        };
        ops::linear_with_adapter(x, weight, input)
    }
}

impl Dropout {
    /// The dropout of the pack that holds these sequences of the walk. None: nothing is dropped.
    fn for_pack(
        self,
        sequences: Range<usize>,
        lengths: impl Iterator<Item = usize>,
    ) -> Option<PackDropout> {
        if self.probability == 0.0 {
            return None;
        }
        let sequence_seed = |index: usize| {
            let stream = self.first_sequence + index;
            self.seed.derive(&stream.to_string())
        };
        let seeds = sequences.map(sequence_seed);
        Some(PackDropout {
            probability: self.probability,
            sequences: seeds.zip(lengths).collect(),
        })
    }
}

impl PackDropout {
    /// The factors of the inputs, (positions, inputs): 0 with the given probability p, else 1 / (1
    /// − p), so that the expected value of an input stays the same. A sequence's values follow from
    /// its seed and the tensor's name alone.
    fn mask(&self, tensor_name: &str, inputs: usize) -> Vec<f32> {
        // A uniform 32-bit number below this one drops its input.
        let drop_below = (self.probability * f64::from(u32::MAX)) as u32;
        let kept_factor = 1.0 / (1.0 - self.probability) as f32;
        let positions: usize = self.sequences.iter().map(|(_, positions)| positions).sum();
        let mut mask = vec![0.0; positions * inputs];
        let mut rest = &mut mask[..];
        let mut tasks = Vec::with_capacity(self.sequences.len());
        for (seed, positions) in &self.sequences {
            let (sequence_mask, after) = rest.split_at_mut(positions * inputs);
            tasks.push((seed, sequence_mask));
            rest = after;
        }
        tasks.into_par_iter().for_each(|(seed, sequence_mask)| {
            let mut stream = seed.derive(tensor_name).rng();
            // Drawing many numbers at once is several times as fast as one by one.
            let mut bytes = [0; 4 * NUMBERS_PER_DRAW];
            for factors in sequence_mask.chunks_mut(NUMBERS_PER_DRAW) {
                let bytes = &mut bytes[..4 * factors.len()];
                stream.fill_bytes(bytes);
                dispatch_simd(|| {
                    for (factor, number) in factors.iter_mut().zip(bytes.as_chunks().0) {
                        let is_kept = u32::from_le_bytes(*number) >= drop_below;
                        *factor = if is_kept { kept_factor } else { 0.0 };
                    }
                });
            }
        });
        mask
    }
}
