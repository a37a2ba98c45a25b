//! The operations in dfdx's own terms, with dfdx's own gradients, on its CPU device: the reference
//! with which both implementations are compared.

use dfdx::prelude::*;

use crate::AnyTape;
use crate::activations::dfdx_cpu;
use crate::ops::{AttentionHeads, RotaryTables, TokenScore, TokenTarget};

/// Activations of one sequence, or a weight.
pub(super) type Matrix<T = NoneTape> = Tensor<(usize, usize), f32, Cpu, T>;

/// See [`crate::ops::linear`]. The weight's gradient is recorded on x's tape.
pub(super) fn linear<T: AnyTape>(x: Matrix<T>, weight: &Matrix) -> Matrix<T> {
    x.matmul(
        weight
            .retaped::<T>()
            .permute::<(usize, usize), Axes2<1, 0>>(),
    )
}

/// See [`crate::ops::linear_with_adapter`].
pub(super) fn linear_with_adapter<T: AnyTape>(
    x: Matrix<T>,
    weight: &Matrix,
    (a, b): (&Matrix, &Matrix),
    scale: f32,
    mask: Option<Matrix>,
) -> Matrix<T> {
    let adapter_input = x.retaped::<T>();
    let base = linear(x, weight);
    let dropped = match mask {
        Some(mask) => adapter_input * mask,
        None => adapter_input,
    };
    base + linear(linear(dropped, a), b) * scale
}

/// See [`crate::ops::rms_norm`]. The weight is (1, width).
pub(super) fn rms_norm<T: AnyTape>(x: Matrix<T>, weight: &Matrix, epsilon: f32) -> Matrix<T> {
    let (n, width) = *x.shape();
    let (again, x) = (x.retaped::<T>(), x);
    let square = x.square();
    let mean = square.matmul(column(width, 1.0 / width as f32)); // (n, 1)
    let scale = (mean + epsilon).sqrt().recip();
    let spread = scale.matmul(row(width)); // (n, width)
    let scaled = spread * again;
    let rows = column(n, 1.0).retaped::<T>().matmul(weight.retaped::<T>()); // (n, width)
    scaled * rows
}

/// See [`crate::ops::layer_norm`]. Weight and bias are (1, width).
pub(super) fn layer_norm<T: AnyTape>(
    x: Matrix<T>,
    weight: &Matrix,
    bias: &Matrix,
    epsilon: f32,
) -> Matrix<T> {
    let (n, width) = *x.shape();
    let spread = |column: Matrix<T>| column.matmul(row(width)); // (n, 1) → (n, width)
    let row_mean = |x: Matrix<T>| x.matmul(column(width, 1.0 / width as f32));
    let (again, x) = (x.retaped::<T>(), x);
    let centred = again - spread(row_mean(x));
    let (again, centred) = (centred.retaped::<T>(), centred);
    let inverse_std = (row_mean(centred.square()) + epsilon).sqrt().recip();
    let normalised = spread(inverse_std) * again;
    let rows = |vector: &Matrix| column(n, 1.0).retaped::<T>().matmul(vector.retaped::<T>());
    normalised * rows(weight) + rows(bias)
}

/// See [`crate::ops::swiglu`].
pub(super) fn swiglu<T: AnyTape>(gate: Matrix<T>, up: Matrix<T>) -> Matrix<T> {
    let (again, gate) = (gate.retaped::<T>(), gate);
    gate.sigmoid() * again * up
}

/// See [`crate::ops::attention`]; of one sequence.
pub(super) fn attention<T: AnyTape>(
    q: Matrix<T>,
    k: Matrix<T>,
    v: Matrix<T>,
    heads: AttentionHeads,
    rotary: &RotaryTables,
) -> Matrix<T> {
    attend(
        apply_rotary(q, heads.head_dim, rotary, 0),
        apply_rotary(k, heads.head_dim, rotary, 0),
        v,
        heads,
    )
}

/// Queries or keys rotated by their positions, the first of which is `start`: (positions, heads ·
/// dim).
pub(super) fn apply_rotary<T: AnyTape>(
    x: Matrix<T>,
    dim: usize,
    rotary: &RotaryTables,
    start: usize,
) -> Matrix<T> {
    let (n, width) = *x.shape();
    rotate_heads(split_heads(x, dim), rotary, (width / dim, n, dim), start)
        .permute::<(usize, usize, usize), Axes3<1, 0, 2>>()
        .reshape_like(&(n, width))
}

/// Attention of rotated queries, the last positions of a sequence, to the keys and values of all of
/// it.
pub(super) fn attend<T: AnyTape>(
    q: Matrix<T>,
    k: Matrix<T>,
    v: Matrix<T>,
    heads: AttentionHeads,
) -> Matrix<T> {
    let AttentionHeads {
        query_heads,
        key_value_heads,
        head_dim: dim,
    } = heads;
    let (n, key_count) = (q.shape().0, k.shape().0);
    let group = query_heads / key_value_heads;
    let q = split_heads(q, dim).reshape_like(&(key_value_heads, group * n, dim));
    let k = split_heads(k, dim).permute::<(usize, usize, usize), Axes3<0, 2, 1>>();
    let scores =
        q.matmul(k).reshape_like(&(query_heads, n, key_count)) * (1.0 / (dim as f32).sqrt());
    let mask: Matrix =
        dfdx_cpu().upper_tri_like(&(n, key_count), f32::MIN, (key_count - n) as isize + 1);
    let masked = scores + mask.broadcast_like::<_, Axis<0>>(&(query_heads, n, key_count));
    let p = masked
        .softmax::<Axis<2>>()
        .reshape_like(&(key_value_heads, group * n, key_count));
    let out = p
        .matmul(split_heads(v, dim))
        .reshape_like(&(query_heads, n, dim));
    out.permute::<(usize, usize, usize), Axes3<1, 0, 2>>()
        .reshape_like(&(n, query_heads * dim))
}

/// (positions, heads · dim) → (heads, positions, dim)
fn split_heads<T: AnyTape>(x: Matrix<T>, dim: usize) -> Tensor<(usize, usize, usize), f32, Cpu, T> {
    let (n, width) = *x.shape();
    x.reshape_like(&(n, width / dim, dim))
        .permute::<(usize, usize, usize), Axes3<1, 0, 2>>()
}

/// Scores the targets; logits are (positions, vocabulary), row-major.
pub(super) fn token_scores(
    logits: &[f32],
    vocabulary: usize,
    targets: &[TokenTarget],
) -> Vec<TokenScore> {
    let score = |target: &TokenTarget| {
        let row = &logits[target.position * vocabulary..(target.position + 1) * vocabulary];
        let (best, _) = row
            .iter()
            .enumerate()
            .fold((0, f32::NEG_INFINITY), |best, (i, &l)| {
                if l > best.1 { (i, l) } else { best }
            });
        let log_probability = f64::from(row[target.token_id as usize]) - log_sum_exp(row);
        TokenScore {
            log_probability,
            is_greedy: best == target.token_id as usize,
        }
    };
    targets.iter().map(score).collect()
}

/// The summed cross entropy of the targets, and the gradient of `scale` times it with respect to
/// the logits.
pub(super) fn cross_entropy(
    logits: &[f32],
    vocabulary: usize,
    targets: &[TokenTarget],
    scale: f32,
) -> (f64, Vec<f32>) {
    let mut gradient = vec![0.0; logits.len()];
    let mut nll = 0.0;
    for target in targets {
        let elements = target.position * vocabulary..(target.position + 1) * vocabulary;
        let (row, out) = (&logits[elements.clone()], &mut gradient[elements]);
        let total = log_sum_exp(row);
        nll += total - f64::from(row[target.token_id as usize]);
        out.iter_mut()
            .zip(row)
            .for_each(|(g, &l)| *g = scale * (f64::from(l) - total).exp() as f32);
        out[target.token_id as usize] -= scale;
    }
    (nll, gradient)
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(largest)
        + row
            .iter()
            .map(|&l| f64::from(l - largest).exp())
            .sum::<f64>()
            .ln()
}

/// x ⊙ cos + (x · R) ⊙ sin, where x · R is (−second half, first half).
fn rotate_heads<T: AnyTape>(
    x: Tensor<(usize, usize, usize), f32, Cpu, T>,
    rotary: &RotaryTables,
    (heads, n, dim): (usize, usize, usize),
    start: usize,
) -> Tensor<(usize, usize, usize), f32, Cpu, T> {
    let device = dfdx_cpu();
    let half = rotary.half_dim;
    let unrotated = dim - 2 * half;
    let mut quarter_turn = vec![0.0; dim * dim];
    for i in 0..half {
        quarter_turn[(i + half) * dim + i] = -1.0;
        quarter_turn[i * dim + i + half] = 1.0;
    }
    let quarter_turn: Matrix = device.tensor_from_vec(quarter_turn, (dim, dim));
    let table = |pairs: &[f32], unrotated_value: f32| -> Matrix {
        let rows = pairs[start * half..(start + n) * half]
            .chunks_exact(half)
            .flat_map(|row| [row, row, &vec![unrotated_value; unrotated]].concat())
            .collect();
        device.tensor_from_vec(rows, (n, dim))
    };
    let by_head = (heads, n, dim);
    let cos = table(&rotary.cos, 1.0).broadcast_like::<_, Axis<0>>(&by_head);
    let sin = table(&rotary.sin, 0.0).broadcast_like::<_, Axis<0>>(&by_head);
    let (again, x) = (x.retaped::<T>(), x);
    let quarter_turned = x.matmul(quarter_turn.broadcast_like::<_, Axis<0>>(&(heads, dim, dim)));
    quarter_turned * sin + again * cos
}

fn column(rows: usize, value: f32) -> Matrix {
    dfdx_cpu().tensor_from_vec(vec![value; rows], (rows, 1))
}

fn row(cols: usize) -> Matrix {
    dfdx_cpu().tensor_from_vec(vec![1.0; cols], (1, cols))
}
