//! Every tensor operation of the models, in the one place with two faces: fused on the CPU (a file each), composed of dfdx's
//! operations on CUDA (`composed`, `cuda`). One test holds the faces against each other, gradients included.
//!
//! On the CPU only those gradients of weights are made that a [`Slot`] asks for, and only as much of them at a time as its
//! question needs; on CUDA dfdx makes them in any case.

use std::ops::Range;
use std::sync::Arc;

use crate::tensor::Weight;

#[cfg(any(test, feature = "cuda"))]
mod composed;
mod slot;
pub use slot::{Answer, Ask, SampleAt, SideSums, Sides, Slot, Worth, side_sums};
mod simd;
pub use simd::vectorised;

#[cfg(not(feature = "cuda"))]
mod adapter;
#[cfg(not(feature = "cuda"))]
mod attention;
#[cfg(not(feature = "cuda"))]
mod elementwise;
#[cfg(not(feature = "cuda"))]
mod gemm;
#[cfg(not(feature = "cuda"))]
mod gradient;
#[cfg(not(feature = "cuda"))]
mod linear;
#[cfg(not(feature = "cuda"))]
mod loss;
#[cfg(not(feature = "cuda"))]
mod maths;
#[cfg(not(feature = "cuda"))]
mod norm;
#[cfg(not(feature = "cuda"))]
mod tape;
#[cfg(not(feature = "cuda"))]
pub use self::{
    adapter::adapted,
    attention::attention,
    elementwise::{add, add_bias, swiglu},
    linear::linear,
    loss::{cross_entropy, token_scores},
    norm::rms_norm,
    tape::{backward, embed},
};

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
pub use cuda::{adapted, add, add_bias, attention, backward, cross_entropy, embed, linear, rms_norm, swiglu, token_scores};

/// An adapter beside a weight: scale · (mask ⊙ x) · Aᵀ · Bᵀ.
pub struct Beside<'a> {
    /// (rank, inputs)
    pub a: &'a Weight,
    /// (outputs, rank)
    pub b: &'a Weight,
    pub scale: f32,
    /// Makes what its inputs are multiplied by, (positions, inputs), the same every time: dropout. None: nothing is dropped.
    pub mask: Option<Mask>,
    /// Where the gradients of A and B go.
    pub slots: Option<(&'a Slot, &'a Slot)>,
}

/// Makes a mask.
pub type Mask = Arc<dyn Fn() -> Vec<f32> + Send + Sync>;

/// A prediction that counts: the logits at `position` are asked for `id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub position: usize,
    pub id: u32,
}

/// How a model rates one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm of the token's probability.
    pub log_probability: f64,
    /// Whether no other token has a larger logit (the first of equals counts).
    pub greedy: bool,
}

/// A loss and where to go from it.
#[derive(Clone, Debug)]
pub struct Scored {
    /// Σ −log p over the targets, in nats.
    pub nll: f64,
    /// The gradient of `scale · nll` with respect to the final hidden states: (positions, hidden).
    pub gradient: Vec<f32>,
}

/// How the heads of one attention are laid out; widths are read off the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key/value heads; divides `queries`. Query head h uses key/value head h div (queries / keys).
    pub keys: usize,
    /// Width of a head, even.
    pub dim: usize,
}

/// How sequences lie in a pack, one after another without a gap.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    pub spans: Arc<[Span]>,
    pub rotary: Arc<Rotary>,
}

/// A sequence of a pack, or the rest of one whose beginning it shares with others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Span {
    /// Its rows in the pack.
    pub rows: Range<usize>,
    /// Rows of the pack that stand before them in the sequence, in order. Without any, it begins here, at position 0.
    pub before: Vec<Range<usize>>,
    /// Its sequence in a [`Past`], where there is one.
    pub past: usize,
}

impl Span {
    /// A sequence that shares nothing.
    pub fn of(rows: Range<usize>) -> Self {
        Self { rows, ..Self::default() }
    }

    /// The position of its first row in its sequence.
    fn start(&self, past: Option<&Past>) -> usize {
        past.map_or(0, |past| past.len(self.past)) + self.before.iter().map(ExactSizeIterator::len).sum::<usize>()
    }
}

/// Keys, rotated, and values of what was read before, sequence by sequence: a layer's part of a KV cache.
#[derive(Clone, Debug)]
pub struct Past {
    /// (positions, keys · dim) each.
    sequences: Vec<(Vec<f32>, Vec<f32>)>,
    /// keys · dim
    width: usize,
}

impl Past {
    /// Of so many sequences nothing was read; keys and values of a position have so many numbers each.
    pub fn new(sequences: usize, width: usize) -> Self {
        Self { sequences: vec![(Vec::new(), Vec::new()); sequences], width }
    }

    /// Positions of a sequence.
    fn len(&self, sequence: usize) -> usize {
        self.sequences[sequence].0.len() / self.width
    }
}

/// Rotary position embedding (Su et al. 2021), the half-split form: dimension i is paired with i + dim/2.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// cos of position × frequency, (positions, dim / 2).
    pub cos: Vec<f32>,
    /// sin of the same.
    pub sin: Vec<f32>,
    /// dim / 2
    pub half: usize,
}

impl Rotary {
    /// The tables for `positions` positions; `frequencies` has one entry per pair.
    pub fn new(frequencies: &[f32], positions: usize) -> Self {
        let angles = || (0..positions).flat_map(|p| frequencies.iter().map(move |f| f64::from(p as f32 * f)));
        Self {
            cos: angles().map(|a| a.cos() as f32).collect(),
            sin: angles().map(|a| a.sin() as f32).collect(),
            half: frequencies.len(),
        }
    }
}

#[cfg(all(test, not(feature = "cuda")))]
mod tests;
