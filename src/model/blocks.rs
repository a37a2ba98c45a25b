//! The forward pass of one LLaMA block (Touvron et al. 2023; names as in transformers' `modeling_llama.py`). Widths are
//! read off the weights, so every layer may have its own.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::wiring::Part;
use crate::ops::{self, Answer, Ask, Heads, Layout, Past, Slot};
use crate::tensor::resident::Lent;
use crate::tensor::{AnyTape, Hidden, Weight};

/// The weights of one block. Clones share memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// In the order of [`Part::ALL`].
    weights: [Weight; 9],
    /// Of the matrices that have one; most families have none.
    biases: BTreeMap<Part, Weight>,
}

impl std::ops::Index<Part> for Block {
    type Output = Weight;
    fn index(&self, part: Part) -> &Weight {
        &self.weights[part as usize]
    }
}

impl std::ops::IndexMut<Part> for Block {
    fn index_mut(&mut self, part: Part) -> &mut Weight {
        &mut self.weights[part as usize]
    }
}

/// How a block applies its weights: plainly, gathering their gradients, with adapters beside them, or looking on.
pub trait Lens {
    /// y = x · Wᵀ, and whatever else this lens does with the matrix.
    fn linear<T: AnyTape>(&self, part: Part, weight: &Weight, x: Hidden<T>) -> Hidden<T> {
        ops::linear(x, weight, self.slot(part))
    }

    /// Where the gradient of a weight goes, if anyone asked for it.
    fn slot(&self, _: Part) -> Option<&Slot> {
        None
    }
}

/// The weights as they are.
pub struct Plain;

impl Lens for Plain {}

/// Asks about the gradients of some of a block's weights.
pub struct Slots(Vec<(Part, Slot)>);

impl Slots {
    pub fn of(asks: impl IntoIterator<Item = (Part, Ask)>) -> Self {
        Self(asks.into_iter().map(|(part, ask)| (part, Slot::new(ask))).collect())
    }

    /// The answers, once the tape has run.
    pub fn answers(self) -> impl Iterator<Item = (Part, Answer)> {
        self.0.into_iter().filter_map(|(part, slot)| Some((part, slot.take()?)))
    }
}

impl Lens for Slots {
    fn slot(&self, part: Part) -> Option<&Slot> {
        self.0.iter().find(|(at, _)| *at == part).map(|(_, slot)| slot)
    }
}

/// What the blocks of one model share.
pub struct BlockSettings<'a> {
    pub norm_epsilon: f32,
    pub head_dim: usize,
    pub layout: &'a Layout,
    /// What was read before, of this block.
    pub past: Option<&'a Mutex<Past>>,
}

impl Block {
    /// Weights in the order of [`Part::ALL`].
    pub fn new(weights: [Weight; 9]) -> Self {
        Self { weights, biases: BTreeMap::new() }
    }

    /// What is added to a matrix's outputs.
    pub fn bias(&self, part: Part) -> Option<&Weight> {
        self.biases.get(&part)
    }

    /// The biases that there are.
    pub fn biases(&self) -> impl Iterator<Item = (Part, &Weight)> {
        self.biases.iter().map(|(&part, bias)| (part, bias))
    }

    /// Gives a matrix a bias, one number for each of its outputs.
    pub fn set_bias(&mut self, part: Part, bias: Weight) {
        debug_assert_eq!(bias.len(), self[part].rows());
        self.biases.insert(part, bias);
    }

    /// A matrix through its lens, then its bias.
    fn apply<T: AnyTape>(&self, part: Part, x: Hidden<T>, lens: &impl Lens) -> Hidden<T> {
        let y = lens.linear(part, &self[part], x);
        match self.bias(part) {
            Some(bias) => ops::add_bias(y, bias),
            None => y,
        }
    }

    /// The block with all its weights in memory.
    pub fn resident(&self) -> Self {
        Self { weights: self.weights.each_ref().map(Weight::resident), biases: self.biases.clone() }
    }

    /// Whether all its weights are on the GPU.
    pub fn is_on_gpu(&self) -> bool {
        self.weights.iter().all(Weight::is_on_gpu)
    }

    /// The weights on the GPU for as long as this is held, if that is where they are used.
    pub fn lent(&self) -> Vec<Lent> {
        self.weights.iter().chain(self.biases.values()).filter_map(Weight::lent).collect()
    }

    /// Whether its matrices stay on disk.
    pub fn is_on_disk(&self) -> bool {
        self.weights.iter().any(Weight::is_on_disk)
    }

    /// Numbers that a tape of this block keeps for each position: what goes into the norms, queries, keys and values, the
    /// attention's output, gate and up. What comes of these element by element is made again on the CPU, and kept on a GPU.
    pub fn tape_width(&self, head_dim: usize, on_gpu: bool) -> usize {
        let Heads { queries, keys, dim } = self.heads(head_dim);
        let (hidden, mlp) = (self[Part::Q].cols(), self[Part::Gate].rows());
        let made_again = if on_gpu { 2 * hidden + mlp } else { 0 };
        2 * hidden + 2 * (queries + keys) * dim + queries + 2 * mlp + made_again
    }

    /// How the attention's heads are laid out.
    pub fn heads(&self, head_dim: usize) -> Heads {
        Heads { queries: self[Part::Q].rows() / head_dim, keys: self[Part::K].rows() / head_dim, dim: head_dim }
    }

    /// x + attention(norm(x)), then + mlp(norm(·)). x and the result are (positions, hidden).
    pub fn forward<T: AnyTape>(&self, x: Hidden<T>, settings: &BlockSettings<'_>, lens: &impl Lens) -> Hidden<T> {
        let (residual, x) = fork(x);
        let x = ops::rms_norm(x, &self[Part::InputNorm], settings.norm_epsilon, lens.slot(Part::InputNorm));
        let (x, x_k, x_v) = {
            let (a, b) = fork(x);
            let (b, c) = fork(b);
            (a, b, c)
        };
        let q = self.apply(Part::Q, x, lens); // (positions, queries · head_dim)
        let k = self.apply(Part::K, x_k, lens); // (positions, keys · head_dim)
        let v = self.apply(Part::V, x_v, lens); // (positions, keys · head_dim)
        let mut past = settings.past.map(|past| past.lock().unwrap_or_else(PoisonError::into_inner));
        let x = ops::attention(q, k, v, self.heads(settings.head_dim), settings.layout, past.as_deref_mut());
        drop(past);
        let x = ops::add(self.apply(Part::O, x, lens), residual);

        let (residual, x) = fork(x);
        let x = ops::rms_norm(x, &self[Part::PostAttentionNorm], settings.norm_epsilon, lens.slot(Part::PostAttentionNorm));
        let (x, x_up) = fork(x);
        let gate = self.apply(Part::Gate, x, lens); // (positions, mlp)
        let up = self.apply(Part::Up, x_up, lens); // (positions, mlp)
        ops::add(self.apply(Part::Down, ops::swiglu(gate, up), lens), residual)
    }
}

/// Two uses of one tensor. The tape goes with the second; the first begins an empty one, and they merge where the
/// two meet again.
fn fork<T: AnyTape>(x: Hidden<T>) -> (Hidden<T>, Hidden<T>) {
    (x.retaped::<T>(), x)
}
