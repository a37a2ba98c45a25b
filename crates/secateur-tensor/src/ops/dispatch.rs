//! The operations as the models call them: each goes where its tensors lie.

use super::{
    AdapterInput, AttentionHeads, GradientRequest, LossAndGradient, PackLayout, TokenScore,
    TokenTarget, cpu, gpu,
};
use crate::{Activations, AnyTape, GradientTape, Weight};

/// y = x · Wᵀ. x is (positions, inputs), W is (outputs, inputs), y is (positions, outputs).
pub fn linear<T: AnyTape>(
    x: Activations<T>,
    weight: &Weight,
    slot: Option<&GradientRequest>,
) -> Activations<T> {
    match x {
        Activations::Cpu(x) => cpu::linear(x, weight, slot).into(),
        Activations::Gpu(x) => gpu::linear(x, weight, slot).into(),
    }
}

/// y = x · Wᵀ + scale · (mask ⊙ x) · Aᵀ · Bᵀ, shapes as in [`linear`].
pub fn linear_with_adapter<T: AnyTape>(
    x: Activations<T>,
    weight: &Weight,
    beside: AdapterInput<'_>,
) -> Activations<T> {
    match x {
        Activations::Cpu(x) => cpu::linear_with_adapter(x, weight, beside).into(),
        Activations::Gpu(x) => gpu::linear_with_adapter(x, weight, beside).into(),
    }
}

/// y = x / √(mean(x²) + ε) ⊙ w. w is (1, width).
pub fn rms_norm<T: AnyTape>(
    x: Activations<T>,
    weight: &Weight,
    epsilon: f32,
    slot: Option<&GradientRequest>,
) -> Activations<T> {
    match x {
        Activations::Cpu(x) => cpu::rms_norm(x, weight, epsilon, slot).into(),
        Activations::Gpu(x) => gpu::rms_norm(x, weight, epsilon, slot).into(),
    }
}

/// y = (x − mean(x)) / √(var(x) + ε) ⊙ w + b, the variance biased (over `width` elements). w and b are
/// (1, width). The bias is frozen: it has no gradient.
pub fn layer_norm<T: AnyTape>(
    x: Activations<T>,
    weight: &Weight,
    bias: Option<&Weight>,
    epsilon: f32,
    request: Option<&GradientRequest>,
) -> Activations<T> {
    match x {
        Activations::Cpu(x) => cpu::layer_norm(x, weight, bias, epsilon, request).into(),
        Activations::Gpu(x) => gpu::layer_norm(x, weight, bias, epsilon, request).into(),
    }
}

/// y = x · Φ(x), element by element: the exact GELU, Φ the standard normal distribution function.
pub fn gelu<T: AnyTape>(x: Activations<T>) -> Activations<T> {
    match x {
        Activations::Cpu(x) => cpu::gelu(x).into(),
        Activations::Gpu(x) => gpu::gelu(x).into(),
    }
}

/// y = silu(gate) ⊙ up (Shazeer 2020). All three are (positions, width).
pub fn swiglu<T: AnyTape>(gate: Activations<T>, up: Activations<T>) -> Activations<T> {
    match gate {
        Activations::Cpu(gate) => cpu::swiglu(gate, up.into_cpu()).into(),
        Activations::Gpu(gate) => gpu::swiglu(gate, up.into_gpu()).into(),
    }
}

/// x + y, of the same shape.
pub fn add<T: AnyTape>(x: Activations<T>, y: Activations<T>) -> Activations<T> {
    match x {
        Activations::Cpu(x) => cpu::add(x, y.into_cpu()).into(),
        Activations::Gpu(x) => gpu::add(x, y.into_gpu()).into(),
    }
}

/// x + b, the bias a vector.
pub fn add_bias<T: AnyTape>(x: Activations<T>, bias: &Weight) -> Activations<T> {
    match x {
        Activations::Cpu(x) => cpu::add_bias(x, bias).into(),
        Activations::Gpu(x) => gpu::add_bias(x, bias).into(),
    }
}

/// softmax(q·kᵀ / √dim + causal mask) · v, head by head, after the rotation of q and k; every sequence of the layout for
/// itself. q is (positions, queries · dim), k and v are (positions, keys · dim), the output is as q. With a `past`, what it
/// holds of a sequence stands before the sequence's rows, and they are added to it; then, and where sequences share their
/// beginning, there is no way back.
///
/// # Panics
/// If there is a tape and a past, or a tape and a shared beginning, or if the rotary tables cover more
/// channels than a head has.
pub fn attention<T: AnyTape>(
    q: Activations<T>,
    k: Activations<T>,
    v: Activations<T>,
    heads: AttentionHeads,
    layout: &PackLayout,
    past: Option<&mut KvCache>,
) -> Activations<T> {
    assert!(
        2 * layout.rotary.half_dim <= heads.head_dim,
        "rotary tables of {} channels for heads of {}",
        2 * layout.rotary.half_dim,
        heads.head_dim
    );
    match q {
        Activations::Cpu(q) => cpu::attention(
            q,
            k.into_cpu(),
            v.into_cpu(),
            heads,
            layout,
            past.map(KvCache::as_cpu_mut),
        )
        .into(),
        Activations::Gpu(q) => gpu::attention(
            q,
            k.into_gpu(),
            v.into_gpu(),
            heads,
            layout,
            past.map(KvCache::as_gpu_mut),
        )
        .into(),
    }
}

/// Keys, rotated, and values of what was read before, sequence by sequence: a layer's part of a KV cache.
#[derive(Clone, Debug)]
pub enum KvCache {
    Cpu(cpu::CpuKvCache),
    Gpu(gpu::GpuKvCache),
}

impl KvCache {
    /// Of so many sequences, of up to so many positions each, nothing was read; keys and values of a position have so many
    /// numbers each.
    pub fn new(sequences: usize, positions: usize, width: usize) -> Self {
        if crate::gpu::is_selected() {
            Self::Gpu(gpu::GpuKvCache::new(sequences, positions, width))
        } else {
            Self::Cpu(cpu::CpuKvCache::new(sequences, width))
        }
    }

    fn as_cpu_mut(&mut self) -> &mut cpu::CpuKvCache {
        match self {
            Self::Cpu(past) => past,
            Self::Gpu(_) => unreachable!("a cache lies where its sequences are read"),
        }
    }

    fn as_gpu_mut(&mut self) -> &mut gpu::GpuKvCache {
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
pub fn embed(weight: &Weight, ids: &[u32]) -> Activations {
    if crate::gpu::is_selected() {
        gpu::embed(weight, ids).into()
    } else {
        cpu::embed(weight, ids).into()
    }
}

/// Some rows, in the order given.
pub fn gather_rows(x: &Activations, rows: Vec<usize>) -> Activations {
    match x {
        Activations::Cpu(from) => {
            let width = x.width();
            let values = rows
                .iter()
                .flat_map(|row| &from.values()[row * width..(row + 1) * width])
                .copied()
                .collect();
            crate::activations::cpu::activations_from_vec(values, rows.len(), width).into()
        }
        Activations::Gpu(x) => gpu::gather_rows(x, rows).into(),
    }
}

/// Σ x and Σ x² over each column.
pub fn column_moments<T>(x: &Activations<T>) -> (Vec<f64>, Vec<f64>) {
    match x {
        Activations::Cpu(from) => {
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
        Activations::Gpu(x) => (
            gpu::column_sums(x.matrix().clone()),
            gpu::column_sums(x.matrix().clone().square()),
        ),
    }
}

/// Rates the targets. x is the normed final hidden state, (positions, hidden); the head is (vocabulary, hidden).
pub fn token_scores(x: &Activations, head: &Weight, targets: &[TokenTarget]) -> Vec<TokenScore> {
    match x {
        Activations::Cpu(x) => cpu::token_scores(x, head, targets),
        Activations::Gpu(x) => gpu::token_scores(x, head, targets),
    }
}

/// The summed cross entropy of the targets, and the gradient of `scale` times it with respect to x, shapes as in
/// [`token_scores`]. Two targets never share a position.
pub fn cross_entropy(
    x: &Activations,
    head: &Weight,
    targets: &[TokenTarget],
    scale: f32,
    slot: Option<&GradientRequest>,
) -> LossAndGradient {
    match x {
        Activations::Cpu(from) => {
            let (nll, gradient) = cpu::cross_entropy(from, head, targets, scale, slot);
            let (rows, cols) = x.shape();
            LossAndGradient {
                nll,
                gradient: crate::activations::cpu::activations_from_vec(gradient, rows, cols)
                    .into(),
            }
        }
        Activations::Gpu(x) => {
            let (nll, gradient) = gpu::cross_entropy(x, head, targets, scale, slot);
            LossAndGradient {
                nll,
                gradient: gradient.into(),
            }
        }
    }
}

/// Runs the tape of `y` backward from the gradient `upstream` of `y`, and returns that of `x`.
pub fn backward(
    y: Activations<GradientTape>,
    upstream: Activations,
    x: &Activations,
) -> Activations {
    match (y, x) {
        (Activations::Cpu(y), Activations::Cpu(from)) => {
            let (rows, cols) = x.shape();
            crate::activations::cpu::activations_from_vec(
                cpu::backward(y, upstream.into_vec(), from),
                rows,
                cols,
            )
            .into()
        }
        (Activations::Gpu(y), Activations::Gpu(x)) => {
            gpu::backward(y, upstream.into_gpu(), x).into()
        }
        _ => unreachable!("a tape lies where its activations are"),
    }
}
