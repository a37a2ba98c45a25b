//! The forward pass of one block: an interpreter of the family's choices (norm, residual, MLP).
//!
//! Widths are read off the weights, so every layer may have its own. Weights and biases are held by
//! logical tensor, as many as the family has.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::config::Config;
use crate::family::{BlockShape, Family, MlpKind, NormKind, Residual};
use crate::hooks::BlockHooks;
use crate::wiring::BlockTensor;
use secateur_tensor::gpu_weight_cache::GpuLease;
use secateur_tensor::ops::{self, AttentionHeads, GradientRequest, KvCache, PackLayout};
use secateur_tensor::{Activations, AnyTape, Precision, Weight, WeightReadError};

/// The weights of one block. Clones share memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    weights: BTreeMap<BlockTensor, Weight>,
    /// Beside the matrices and norms that have one.
    biases: BTreeMap<BlockTensor, Weight>,
}

/// # Panics
/// If the family does not have the tensor.
impl std::ops::Index<BlockTensor> for Block {
    type Output = Weight;
    fn index(&self, tensor: BlockTensor) -> &Weight {
        &self.weights[&tensor]
    }
}

/// # Panics
/// If the family does not have the tensor.
impl std::ops::IndexMut<BlockTensor> for Block {
    fn index_mut(&mut self, tensor: BlockTensor) -> &mut Weight {
        self.weights
            .get_mut(&tensor)
            .unwrap_or_else(|| panic!("the family has no tensor {tensor:?}"))
    }
}

/// What the blocks of one model share in a forward pass.
pub struct BlockSettings<'a> {
    pub family: &'static Family,
    pub config: &'a Config,
    pub layout: &'a PackLayout,
    /// Keys and values of the tokens before, for this block.
    pub kv_cache: Option<&'a Mutex<KvCache>>,
}

impl Block {
    /// A block without biases.
    pub fn new(weights: impl IntoIterator<Item = (BlockTensor, Weight)>) -> Self {
        Self {
            weights: weights.into_iter().collect(),
            biases: BTreeMap::new(),
        }
    }

    /// Every weight, in the order of [`BlockTensor`].
    pub fn weights(&self) -> impl Iterator<Item = (BlockTensor, &Weight)> {
        self.weights
            .iter()
            .map(|(&tensor, weight)| (tensor, weight))
    }

    /// The weights that are matrices.
    pub fn matrices(&self) -> impl Iterator<Item = (BlockTensor, &Weight)> {
        self.weights().filter(|(tensor, _)| tensor.is_matrix())
    }

    /// The vector that is added to the outputs of a matrix or a norm.
    pub fn bias(&self, tensor: BlockTensor) -> Option<&Weight> {
        self.biases.get(&tensor)
    }

    /// Every bias, in the order of [`BlockTensor`].
    pub fn biases(&self) -> impl Iterator<Item = (BlockTensor, &Weight)> {
        self.biases.iter().map(|(&tensor, bias)| (tensor, bias))
    }

    /// Gives a matrix or a norm a bias, one number for each of its outputs.
    pub fn set_bias(&mut self, tensor: BlockTensor, bias: Weight) {
        self.biases.insert(tensor, bias);
    }

    /// The block with all its weights in memory.
    pub(crate) fn load_into_memory(&self) -> Result<Self, WeightReadError> {
        let load = |(&tensor, weight): (&BlockTensor, &Weight)| Ok((tensor, weight.to_memory()?));
        Ok(Self {
            weights: self.weights.iter().map(load).collect::<Result<_, _>>()?,
            biases: self.biases.clone(),
        })
    }

    /// The block whose matrices a GPU holds in this precision.
    pub(crate) fn with_gpu_precision(mut self, precision: Precision) -> Self {
        for (tensor, weight) in &mut self.weights {
            if tensor.is_matrix() {
                *weight = weight.clone().with_precision(precision);
            }
        }
        self
    }

    /// Whether all its weights are on the GPU.
    pub fn is_on_gpu(&self) -> bool {
        self.weights.values().all(Weight::is_on_gpu)
    }

    /// Keeps the weights on the GPU for as long as the leases are held, where the GPU computes.
    pub(crate) fn gpu_leases(&self) -> Vec<GpuLease> {
        self.weights
            .values()
            .chain(self.biases.values())
            .filter_map(Weight::lease_on_gpu)
            .collect()
    }

    /// Whether its matrices stay on disk.
    pub fn is_on_disk(&self) -> bool {
        self.weights.values().any(Weight::is_on_disk)
    }

    /// How the attention's heads are laid out.
    pub fn attention_heads(&self, head_dim: usize) -> AttentionHeads {
        AttentionHeads {
            query_heads: self[BlockTensor::Q].rows() / head_dim,
            key_value_heads: self[BlockTensor::K].rows() / head_dim,
            head_dim,
        }
    }

    /// The widths inside the block.
    pub(crate) fn shape(&self, head_dim: usize) -> BlockShape {
        let heads = self.attention_heads(head_dim);
        BlockShape {
            query_heads: heads.query_heads,
            key_value_heads: heads.key_value_heads,
            // the output matrix of every MLP reads its channels
            mlp_channels: self[BlockTensor::Down].cols(),
        }
    }

    /// The block's output. It and `x` are (positions, hidden).
    pub fn forward<T: AnyTape>(
        &self,
        x: Activations<T>,
        settings: &BlockSettings<'_>,
        hooks: &impl BlockHooks,
    ) -> Activations<T> {
        match settings.config.residual {
            // x ← x + attention(norm(x)), then x + mlp(norm(x))
            Residual::Sequential => {
                let (residual, x) = fork(x);
                let normed = self.normalize(BlockTensor::InputNorm, x, settings, hooks);
                let x = ops::add(self.attention(normed, settings, hooks), residual);
                let (residual, x) = fork(x);
                let normed = self.normalize(BlockTensor::PostAttentionNorm, x, settings, hooks);
                ops::add(self.mlp(normed, settings, hooks), residual)
            }
            // x + attention(norm₁(x)) + mlp(norm₂(x))
            Residual::Parallel => {
                let (residual, x) = fork(x);
                let (mlp_input, x) = fork(x);
                let normed = self.normalize(BlockTensor::InputNorm, x, settings, hooks);
                let attended = self.attention(normed, settings, hooks);
                let normed =
                    self.normalize(BlockTensor::PostAttentionNorm, mlp_input, settings, hooks);
                let transformed = self.mlp(normed, settings, hooks);
                ops::add(ops::add(attended, transformed), residual)
            }
        }
    }

    /// A norm, with its bias where the family's norms have one.
    fn normalize<T: AnyTape>(
        &self,
        tensor: BlockTensor,
        x: Activations<T>,
        settings: &BlockSettings<'_>,
        hooks: &impl BlockHooks,
    ) -> Activations<T> {
        normalize(
            x,
            settings.family,
            settings.config.norm_epsilon,
            &self[tensor],
            self.bias(tensor),
            hooks.gradient_request(tensor),
        )
    }

    /// A matrix as the hooks apply it, then its bias.
    fn apply_linear<T: AnyTape>(
        &self,
        tensor: BlockTensor,
        x: Activations<T>,
        hooks: &impl BlockHooks,
    ) -> Activations<T> {
        let y = hooks.linear(tensor, &self[tensor], x);
        match self.bias(tensor) {
            Some(bias) => ops::add_bias(y, bias),
            None => y,
        }
    }

    /// o(softmax(q·kᵀ / √head_dim + causal mask) · v), head by head.
    fn attention<T: AnyTape>(
        &self,
        x: Activations<T>,
        settings: &BlockSettings<'_>,
        hooks: &impl BlockHooks,
    ) -> Activations<T> {
        let (query_input, x) = fork(x);
        let (key_input, value_input) = fork(x);
        let q = self.apply_linear(BlockTensor::Q, query_input, hooks); // (positions, query heads · head_dim)
        let k = self.apply_linear(BlockTensor::K, key_input, hooks); // (positions, key/value heads · head_dim)
        let v = self.apply_linear(BlockTensor::V, value_input, hooks); // as k
        let mut cache = settings
            .kv_cache
            .map(|cache| cache.lock().unwrap_or_else(PoisonError::into_inner));
        let attended = ops::attention(
            q,
            k,
            v,
            self.attention_heads(settings.config.head_dim),
            settings.layout,
            cache.as_deref_mut(),
        );
        drop(cache);
        self.apply_linear(BlockTensor::O, attended, hooks)
    }

    /// The MLP; x and the result are (positions, hidden), in between are (positions, MLP channels).
    fn mlp<T: AnyTape>(
        &self,
        x: Activations<T>,
        settings: &BlockSettings<'_>,
        hooks: &impl BlockHooks,
    ) -> Activations<T> {
        let activated = match settings.family.mlp {
            MlpKind::GatedSilu => {
                let (gate_input, up_input) = fork(x);
                let gate = self.apply_linear(BlockTensor::Gate, gate_input, hooks);
                let up = self.apply_linear(BlockTensor::Up, up_input, hooks);
                ops::swiglu(gate, up)
            }
            MlpKind::ExactGelu => ops::gelu(self.apply_linear(BlockTensor::Up, x, hooks)),
        };
        self.apply_linear(BlockTensor::Down, activated, hooks)
    }
}

/// The family's norm of each row of x.
pub(crate) fn normalize<T: AnyTape>(
    x: Activations<T>,
    family: &Family,
    epsilon: f32,
    weight: &Weight,
    bias: Option<&Weight>,
    request: Option<&GradientRequest>,
) -> Activations<T> {
    match family.norm {
        NormKind::Rms => ops::rms_norm(x, weight, epsilon, request),
        NormKind::Layer => ops::layer_norm(x, weight, bias, epsilon, request),
    }
}

/// Two uses of one tensor. The tape goes with the second; the first begins an empty one, and the next
/// operation that takes both tensors merges the tapes.
fn fork<T: AnyTape>(x: Activations<T>) -> (Activations<T>, Activations<T>) {
    (x.with_empty_tape::<T>(), x)
}
