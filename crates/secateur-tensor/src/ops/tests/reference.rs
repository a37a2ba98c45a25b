//! The operations in dfdx's own terms, with dfdx's own gradients, on its CPU device: what both faces are held against.

use dfdx::prelude::*;

use crate::AnyTape;
use crate::activations::cpu::dfdx_cpu;
use crate::ops::{AttentionHeads, RotaryTables, TokenScore, TokenTarget};

/// Activations of one sequence, or a weight.
pub type Matrix<T = NoneTape> = Tensor<(usize, usize), f32, Cpu, T>;

/// See `linear` of the faces. The weight's gradient is recorded on x's tape.
pub fn linear<T: AnyTape>(x: Matrix<T>, weight: &Matrix) -> Matrix<T> {
    x.matmul(
        weight
            .retaped::<T>()
            .permute::<(usize, usize), Axes2<1, 0>>(),
    )
}

/// See `adapted` of the faces.
pub fn linear_with_adapter<T: AnyTape>(
    x: Matrix<T>,
    weight: &Matrix,
    (a, b): (&Matrix, &Matrix),
    scale: f32,
    mask: Option<Matrix>,
) -> Matrix<T> {
    let beside = x.retaped::<T>();
    let plain = linear(x, weight);
    let dropped = match mask {
        Some(mask) => beside * mask,
        None => beside,
    };
    plain + linear(linear(dropped, a), b) * scale
}

/// See `rms_norm` of the faces. The weight is (1, width).
pub fn rms_norm<T: AnyTape>(x: Matrix<T>, weight: &Matrix, epsilon: f32) -> Matrix<T> {
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
pub fn layer_norm<T: AnyTape>(
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

/// See `swiglu` of the faces.
pub fn swiglu<T: AnyTape>(gate: Matrix<T>, up: Matrix<T>) -> Matrix<T> {
    let (again, gate) = (gate.retaped::<T>(), gate);
    gate.sigmoid() * again * up
}

/// See `attention` of the faces; of one sequence.
pub fn attention<T: AnyTape>(
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

/// Queries and keys turned by their positions, the first of which is `start`: (positions, count · dim).
pub fn apply_rotary<T: AnyTape>(
    x: Matrix<T>,
    dim: usize,
    rotary: &RotaryTables,
    start: usize,
) -> Matrix<T> {
    let (n, width) = *x.shape();
    let turned = rotate_heads(split_heads(x, dim), rotary, (width / dim, n, dim), start);
    turned
        .permute::<(usize, usize, usize), Axes3<1, 0, 2>>()
        .reshape_like(&(n, width))
}

/// Attention of rotated queries, the last positions of a sequence, to the keys and values of all of it.
pub fn attend<T: AnyTape>(
    q: Matrix<T>,
    k: Matrix<T>,
    v: Matrix<T>,
    heads: AttentionHeads,
) -> Matrix<T> {
    let (
        n,
        all,
        AttentionHeads {
            query_heads: queries,
            key_value_heads: keys,
            head_dim: dim,
        },
    ) = (q.shape().0, k.shape().0, heads);
    let group = queries / keys;
    let q = split_heads(q, dim).reshape_like(&(keys, group * n, dim));
    let k = split_heads(k, dim).permute::<(usize, usize, usize), Axes3<0, 2, 1>>();
    let scores = q.matmul(k).reshape_like(&(queries, n, all)) * (1.0 / (dim as f32).sqrt());
    let mask: Matrix = dfdx_cpu().upper_tri_like(&(n, all), f32::MIN, (all - n) as isize + 1);
    let masked = scores + mask.broadcast_like::<_, Axis<0>>(&(queries, n, all));
    let p = masked
        .softmax::<Axis<2>>()
        .reshape_like(&(keys, group * n, all));
    let out = p
        .matmul(split_heads(v, dim))
        .reshape_like(&(queries, n, dim));
    out.permute::<(usize, usize, usize), Axes3<1, 0, 2>>()
        .reshape_like(&(n, queries * dim))
}

/// (positions, count · dim) → (count, positions, dim)
fn split_heads<T: AnyTape>(x: Matrix<T>, dim: usize) -> Tensor<(usize, usize, usize), f32, Cpu, T> {
    let (n, width) = *x.shape();
    x.reshape_like(&(n, width / dim, dim))
        .permute::<(usize, usize, usize), Axes3<1, 0, 2>>()
}

/// Rates the targets; logits are (positions, vocabulary), row-major.
pub fn token_scores(logits: &[f32], vocabulary: usize, targets: &[TokenTarget]) -> Vec<TokenScore> {
    let rate = |target: &TokenTarget| {
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
    targets.iter().map(rate).collect()
}

/// The summed cross entropy of the targets, and the gradient of `scale` times it with respect to the logits.
pub fn cross_entropy(
    logits: &[f32],
    vocabulary: usize,
    targets: &[TokenTarget],
    scale: f32,
) -> (f64, Vec<f32>) {
    let mut gradient = vec![0.0; logits.len()];
    let mut nll = 0.0;
    for target in targets {
        let at = target.position * vocabulary..(target.position + 1) * vocabulary;
        let (row, out) = (&logits[at.clone()], &mut gradient[at]);
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
    let mut turn = vec![0.0; dim * dim];
    for i in 0..half {
        turn[(i + half) * dim + i] = -1.0;
        turn[i * dim + i + half] = 1.0;
    }
    let turn: Matrix = device.tensor_from_vec(turn, (dim, dim));
    let table = |of: &[f32], beyond: f32| -> Matrix {
        let rows = of[start * half..(start + n) * half]
            .chunks_exact(half)
            .flat_map(|row| [row, row, &vec![beyond; unrotated]].concat())
            .collect();
        device.tensor_from_vec(rows, (n, dim))
    };
    let whole = (heads, n, dim);
    let cos = table(&rotary.cos, 1.0).broadcast_like::<_, Axis<0>>(&whole);
    let sin = table(&rotary.sin, 0.0).broadcast_like::<_, Axis<0>>(&whole);
    let (again, x) = (x.retaped::<T>(), x);
    let turned = x.matmul(turn.broadcast_like::<_, Axis<0>>(&(heads, dim, dim)));
    turned * sin + again * cos
}

fn column(rows: usize, value: f32) -> Matrix {
    dfdx_cpu().tensor_from_vec(vec![value; rows], (rows, 1))
}

fn row(cols: usize) -> Matrix {
    dfdx_cpu().tensor_from_vec(vec![1.0; cols], (1, cols))
}
