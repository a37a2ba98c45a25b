//! The operations as the models call them: each goes where its tensors lie.

use super::{Beside, Heads, Layout, Scored, Slot, Target, TokenScore, cpu, gpu};
use crate::tensor::{self, AnyTape, Hidden, Recording, Weight};

/// y = x · Wᵀ. x is (positions, inputs), W is (outputs, inputs), y is (positions, outputs).
pub fn linear<T: AnyTape>(x: Hidden<T>, weight: &Weight, slot: Option<&Slot>) -> Hidden<T> {
    match x {
        Hidden::Cpu(x) => cpu::linear(x, weight, slot).into(),
        Hidden::Gpu(x) => gpu::linear(x, weight, slot).into(),
    }
}

/// y = x · Wᵀ + scale · (mask ⊙ x) · Aᵀ · Bᵀ, shapes as in [`linear`].
pub fn adapted<T: AnyTape>(x: Hidden<T>, weight: &Weight, beside: Beside<'_>) -> Hidden<T> {
    match x {
        Hidden::Cpu(x) => cpu::adapted(x, weight, beside).into(),
        Hidden::Gpu(x) => gpu::adapted(x, weight, beside).into(),
    }
}

/// y = x / √(mean(x²) + ε) ⊙ w. w is (1, width).
pub fn rms_norm<T: AnyTape>(x: Hidden<T>, weight: &Weight, epsilon: f32, slot: Option<&Slot>) -> Hidden<T> {
    match x {
        Hidden::Cpu(x) => cpu::rms_norm(x, weight, epsilon, slot).into(),
        Hidden::Gpu(x) => gpu::rms_norm(x, weight, epsilon, slot).into(),
    }
}

/// y = silu(gate) ⊙ up (Shazeer 2020). All three are (positions, width).
pub fn swiglu<T: AnyTape>(gate: Hidden<T>, up: Hidden<T>) -> Hidden<T> {
    match gate {
        Hidden::Cpu(gate) => cpu::swiglu(gate, up.on_cpu()).into(),
        Hidden::Gpu(gate) => gpu::swiglu(gate, up.on_gpu()).into(),
    }
}

/// x + y, of the same shape.
pub fn add<T: AnyTape>(x: Hidden<T>, y: Hidden<T>) -> Hidden<T> {
    match x {
        Hidden::Cpu(x) => cpu::add(x, y.on_cpu()).into(),
        Hidden::Gpu(x) => gpu::add(x, y.on_gpu()).into(),
    }
}

/// x + b, the bias a vector.
pub fn add_bias<T: AnyTape>(x: Hidden<T>, bias: &Weight) -> Hidden<T> {
    match x {
        Hidden::Cpu(x) => cpu::add_bias(x, bias).into(),
        Hidden::Gpu(x) => gpu::add_bias(x, bias).into(),
    }
}

/// softmax(q·kᵀ / √dim + causal mask) · v, head by head, after the rotation of q and k; every sequence of the layout for
/// itself. q is (positions, queries · dim), k and v are (positions, keys · dim), the output is as q. With a `past`, what it
/// holds of a sequence stands before the sequence's rows, and they are added to it; then, and where sequences share their
/// beginning, there is no way back.
///
/// # Panics
/// If there is a tape and a past, or a tape and a shared beginning.
pub fn attention<T: AnyTape>(
    q: Hidden<T>,
    k: Hidden<T>,
    v: Hidden<T>,
    heads: Heads,
    layout: &Layout,
    past: Option<&mut Past>,
) -> Hidden<T> {
    match q {
        Hidden::Cpu(q) => cpu::attention(q, k.on_cpu(), v.on_cpu(), heads, layout, past.map(Past::on_cpu)).into(),
        Hidden::Gpu(q) => gpu::attention(q, k.on_gpu(), v.on_gpu(), heads, layout, past.map(Past::on_gpu)).into(),
    }
}

/// Keys, rotated, and values of what was read before, sequence by sequence: a layer's part of a KV cache.
#[derive(Clone, Debug)]
pub enum Past {
    Cpu(cpu::Past),
    Gpu(gpu::Past),
}

impl Past {
    /// Of so many sequences, of up to so many positions each, nothing was read; keys and values of a position have so many
    /// numbers each.
    pub fn new(sequences: usize, positions: usize, width: usize) -> Self {
        if tensor::gpu::is_selected() {
            Self::Gpu(gpu::Past::new(sequences, positions, width))
        } else {
            Self::Cpu(cpu::Past::new(sequences, width))
        }
    }

    fn on_cpu(&mut self) -> &mut cpu::Past {
        match self {
            Self::Cpu(past) => past,
            Self::Gpu(_) => unreachable!("a cache lies where its sequences are read"),
        }
    }

    fn on_gpu(&mut self) -> &mut gpu::Past {
        match self {
            Self::Gpu(past) => past,
            Self::Cpu(_) => unreachable!("a cache lies where its sequences are read"),
        }
    }
}

/// The rows of the embedding that `ids` name: (positions, width).
///
/// # Panics
/// If an id lies outside the vocabulary; whoever makes ids checks them.
pub fn embed(weight: &Weight, ids: &[u32]) -> Hidden {
    if tensor::gpu::is_selected() { gpu::embed(weight, ids).into() } else { cpu::embed(weight, ids).into() }
}

/// Some rows, in the order given.
pub fn picked(x: &Hidden, rows: Vec<usize>) -> Hidden {
    match x {
        Hidden::Cpu(from) => {
            let width = x.width();
            let values = rows.iter().flat_map(|row| &from.values()[row * width..(row + 1) * width]).copied().collect();
            tensor::cpu::hidden(values, rows.len(), width).into()
        }
        Hidden::Gpu(x) => gpu::picked(x, rows).into(),
    }
}

/// Σ x and Σ x² over each column.
pub fn column_moments<T>(x: &Hidden<T>) -> (Vec<f64>, Vec<f64>) {
    match x {
        Hidden::Cpu(from) => {
            let width = x.width();
            let (mut sums, mut squares) = (vec![0.0; width], vec![0.0; width]);
            for row in from.values().chunks_exact(width) {
                for ((x, sum), square) in row.iter().zip(&mut sums).zip(&mut squares) {
                    *sum += f64::from(*x);
                    *square += f64::from(*x) * f64::from(*x);
                }
            }
            (sums, squares)
        }
        Hidden::Gpu(x) => (gpu::column_sums(x.matrix().clone()), gpu::column_sums(x.matrix().clone().square())),
    }
}

/// Rates the targets. x is the normed final hidden state, (positions, hidden); the head is (vocabulary, hidden).
pub fn token_scores(x: &Hidden, head: &Weight, targets: &[Target]) -> Vec<TokenScore> {
    match x {
        Hidden::Cpu(x) => cpu::token_scores(x, head, targets),
        Hidden::Gpu(x) => gpu::token_scores(x, head, targets),
    }
}

/// The summed cross entropy of the targets, and the gradient of `scale` times it with respect to x, shapes as in
/// [`token_scores`]. Two targets never share a position.
pub fn cross_entropy(x: &Hidden, head: &Weight, targets: &[Target], scale: f32, slot: Option<&Slot>) -> Scored {
    match x {
        Hidden::Cpu(from) => {
            let (nll, gradient) = cpu::cross_entropy(from, head, targets, scale, slot);
            let (rows, cols) = x.shape();
            Scored { nll, gradient: tensor::cpu::hidden(gradient, rows, cols).into() }
        }
        Hidden::Gpu(x) => {
            let (nll, gradient) = gpu::cross_entropy(x, head, targets, scale, slot);
            Scored { nll, gradient: gradient.into() }
        }
    }
}

/// Runs the tape of `y` backward from the gradient `upstream` of `y`, and returns that of `x`.
pub fn backward(y: Hidden<Recording>, upstream: Hidden, x: &Hidden) -> Hidden {
    match (y, x) {
        (Hidden::Cpu(y), Hidden::Cpu(from)) => {
            let (rows, cols) = x.shape();
            tensor::cpu::hidden(cpu::backward(y, upstream.into_vec(), from), rows, cols).into()
        }
        (Hidden::Gpu(y), Hidden::Gpu(x)) => gpu::backward(y, upstream.on_gpu(), x).into(),
        _ => unreachable!("a tape lies where its activations are"),
    }
}
