//! The forward pass of one LLaMA block (Touvron et al. 2023; names as in transformers' `modeling_llama.py`). Widths are
//! read off the weights, so every layer may have its own.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::hooks::BlockHooks;
use super::wiring::BlockTensor;
use secateur_tensor::ops::{self, AttentionHeads, KvCache, PackLayout};
use secateur_tensor::resident::GpuLease;
use secateur_tensor::{Activations, AnyTape, Weight};

/// The weights of one block. Clones share memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// In the order of [`Part::ALL`].
    weights: [Weight; 9],
    /// Of the matrices that have one; most families have none.
    biases: BTreeMap<BlockTensor, Weight>,
}

impl std::ops::Index<BlockTensor> for Block {
    type Output = Weight;
    fn index(&self, part: BlockTensor) -> &Weight {
        &self.weights[part as usize]
    }
}

impl std::ops::IndexMut<BlockTensor> for Block {
    fn index_mut(&mut self, part: BlockTensor) -> &mut Weight {
        &mut self.weights[part as usize]
    }
}

/// What the blocks of one model share.
pub struct BlockSettings<'a> {
    pub norm_epsilon: f32,
    pub head_dim: usize,
    pub layout: &'a PackLayout,
    /// What was read before, of this block.
    pub kv_cache: Option<&'a Mutex<KvCache>>,
}

impl Block {
    /// Weights in the order of [`Part::ALL`].
    pub fn new(weights: [Weight; 9]) -> Self {
        Self {
            weights,
            biases: BTreeMap::new(),
        }
    }

    /// What is added to a matrix's outputs.
    pub fn bias(&self, part: BlockTensor) -> Option<&Weight> {
        self.biases.get(&part)
    }

    /// The biases that there are.
    pub fn biases(&self) -> impl Iterator<Item = (BlockTensor, &Weight)> {
        self.biases.iter().map(|(&part, bias)| (part, bias))
    }

    /// Gives a matrix a bias, one number for each of its outputs.
    pub fn set_bias(&mut self, part: BlockTensor, bias: Weight) {
        debug_assert_eq!(bias.len(), self[part].rows());
        self.biases.insert(part, bias);
    }

    /// A matrix through its lens, then its bias.
    fn apply_linear<T: AnyTape>(
        &self,
        part: BlockTensor,
        x: Activations<T>,
        lens: &impl BlockHooks,
    ) -> Activations<T> {
        let y = lens.linear(part, &self[part], x);
        match self.bias(part) {
            Some(bias) => ops::add_bias(y, bias),
            None => y,
        }
    }

    /// The block with all its weights in memory.
    pub fn load_into_memory(&self) -> Self {
        Self {
            weights: self.weights.each_ref().map(Weight::to_memory),
            biases: self.biases.clone(),
        }
    }

    /// Whether all its weights are on the GPU.
    pub fn is_on_gpu(&self) -> bool {
        self.weights.iter().all(Weight::is_on_gpu)
    }

    /// The weights on the GPU for as long as this is held, if that is where they are used.
    pub fn gpu_leases(&self) -> Vec<GpuLease> {
        self.weights
            .iter()
            .chain(self.biases.values())
            .filter_map(Weight::lease_on_gpu)
            .collect()
    }

    /// Whether its matrices stay on disk.
    pub fn is_on_disk(&self) -> bool {
        self.weights.iter().any(Weight::is_on_disk)
    }

    /// Numbers that a tape of this block keeps for each position: what goes into the norms, queries, keys and values, the
    /// attention's output, gate and up. What comes of these element by element is made again on the CPU, and kept on a GPU.
    pub fn tape_values_per_position(&self, head_dim: usize, on_gpu: bool) -> usize {
        let AttentionHeads {
            query_heads: queries,
            key_value_heads: keys,
            head_dim: dim,
        } = self.attention_heads(head_dim);
        let (hidden, mlp) = (self[BlockTensor::Q].cols(), self[BlockTensor::Gate].rows());
        let made_again = if on_gpu { 2 * hidden + mlp } else { 0 };
        2 * hidden + 2 * (queries + keys) * dim + queries + 2 * mlp + made_again
    }

    /// How the attention's heads are laid out.
    pub fn attention_heads(&self, head_dim: usize) -> AttentionHeads {
        AttentionHeads {
            query_heads: self[BlockTensor::Q].rows() / head_dim,
            key_value_heads: self[BlockTensor::K].rows() / head_dim,
            head_dim,
        }
    }

    /// x + attention(norm(x)), then + mlp(norm(·)). x and the result are (positions, hidden).
    pub fn forward<T: AnyTape>(
        &self,
        x: Activations<T>,
        settings: &BlockSettings<'_>,
        lens: &impl BlockHooks,
    ) -> Activations<T> {
        let (residual, x) = fork(x);
        let x = ops::rms_norm(
            x,
            &self[BlockTensor::InputNorm],
            settings.norm_epsilon,
            lens.gradient_request(BlockTensor::InputNorm),
        );
        let (x, x_k, x_v) = {
            let (a, b) = fork(x);
            let (b, c) = fork(b);
            (a, b, c)
        };
        let q = self.apply_linear(BlockTensor::Q, x, lens); // (positions, queries · head_dim)
        let k = self.apply_linear(BlockTensor::K, x_k, lens); // (positions, keys · head_dim)
        let v = self.apply_linear(BlockTensor::V, x_v, lens); // (positions, keys · head_dim)
        let mut past = settings
            .kv_cache
            .map(|past| past.lock().unwrap_or_else(PoisonError::into_inner));
        let x = ops::attention(
            q,
            k,
            v,
            self.attention_heads(settings.head_dim),
            settings.layout,
            past.as_deref_mut(),
        );
        drop(past);
        let x = ops::add(self.apply_linear(BlockTensor::O, x, lens), residual);

        let (residual, x) = fork(x);
        let x = ops::rms_norm(
            x,
            &self[BlockTensor::PostAttentionNorm],
            settings.norm_epsilon,
            lens.gradient_request(BlockTensor::PostAttentionNorm),
        );
        let (x, x_up) = fork(x);
        let gate = self.apply_linear(BlockTensor::Gate, x, lens); // (positions, mlp)
        let up = self.apply_linear(BlockTensor::Up, x_up, lens); // (positions, mlp)
        ops::add(
            self.apply_linear(BlockTensor::Down, ops::swiglu(gate, up), lens),
            residual,
        )
    }
}

/// Two uses of one tensor. The tape goes with the second; the first begins an empty one, and they merge where the
/// two meet again.
fn fork<T: AnyTape>(x: Activations<T>) -> (Activations<T>, Activations<T>) {
    (x.with_empty_tape::<T>(), x)
}
