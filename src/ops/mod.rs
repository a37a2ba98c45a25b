//! Every tensor operation of the models, in the one place with two faces: fused on the CPU (`cpu`), composed of dfdx's
//! operations on CUDA (`composed`, `cuda`). One test holds the faces against each other, gradients included.
//!
//! On the CPU a weight's gradient is computed only where a [`Slot`] asks for it; on CUDA dfdx computes it in any case.

use std::cell::RefCell;
use std::rc::Rc;

mod bias;
pub use bias::add_bias;

mod scores;
pub use scores::{Scored, Target, TokenScore, cross_entropy, token_scores};

#[cfg(any(test, feature = "cuda"))]
mod composed;

#[cfg(not(feature = "cuda"))]
mod gemm;

#[cfg(not(feature = "cuda"))]
mod attention;
#[cfg(not(feature = "cuda"))]
mod cpu;
#[cfg(not(feature = "cuda"))]
pub use attention::attention;
#[cfg(not(feature = "cuda"))]
pub use cpu::{backward, embed, linear, rms_norm, swiglu};

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
pub use cuda::{attention, backward, embed, linear, rms_norm, swiglu};

/// Where the gradient of one weight goes when a tape runs backward: row-major, of the weight's shape.
#[derive(Clone, Debug, Default)]
pub struct Slot(Rc<RefCell<Option<Vec<f32>>>>);

impl Slot {
    /// The gradient, once the tape has run; None if the weight took no part.
    pub fn take(&self) -> Option<Vec<f32>> {
        self.0.borrow_mut().take()
    }

    /// Adds to the gradient.
    fn add(&self, gradient: Vec<f32>) {
        let mut held = self.0.borrow_mut();
        match held.as_mut() {
            Some(sum) => sum.iter_mut().zip(gradient).for_each(|(s, g)| *s += g),
            None => *held = Some(gradient),
        }
    }
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
