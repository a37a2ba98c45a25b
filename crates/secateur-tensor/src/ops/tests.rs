//! Tests of the operations on both devices: against dfdx's own operations and gradients
//! (`reference`), so that the two implementations are compared with each other too; against finite
//! differences; the results of gradient queries against what follows from the whole gradient; and
//! the bits on the CPU, which depend neither on the number of threads nor on the other rows
//! (`bits`).
//!
//! The GPU's operations run on a GPU if the tests were built with CUDA, otherwise on dfdx's CPU
//! device.

use std::sync::Arc;

use dfdx::prelude::*;
use rand::{Rng, RngExt};

mod attention;
mod bits;
mod half;
mod norms;
mod queries;
mod reference;

use super::{
    AdapterInput, AttentionHeads, AxisSums, DropoutMaskFn, ElementScore, GradientQuery,
    GradientRequest, GradientResult, KvCache, LossAndGradient, PackLayout, RotaryTables,
    SampleSpan, SequenceSpan, SumAxes, TokenTarget, add, add_bias, attention, axis_sums, backward,
    cross_entropy, gelu, layer_norm, linear, linear_with_adapter, rms_norm, swiglu, token_scores,
};
use crate::activations::dfdx_cpu;
use crate::gpu::GpuMatrix;
use crate::{Activations, Device, Gradient, GradientTape, Weight};
use reference::Matrix;
use secateur_base::random::Seed;

/// Runs a test on the CPU, and with the GPU's operations.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn on_each_device(test: impl Fn()) {
    let gpu = if cfg!(feature = "cuda") {
        Device::Cuda(0)
    } else {
        Device::CpuAsGpu
    };
    for device in [Device::Cpu, gpu] {
        match crate::select_device(device) {
            Ok(()) => test(),
            Err(error) => eprintln!("SKIPPED on {device}: {error}"),
        }
    }
    crate::select_device(Device::Cpu).expect("the CPU is always there");
}

fn random_values(rng: &mut impl Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Checks that no element differs by more than 1e-5 of the largest expected element.
fn assert_close(actual: &[f32], expected: &[f32], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f32, |max, x| max.max(x.abs()));
    let difference = largest_difference(actual, expected);
    assert!(
        difference <= 1e-5 * largest.max(1e-2),
        "{what}: {difference} of {largest}"
    );
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter()
        .zip(b)
        .map(|(x, y)| (x - y).abs())
        .fold(0f32, f32::max)
}

fn activations(values: Vec<f32>, rows: usize, cols: usize) -> Activations {
    Activations::new(values, rows, cols)
}

/// The same values as a matrix of the reference.
fn reference_matrix(x: &Activations) -> Matrix {
    dfdx_cpu().tensor_from_vec(x.values().into_owned(), x.shape())
}

fn reference_weight(weight: &Weight) -> Matrix {
    dfdx_cpu().tensor_from_vec(weight.values().to_vec(), (weight.rows(), weight.cols()))
}

/// Runs a tape of dfdx's operations backward from the gradient `upstream` of `y`.
fn run_reference_tape(y: Matrix<GradientTape>, upstream: &[f32]) -> Gradients<f32, Cpu> {
    let upstream: Matrix = dfdx_cpu().tensor_from_vec(upstream.to_vec(), *y.shape());
    (y * upstream).sum::<Rank0, _>().backward()
}

/// The gradient of one of several inputs: the tape is recorded anew for each.
fn input_gradient(
    record: impl Fn() -> Activations<GradientTape>,
    upstream: &[f32],
    input: &Activations,
) -> Vec<f32> {
    run_backward(record(), upstream, input)
}

/// Runs a tape backward from the gradient `upstream` of `y`. Returns the gradient of `x`.
fn run_backward(y: Activations<GradientTape>, upstream: &[f32], x: &Activations) -> Vec<f32> {
    let (rows, cols) = y.shape();
    backward(y, activations(upstream.to_vec(), rows, cols), x).into_vec()
}

/// Sequences of these lengths, one after another.
fn pack_layout(lengths: &[usize], frequencies: &[f32]) -> PackLayout {
    let mut spans = Vec::new();
    let mut start = 0;
    for length in lengths {
        spans.push(SequenceSpan::from_rows(start..start + length));
        start += length;
    }
    let longest = lengths.iter().max().copied().unwrap_or(0);
    PackLayout {
        spans: spans.into(),
        rotary: Arc::new(RotaryTables::new(frequencies, longest)),
    }
}

/// Values against dfdx's `accurate_gelu`. Its derivative has a wrong factor, so the gradient is
/// compared with central differences of its values in f64.
#[test]
fn gelu_matches_the_reference() {
    on_each_device(|| {
        let mut rng = Seed::from_u64(23).rng();
        let (n, width) = (33, 20);
        let values: Vec<f32> = random_values(&mut rng, n * width)
            .into_iter()
            .map(|x| x * 6.0)
            .collect();
        let x = activations(values, n, width);
        let y = gelu(x.with_gradient_tape());
        let expected = reference_matrix(&x).accurate_gelu();
        assert_close(&y.values(), &expected.as_vec(), "values");
        let upstream = random_values(&mut rng, n * width);
        let dx = run_backward(y, &upstream, &x);

        let step = 1e-4;
        let in_f64 = |offset: f64| -> Vec<f64> {
            let moved = x.values().iter().map(|x| f64::from(*x) + offset).collect();
            let moved: Tensor<(usize, usize), f64, Cpu> =
                dfdx_cpu().tensor_from_vec(moved, (n, width));
            moved.accurate_gelu().as_vec()
        };
        let differences: Vec<f32> = in_f64(step)
            .into_iter()
            .zip(in_f64(-step))
            .zip(&upstream)
            .map(|((above, below), u)| ((above - below) / (2.0 * step)) as f32 * u)
            .collect();
        assert_close(&dx, &differences, "x");
    });
}

#[test]
fn adapter_matches_the_reference() {
    on_each_device(|| {
        let mut rng = Seed::from_u64(4).rng();
        for (n, has_dropout) in [(5, false), (40, true)] {
            let x = activations(random_values(&mut rng, n * 24), n, 24);
            let mut random_weight = |rows: usize, cols: usize| {
                Weight::new(random_values(&mut rng, rows * cols), rows, cols)
            };
            let w = random_weight(10, 24);
            let (a, b) = (random_weight(3, 24), random_weight(10, 3));
            let mask: Option<Vec<f32>> = has_dropout.then(|| {
                (0..n * 24)
                    .map(|i| if i % 3 == 0 { 0.0 } else { 1.5 })
                    .collect()
            });
            let upstream = random_values(&mut rng, n * 10);
            let (a_request, b_request) = (
                GradientRequest::for_gradient(),
                GradientRequest::for_gradient(),
            );
            let adapter = AdapterInput {
                a: &a,
                b: &b,
                scale: 2.0,
                dropout_mask: mask
                    .clone()
                    .map(|mask| -> DropoutMaskFn { Arc::new(move || mask.clone()) }),
                gradient_requests: Some((&a_request, &b_request)),
            };
            let fused = linear_with_adapter(x.with_gradient_tape(), &w, adapter);
            let (x_reference, a_reference, b_reference) = (
                reference_matrix(&x),
                reference_weight(&a),
                reference_weight(&b),
            );
            let mask = mask.map(|mask| dfdx_cpu().tensor_from_vec(mask, (n, 24)));
            let expected = reference::linear_with_adapter(
                x_reference.leaky_trace(),
                &reference_weight(&w),
                (&a_reference, &b_reference),
                2.0,
                mask,
            );
            assert_close(&fused.values(), &expected.as_vec(), "values");
            let dx = run_backward(fused, &upstream, &x);
            let gradients = run_reference_tape(expected, &upstream);
            assert_close(&dx, &gradients.get(&x_reference).as_vec(), "x");
            assert_close(
                &a_request
                    .take_gradient()
                    .expect("the gradient was requested"),
                &gradients.get(&a_reference).as_vec(),
                "A",
            );
            assert_close(
                &b_request
                    .take_gradient()
                    .expect("the gradient was requested"),
                &gradients.get(&b_reference).as_vec(),
                "B",
            );
        }
    });
}

#[test]
fn swiglu_add_and_bias_match_the_reference() {
    on_each_device(|| {
        let mut rng = Seed::from_u64(5).rng();
        let (n, width) = (33, 20);
        let (gate, up) = (
            activations(random_values(&mut rng, n * width), n, width),
            activations(random_values(&mut rng, n * width), n, width),
        );
        let upstream = random_values(&mut rng, n * width);
        let bias = Weight::new(random_values(&mut rng, width), 1, width);
        let record = || {
            let product = swiglu(gate.with_gradient_tape(), up.with_empty_tape());
            add_bias(add(product, gate.with_empty_tape()), &bias)
        };
        let (gate_reference, up_reference) = (reference_matrix(&gate), reference_matrix(&up));
        let bias_rows = reference_weight(&bias)
            .reshape_like(&(width,))
            .broadcast_like::<_, Axis<0>>(&(n, width));
        let product = reference::swiglu(gate_reference.leaky_trace(), up_reference.retaped());
        let sum = product + gate_reference.retaped::<GradientTape>();
        let expected = sum + bias_rows.retaped::<GradientTape>();
        assert_close(&record().values(), &expected.as_vec(), "values");
        let gradients = run_reference_tape(expected, &upstream);
        let gate_gradient = input_gradient(record, &upstream, &gate);
        let up_gradient = input_gradient(record, &upstream, &up);
        assert_close(
            &gate_gradient,
            &gradients.get(&gate_reference).as_vec(),
            "gate",
        );
        assert_close(&up_gradient, &gradients.get(&up_reference).as_vec(), "up");
    });
}

#[test]
fn cross_entropy_and_scores_match_the_reference() {
    on_each_device(|| {
        let mut rng = Seed::from_u64(6).rng();
        let (n, width, vocabulary) = (90, 12, 50);
        let x = activations(random_values(&mut rng, n * width), n, width);
        let head = Weight::new(
            random_values(&mut rng, vocabulary * width),
            vocabulary,
            width,
        );
        let targets: Vec<TokenTarget> = (0..n)
            .filter(|i| i % 4 != 3)
            .map(|i| TokenTarget {
                position: i,
                token_id: (i * 7 % vocabulary) as u32,
            })
            .collect();
        let request = GradientRequest::for_gradient();
        let LossAndGradient { nll, gradient } =
            cross_entropy(&x, &head, &targets, 0.5, Some(&request));
        let (x_reference, head_reference) = (reference_matrix(&x), reference_weight(&head));
        let logits = reference::linear(x_reference.leaky_trace(), &head_reference);
        let (expected_nll, logit_gradient) =
            reference::cross_entropy(&logits.as_vec(), vocabulary, &targets, 0.5);
        let expected_scores = reference::token_scores(&logits.as_vec(), vocabulary, &targets);
        let gradients = run_reference_tape(logits, &logit_gradient);
        assert!(
            (nll - expected_nll).abs() <= 1e-6 * expected_nll,
            "{nll} {expected_nll}"
        );
        assert_close(
            &gradient.into_vec(),
            &gradients.get(&x_reference).as_vec(),
            "x",
        );
        assert_close(
            &request.take_gradient().expect("the gradient was requested"),
            &gradients.get(&head_reference).as_vec(),
            "head",
        );
        let scores = token_scores(&x, &head, &targets);
        for (score, expected) in scores.iter().zip(&expected_scores) {
            let difference = score.log_probability - expected.log_probability;
            assert!(difference.abs() < 1e-5, "{score:?}, not {expected:?}");
            assert_eq!(score.is_greedy, expected.is_greedy);
        }
    });
}

/// The gradient of every input element of a block, against the central difference of the outputs'
/// products with `upstream`.
#[test]
fn operations_agree_with_finite_differences() {
    on_each_device(|| {
        let mut rng = Seed::from_u64(8).rng();
        let (n, width) = (11, 8);
        let heads = AttentionHeads {
            query_heads: 2,
            key_value_heads: 1,
            head_dim: 4,
        };
        let layout = pack_layout(&[7, 4], &[1.0, 0.2]);
        let x = activations(random_values(&mut rng, n * width), n, width);
        let norm = Weight::new(random_values(&mut rng, width), 1, width);
        let mut random_weight =
            |rows: usize| Weight::new(random_values(&mut rng, rows * width), rows, width);
        let (wq, wk, wv) = (random_weight(8), random_weight(4), random_weight(4));
        let (gate, up) = (random_weight(8), random_weight(8));
        let upstream = random_values(&mut rng, n * width);
        let block = |x: &Activations| {
            let y = rms_norm(x.with_gradient_tape(), &norm, 1e-5, None);
            let q = linear(y.with_empty_tape(), &wq, None);
            let k = linear(y.with_empty_tape(), &wk, None);
            let v = linear(y.with_empty_tape(), &wv, None);
            let o = attention(q, k, v, heads, &layout, None);
            let (o_again, y) = (o.with_empty_tape(), add(o, y));
            let mlp = swiglu(linear(y, &gate, None), linear(o_again, &up, None));
            let mlp = gelu(layer_norm(mlp, &norm, Some(&norm), 1e-2, None));
            add(mlp, x.with_empty_tape())
        };
        let analytic = run_backward(block(&x), &upstream, &x);
        let shifted_value = |element: usize, step: f32| -> f64 {
            let mut values = x.values().into_owned();
            values[element] += step;
            let y = block(&activations(values, n, width)).with_empty_tape::<NoneTape>();
            let products = y.into_vec().into_iter().zip(&upstream);
            products.map(|(y, u)| f64::from(y) * f64::from(*u)).sum()
        };
        let largest = analytic.iter().fold(0f32, |max, g| max.max(g.abs()));
        for (element, analytic) in analytic.into_iter().enumerate() {
            let change = shifted_value(element, 5e-3) - shifted_value(element, -5e-3);
            let numeric = (change / 1e-2) as f32;
            assert!(
                (numeric - analytic).abs() <= 2e-3 * largest,
                "{element}: {numeric}, not {analytic}"
            );
        }
    });
}
