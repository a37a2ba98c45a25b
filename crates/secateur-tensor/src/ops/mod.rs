//! Every tensor operation of the models, in the one place with two faces: fused on the CPU (`cpu`), composed of dfdx's operations on
//! a GPU (`gpu`). `face` takes each call to where its tensors lie; one test holds the faces against each other, gradients
//! included. Only those gradients of weights are made that a [`Slot`] asks for.

use std::ops::Range;
use std::sync::Arc;

use crate::{Activations, Weight};

mod cpu;
mod dispatch;
mod gpu;
mod gradient_query;
mod gradient_reduction;
mod normal;
mod simd;

pub use cpu::CPU_LOGIT_TILE_ELEMENTS;
pub use dispatch::{
    KvCache, add, add_bias, attention, backward, column_moments, cross_entropy, embed, gather_rows,
    gelu, layer_norm, linear, linear_with_adapter, rms_norm, swiglu, token_scores,
};
pub use gpu::{GPU_LOGIT_TILE_ELEMENTS, QUERY_CHUNK_ROWS};
pub use gradient_query::{
    AxisSums, ElementScore, GradientQuery, GradientRequest, GradientResult, SampleSpan, SumAxes,
};
pub use gradient_reduction::{axis_sums, embedding_gradient};
pub use simd::dispatch_simd;

/// An adapter beside a weight: scale · (mask ⊙ x) · Aᵀ · Bᵀ.
pub struct AdapterInput<'a> {
    /// (rank, inputs)
    pub a: &'a Weight,
    /// (outputs, rank)
    pub b: &'a Weight,
    pub scale: f32,
    /// Makes what its inputs are multiplied by, (positions, inputs), the same every time: dropout. None: nothing is dropped.
    pub dropout_mask: Option<DropoutMaskFn>,
    /// Where the gradients of A and B go.
    pub gradient_requests: Option<(&'a GradientRequest, &'a GradientRequest)>,
}

/// Makes a mask.
pub type DropoutMaskFn = Arc<dyn Fn() -> Vec<f32> + Send + Sync>;

/// A prediction that counts: the logits at `position` are asked for `id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenTarget {
    pub position: usize,
    pub token_id: u32,
}

/// How a model rates one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm of the token's probability.
    pub log_probability: f64,
    /// Whether no other token has a larger logit (the first of equals counts).
    pub is_greedy: bool,
}

/// A loss and where to go from it.
#[derive(Clone, Debug)]
pub struct LossAndGradient {
    /// Σ −log p over the targets, in nats.
    pub nll: f64,
    /// The gradient of `scale · nll` with respect to the final hidden states: (positions, hidden).
    pub gradient: Activations,
}

/// How the heads of one attention are laid out; widths are read off the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionHeads {
    /// Query heads.
    pub query_heads: usize,
    /// Key/value heads; divides `queries`. Query head h uses key/value head h div (queries / keys).
    pub key_value_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
}

/// How sequences lie in a pack, one after another without a gap.
#[derive(Clone, Debug, PartialEq)]
pub struct PackLayout {
    pub spans: Arc<[SequenceSpan]>,
    pub rotary: Arc<RotaryTables>,
}

/// A sequence of a pack, or the rest of one whose beginning it shares with others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceSpan {
    /// Its rows in the pack.
    pub rows: Range<usize>,
    /// Rows of the pack that stand before them in the sequence, in order. Without any, it begins here, at position 0.
    pub prefix: Vec<Range<usize>>,
    /// Its sequence in a [`Past`], where there is one.
    pub cache_sequence: usize,
}

impl SequenceSpan {
    /// A sequence that shares nothing.
    pub fn from_rows(rows: Range<usize>) -> Self {
        Self {
            rows,
            ..Self::default()
        }
    }

    /// The position of its first row in its sequence, of which so much was read before.
    fn first_position(&self, read: usize) -> usize {
        read + self
            .prefix
            .iter()
            .map(ExactSizeIterator::len)
            .sum::<usize>()
    }
}

/// Rotary position embedding (Su et al. 2021) in halves: channel i of every head is paired with channel
/// i + `half_dim`, for i < `half_dim`. Where a head is wider than 2 · `half_dim` (partial rotary, as in
/// GPT-NeoX), its remaining channels pass unchanged.
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryTables {
    /// cos of position × frequency, (positions, half_dim).
    pub cos: Vec<f32>,
    /// sin of the same.
    pub sin: Vec<f32>,
    /// Pairs of channels that are rotated in every head: at most head_dim / 2.
    pub half_dim: usize,
}

impl RotaryTables {
    /// The tables for `positions` positions; `frequencies` has one entry per pair.
    pub fn new(frequencies: &[f32], positions: usize) -> Self {
        let angles = || {
            (0..positions).flat_map(|p| frequencies.iter().map(move |f| f64::from(p as f32 * f)))
        };
        Self {
            cos: angles().map(|a| a.cos() as f32).collect(),
            sin: angles().map(|a| a.sin() as f32).collect(),
            half_dim: frequencies.len(),
        }
    }
}

#[cfg(test)]
mod tests;
