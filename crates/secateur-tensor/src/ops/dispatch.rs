//! The operations as the models call them. Each call goes to the implementation for the device that
//! holds its activations. The weights are in memory or on the GPU; only [`embed`] reads a weight on
//! disk.

use super::adapter::AdapterInput;
use super::gradient_query::GradientRequest;
use super::kv_cache::KvCache;
use super::layout::{AttentionHeads, PackLayout};
use super::token_loss::{LossAndGradient, TokenScore, TokenTarget};
use super::{cpu, gpu};
use crate::activations::{Activations, CpuActivations};
use crate::tape::{AnyTape, GradientTape};
use crate::weight::{Weight, WeightReadError};

/// y = x · Wᵀ. x is (positions, inputs), W is (outputs, inputs), y is (positions, outputs).
pub fn linear<T: AnyTape>(
    x: Activations<T>,
    weight: &Weight,
    request: Option<&GradientRequest>,
) -> Activations<T> {
    match x {
        Activations::Cpu(x) => cpu::linear(x, weight, request).into(),
        Activations::Gpu(x) => gpu::linear(x, weight, request).into(),
    }
}

/// y = x · Wᵀ + scale · (mask ⊙ x) · Aᵀ · Bᵀ, shapes as in [`linear`].
pub fn linear_with_adapter<T: AnyTape>(
    x: Activations<T>,
    weight: &Weight,
    adapter: AdapterInput<'_>,
) -> Activations<T> {
    match x {
        Activations::Cpu(x) => cpu::linear_with_adapter(x, weight, adapter).into(),
        Activations::Gpu(x) => gpu::linear_with_adapter(x, weight, adapter).into(),
    }
}

/// y = x / √(mean(x²) + ε) ⊙ w (Zhang and Sennrich 2019). w is (1, width).
pub fn rms_norm<T: AnyTape>(
    x: Activations<T>,
    weight: &Weight,
    epsilon: f32,
    request: Option<&GradientRequest>,
) -> Activations<T> {
    match x {
        Activations::Cpu(x) => cpu::rms_norm(x, weight, epsilon, request).into(),
        Activations::Gpu(x) => gpu::rms_norm(x, weight, epsilon, request).into(),
    }
}

/// y = (x − mean(x)) / √(var(x) + ε) ⊙ w + b (Ba et al. 2016), the variance biased (divided by the
/// width). w and b are (1, width). The bias is frozen: it has no gradient.
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

/// y = silu(gate) ⊙ up (Shazeer 2020). All three are (positions, width).
pub fn swiglu<T: AnyTape>(gate: Activations<T>, up: Activations<T>) -> Activations<T> {
    match gate {
        Activations::Cpu(gate) => cpu::swiglu(gate, up.into_cpu()).into(),
        Activations::Gpu(gate) => gpu::swiglu(gate, up.into_gpu()).into(),
    }
}

/// y = x · Φ(x), the exact GELU (Hendrycks and Gimpel 2016): Φ is the distribution function of the
/// standard normal distribution.
pub fn gelu<T: AnyTape>(x: Activations<T>) -> Activations<T> {
    match x {
        Activations::Cpu(x) => cpu::gelu(x).into(),
        Activations::Gpu(x) => gpu::gelu(x).into(),
    }
}

/// x + y, of one shape.
pub fn add<T: AnyTape>(x: Activations<T>, y: Activations<T>) -> Activations<T> {
    match x {
        Activations::Cpu(x) => cpu::add(x, y.into_cpu()).into(),
        Activations::Gpu(x) => gpu::add(x, y.into_gpu()).into(),
    }
}

/// x + b, the bias a vector of x's width. The bias is frozen: it has no gradient.
pub fn add_bias<T: AnyTape>(x: Activations<T>, bias: &Weight) -> Activations<T> {
    match x {
        Activations::Cpu(x) => cpu::add_bias(x, bias).into(),
        Activations::Gpu(x) => gpu::add_bias(x, bias).into(),
    }
}

/// softmax(q·kᵀ / √head_dim + causal mask) · v, head by head and sequence by sequence, after the
/// rotation of q and k by their positions. q is (positions, query_heads · head_dim), k and v are
/// (positions, key_value_heads · head_dim), the output is as q.
///
/// With a cache, the positions that it holds of a sequence come before the sequence's rows, and the
/// rows are appended to it. There is no backward step through a cache or a shared prefix.
///
/// # Panics
/// If there is a tape and a cache, or a tape and a shared prefix, or if the rotary tables cover
/// more channels than a head has.
pub fn attention<T: AnyTape>(
    q: Activations<T>,
    k: Activations<T>,
    v: Activations<T>,
    heads: AttentionHeads,
    layout: &PackLayout,
    cache: Option<&mut KvCache>,
) -> Activations<T> {
    assert!(
        2 * layout.rotary.half_dim <= heads.head_dim,
        "rotary tables of {} channels for heads of {}",
        2 * layout.rotary.half_dim,
        heads.head_dim
    );
    match q {
        Activations::Cpu(q) => {
            let (k, v) = (k.into_cpu(), v.into_cpu());
            cpu::attention(q, k, v, heads, layout, cache.map(KvCache::as_cpu_mut)).into()
        }
        Activations::Gpu(q) => {
            let (k, v) = (k.into_gpu(), v.into_gpu());
            gpu::attention(q, k, v, heads, layout, cache.map(KvCache::as_gpu_mut)).into()
        }
    }
}

/// The rows of the embedding with these ids: (positions, width).
///
/// # Errors
/// If the embedding is on disk and its rows cannot be read.
///
/// # Panics
/// If an id is not in the vocabulary.
pub fn embed(weight: &Weight, ids: &[u32]) -> Result<Activations, WeightReadError> {
    // The rows are read from the CPU's memory or from disk, so the embedding takes no memory on a
    // GPU.
    let rows: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
    let values = weight.read_rows(&rows)?;
    Ok(Activations::new(values, ids.len(), weight.cols()))
}

/// Some rows, in the order given.
pub fn gather_rows(x: &Activations, rows: Vec<usize>) -> Activations {
    match x {
        Activations::Cpu(x) => cpu::gather_rows(x, &rows).into(),
        Activations::Gpu(x) => gpu::gather_rows(x, rows).into(),
    }
}

/// Σ x and Σ x² of each column, over the positions. Added in f64 on the CPU, in f32 on a GPU.
pub fn column_moments<T>(x: &Activations<T>) -> (Vec<f64>, Vec<f64>) {
    match x {
        Activations::Cpu(x) => cpu::column_moments(x),
        Activations::Gpu(x) => (
            gpu::column_sums(x.matrix().clone()),
            gpu::column_sums(x.matrix().clone().square()),
        ),
    }
}

/// Scores the targets. x is the final hidden state after its norm, (positions, hidden); the head is
/// (vocabulary, hidden).
pub fn token_scores(x: &Activations, head: &Weight, targets: &[TokenTarget]) -> Vec<TokenScore> {
    match x {
        Activations::Cpu(x) => cpu::token_scores(x, head, targets),
        Activations::Gpu(x) => gpu::token_scores(x, head, targets),
    }
}

/// The cross entropy of the targets, summed, and the gradient of `scale` times it with respect to
/// x; shapes as in [`token_scores`]. The targets are in the order of their positions, at most one
/// for each.
pub fn cross_entropy(
    x: &Activations,
    head: &Weight,
    targets: &[TokenTarget],
    scale: f32,
    request: Option<&GradientRequest>,
) -> LossAndGradient {
    match x {
        Activations::Cpu(x) => {
            let (nll, gradient) = cpu::cross_entropy(x, head, targets, scale, request);
            LossAndGradient {
                nll,
                gradient: gradient.into(),
            }
        }
        Activations::Gpu(x) => {
            let (nll, gradient) = gpu::cross_entropy(x, head, targets, scale, request);
            LossAndGradient {
                nll,
                gradient: gradient.into(),
            }
        }
    }
}

/// Runs the tape of `y` backward from `upstream`, the gradient of `y`. Returns the gradient of `x`.
pub fn backward(
    y: Activations<GradientTape>,
    upstream: Activations,
    x: &Activations,
) -> Activations {
    match (y, x) {
        (Activations::Cpu(y), Activations::Cpu(x)) => {
            let (rows, cols) = *x.shape();
            let gradient = cpu::backward(y, upstream.into_vec(), x);
            CpuActivations::from_vec(gradient, rows, cols).into()
        }
        (Activations::Gpu(y), Activations::Gpu(x)) => {
            gpu::backward(y, upstream.into_gpu(), x).into()
        }
        _ => unreachable!("a tape is on the device of its activations"),
    }
}
