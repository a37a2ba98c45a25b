//! Both faces against dfdx's own operations and gradients, and so against each other; the operations against differences; what a slot is
//! told against what follows from the whole gradient; and the promise that neither threads nor neighbours change a bit on the CPU.
//!
//! The other face runs on a GPU where the tests were built for one, else on dfdx's CPU device.

use std::ops::Range;
use std::sync::Arc;

use dfdx::prelude::*;
use rand::{Rng, RngExt};

mod bits;
mod half;
mod reference;

use super::{
    AdapterInput, AttentionHeads, AxisSums, DropoutMaskFn, ElementScore, GradientQuery,
    GradientRequest, GradientResult, KvCache, LossAndGradient, PackLayout, RotaryTables,
    SampleSpan, SequenceSpan, SumAxes, TokenTarget, add, add_bias, attention, axis_sums, backward,
    cross_entropy, gelu, layer_norm, linear, linear_with_adapter, rms_norm, swiglu, token_scores,
};
use crate::activations::cpu::dfdx_cpu;
use crate::activations::gpu::GpuMatrix;
use crate::{Activations, Device, Gradient, GradientTape, Weight};
use reference::Matrix;
use secateur_base::random::Seed;

/// Runs a test on either face.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn on_each_device(test: impl Fn()) {
    let other = if cfg!(feature = "cuda") {
        Device::Cuda(0)
    } else {
        Device::CpuAsGpu
    };
    for face in [Device::Cpu, other] {
        match crate::select_device(face) {
            Ok(()) => test(),
            Err(missing) => eprintln!("SKIPPED on {face}: {missing}"),
        }
    }
    crate::select_device(Device::Cpu).expect("a processor");
}

fn random_values(stream: &mut impl Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| stream.random_range(-1.0..1.0)).collect()
}

fn assert_close(a: &[f32], b: &[f32], what: &str) {
    let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    let worst = a
        .iter()
        .zip(b)
        .map(|(x, y)| (x - y).abs())
        .fold(0f32, f32::max);
    assert!(
        a.len() == b.len() && worst <= 1e-5 * largest.max(1e-2),
        "{what}: {worst} of {largest}"
    );
}

fn activations(values: Vec<f32>, rows: usize, cols: usize) -> Activations {
    Activations::new(values, rows, cols)
}

/// The same values for the reference.
fn reference_matrix(of: &Activations) -> Matrix {
    dfdx_cpu().tensor_from_vec(of.values().into_owned(), of.shape())
}

fn reference_weight(weight: &Weight) -> Matrix {
    dfdx_cpu().tensor_from_vec(weight.values().into_owned(), (weight.rows(), weight.cols()))
}

/// Runs a tape of dfdx's operations.
fn run_reference_tape(y: Matrix<GradientTape>, upstream: &[f32]) -> Gradients<f32, Cpu> {
    let upstream: Matrix = dfdx_cpu().tensor_from_vec(upstream.to_vec(), *y.shape());
    (y * upstream).sum::<Rank0, _>().backward()
}

/// The gradients of several inputs: the tape is made anew for each.
fn input_gradient(
    make: impl Fn() -> Activations<GradientTape>,
    upstream: &[f32],
    of: &Activations,
) -> Vec<f32> {
    run_backward(make(), upstream, of)
}

/// Runs a tape backward.
fn run_backward(y: Activations<GradientTape>, upstream: &[f32], of: &Activations) -> Vec<f32> {
    let (rows, cols) = y.shape();
    backward(y, activations(upstream.to_vec(), rows, cols), of).into_vec()
}

fn pack_layout(lengths: &[usize], frequencies: &[f32]) -> PackLayout {
    let ends: Vec<usize> = lengths
        .iter()
        .scan(0, |at, n| {
            *at += n;
            Some(*at)
        })
        .collect();
    let sequences: Vec<Range<usize>> = ends
        .iter()
        .zip(lengths)
        .map(|(end, n)| end - n..*end)
        .collect();
    let longest = lengths.iter().max().copied().unwrap_or(0);
    PackLayout {
        spans: sequences.into_iter().map(SequenceSpan::from_rows).collect(),
        rotary: Arc::new(RotaryTables::new(frequencies, longest)),
    }
}

#[test]
fn linear_and_norm_match_the_reference() {
    on_each_device(|| {
        let mut stream = Seed::from_u64(1).rng();
        for n in [1, 3, 7, 16, 70] {
            let x = activations(random_values(&mut stream, n * 24), n, 24);
            let w = Weight::new(random_values(&mut stream, 10 * 24), 10, 24);
            let norm = Weight::new(random_values(&mut stream, 24), 1, 24);
            let upstream = random_values(&mut stream, n * 10);
            let (slot_w, slot_n) = (
                GradientRequest::for_gradient(),
                GradientRequest::for_gradient(),
            );
            let fused = linear(
                rms_norm(x.with_gradient_tape(), &norm, 1e-5, Some(&slot_n)),
                &w,
                Some(&slot_w),
            );
            let (x_other, w_other, n_other) = (
                reference_matrix(&x),
                reference_weight(&w),
                reference_weight(&norm),
            );
            let plain = reference::linear(
                reference::rms_norm(x_other.leaky_trace(), &n_other, 1e-5),
                &w_other,
            );
            assert_close(&fused.values(), &plain.as_vec(), "values");
            let dx = run_backward(fused, &upstream, &x);
            let other = run_reference_tape(plain, &upstream);
            assert_close(&dx, &other.get(&x_other).as_vec(), "x");
            assert_close(
                &slot_w.take_gradient().expect("asked for"),
                &other.get(&w_other).as_vec(),
                "weight",
            );
            assert_close(
                &slot_n.take_gradient().expect("asked for"),
                &other.get(&n_other).as_vec(),
                "norm",
            );
        }
    });
}

#[test]
fn layer_norm_matches_the_reference() {
    on_each_device(|| {
        let mut stream = Seed::from_u64(21).rng();
        for (n, width) in [(1, 24), (7, 33), (70, 24), (9, 1024)] {
            let x = activations(random_values(&mut stream, n * width), n, width);
            let weight = Weight::new(random_values(&mut stream, width), 1, width);
            let bias = Weight::new(random_values(&mut stream, width), 1, width);
            let upstream = random_values(&mut stream, n * width);
            let request = GradientRequest::for_gradient();
            let tape = x.with_gradient_tape();
            let fused = layer_norm(tape, &weight, Some(&bias), 1e-5, Some(&request));
            let (x_other, weight_other) = (reference_matrix(&x), reference_weight(&weight));
            let plain = reference::layer_norm(
                x_other.leaky_trace(),
                &weight_other,
                &reference_weight(&bias),
                1e-5,
            );
            assert_close(&fused.values(), &plain.as_vec(), "values");
            let dx = run_backward(fused, &upstream, &x);
            let other = run_reference_tape(plain, &upstream);
            assert_close(&dx, &other.get(&x_other).as_vec(), "x");
            assert_close(
                &request.take_gradient().expect("the gradient was requested"),
                &other.get(&weight_other).as_vec(),
                "weight",
            );
            // without a bias it is as with a bias of zeros
            let zeros = Weight::new(vec![0.0; width], 1, width);
            let [without, with_zeros] =
                [None, Some(&zeros)].map(|bias| layer_norm(x.clone(), &weight, bias, 1e-5, None));
            assert_eq!(without, with_zeros);
        }
    });
}

/// The squares of the samples' gradients of a norm's weight, from the gradients of the samples alone.
#[test]
fn norm_weight_squares_follow_from_the_gradients_of_samples() {
    type Norm =
        fn(Activations<GradientTape>, &Weight, &GradientRequest) -> Activations<GradientTape>;
    let norms: [Norm; 2] = [
        |x, weight, request| rms_norm(x, weight, 1e-5, Some(request)),
        |x, weight, request| layer_norm(x, weight, None, 1e-5, Some(request)),
    ];
    on_each_device(|| {
        let mut stream = Seed::from_u64(22).rng();
        let (n, width) = (12, 20);
        let x = activations(random_values(&mut stream, n * width), n, width);
        let weight = Weight::new(random_values(&mut stream, width), 1, width);
        let upstream = random_values(&mut stream, n * width);
        let samples = [(0..5, 1.5), (5..n, 0.5)].map(|(positions, gradient_scale)| SampleSpan {
            positions,
            gradient_scale,
        });
        for norm in norms {
            let (mut sum, mut squares) = (vec![0.0; width], vec![0.0; width]);
            for sample in &samples {
                let elements = sample.positions.start * width..sample.positions.end * width;
                let rows = x.values()[elements.clone()].to_vec();
                let own = activations(rows, sample.positions.len(), width);
                let request = GradientRequest::for_gradient();
                let y = norm(own.with_gradient_tape(), &weight, &request);
                run_backward(y, &upstream[elements], &own);
                let gradient = request.take_gradient().expect("the gradient was requested");
                for ((sum, square), g) in sum.iter_mut().zip(&mut squares).zip(gradient) {
                    *sum += g;
                    *square += (g * sample.gradient_scale) * (g * sample.gradient_scale);
                }
            }
            let request = GradientRequest::new(GradientQuery::GradientAndSampleSquares(
                samples.clone().into(),
            ));
            run_backward(
                norm(x.with_gradient_tape(), &weight, &request),
                &upstream,
                &x,
            );
            let Some(GradientResult::Gradient {
                gradient,
                squares: Some(all_squares),
            }) = request.take_result()
            else {
                panic!("a gradient and squares")
            };
            assert_close(&gradient.into_vec(), &sum, "gradient");
            assert_close(&all_squares.into_vec(), &squares, "squares");
        }
    });
}

/// Values against dfdx's `accurate_gelu`. Its derivative has a wrong factor, so the gradient is compared
/// with central differences of its values in f64.
#[test]
fn gelu_matches_the_reference() {
    on_each_device(|| {
        let mut stream = Seed::from_u64(23).rng();
        let (n, width) = (33, 20);
        let values: Vec<f32> = random_values(&mut stream, n * width)
            .into_iter()
            .map(|x| x * 6.0)
            .collect();
        let x = activations(values, n, width);
        let y = gelu(x.with_gradient_tape());
        let plain = reference_matrix(&x).accurate_gelu();
        assert_close(&y.values(), &plain.as_vec(), "values");
        let upstream = random_values(&mut stream, n * width);
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
        let mut stream = Seed::from_u64(4).rng();
        for (n, drops) in [(5, false), (40, true)] {
            let x = activations(random_values(&mut stream, n * 24), n, 24);
            let make = |rows: usize, cols: usize, stream: &mut _| {
                Weight::new(random_values(stream, rows * cols), rows, cols)
            };
            let (w, a, b) = (
                make(10, 24, &mut stream),
                make(3, 24, &mut stream),
                make(10, 3, &mut stream),
            );
            let mask: Option<Vec<f32>> = drops.then(|| {
                (0..n * 24)
                    .map(|i| if i % 3 == 0 { 0.0 } else { 1.5 })
                    .collect()
            });
            let upstream = random_values(&mut stream, n * 10);
            let (slot_a, slot_b) = (
                GradientRequest::for_gradient(),
                GradientRequest::for_gradient(),
            );
            let beside = AdapterInput {
                a: &a,
                b: &b,
                scale: 2.0,
                dropout_mask: mask
                    .clone()
                    .map(|mask| -> DropoutMaskFn { Arc::new(move || mask.clone()) }),
                gradient_requests: Some((&slot_a, &slot_b)),
            };
            let fused = linear_with_adapter(x.with_gradient_tape(), &w, beside);
            let (x_other, a_other, b_other) = (
                reference_matrix(&x),
                reference_weight(&a),
                reference_weight(&b),
            );
            let mask = mask.map(|mask| dfdx_cpu().tensor_from_vec(mask, (n, 24)));
            let plain = reference::linear_with_adapter(
                x_other.leaky_trace(),
                &reference_weight(&w),
                (&a_other, &b_other),
                2.0,
                mask,
            );
            assert_close(&fused.values(), &plain.as_vec(), "values");
            let dx = run_backward(fused, &upstream, &x);
            let other = run_reference_tape(plain, &upstream);
            assert_close(&dx, &other.get(&x_other).as_vec(), "x");
            assert_close(
                &slot_a.take_gradient().expect("asked for"),
                &other.get(&a_other).as_vec(),
                "A",
            );
            assert_close(
                &slot_b.take_gradient().expect("asked for"),
                &other.get(&b_other).as_vec(),
                "B",
            );
        }
    });
}

#[test]
fn attention_matches_the_reference_for_packed_sequences() {
    on_each_device(|| {
        let mut stream = Seed::from_u64(2).rng();
        // frequencies for four, one, or none of the four pairs of a head's channels
        let (all, first) = (&[1.0, 0.3, 0.1, 0.01][..], &[0.3][..]);
        for (lengths, queries, keys, frequencies) in [
            (&[1][..], 2, 2, all),
            (&[9], 4, 4, all),
            (&[13], 6, 2, all),
            (&[150], 2, 1, all),
            (&[9, 1, 70, 128, 3], 4, 2, all),
            (&[1100, 40, 600], 2, 1, all),
            (&[9, 1, 70], 4, 2, first),
            (&[600, 13], 2, 2, first),
        ] {
            let (dim, n, heads) = (
                8,
                lengths.iter().sum::<usize>(),
                AttentionHeads {
                    query_heads: queries,
                    key_value_heads: keys,
                    head_dim: 8,
                },
            );
            let make = |count: usize, stream: &mut _| {
                activations(random_values(stream, n * count * dim), n, count * dim)
            };
            let (q, k, v) = (
                make(queries, &mut stream),
                make(keys, &mut stream),
                make(keys, &mut stream),
            );
            let upstream = random_values(&mut stream, n * queries * dim);
            let packed = pack_layout(lengths, frequencies);
            let make = || {
                attention(
                    q.with_gradient_tape(),
                    k.with_empty_tape(),
                    v.with_empty_tape(),
                    heads,
                    &packed,
                    None,
                )
            };
            let (out, dq, dk, dv) = (
                make(),
                input_gradient(make, &upstream, &q),
                input_gradient(make, &upstream, &k),
                input_gradient(make, &upstream, &v),
            );
            for at in packed.spans.iter().map(|span| &span.rows) {
                // each sequence for itself on the other face
                let part = |x: &[f32], width: usize| x[at.start * width..at.end * width].to_vec();
                let other = |x: &Activations| -> Matrix {
                    dfdx_cpu().tensor_from_vec(part(&x.values(), x.width()), (at.len(), x.width()))
                };
                let (q, k, v) = (other(&q), other(&k), other(&v));
                let plain = reference::attention(
                    q.leaky_trace(),
                    k.retaped(),
                    v.retaped(),
                    heads,
                    &packed.rotary,
                );
                assert_close(
                    &part(&out.values(), queries * dim),
                    &plain.as_vec(),
                    "attention",
                );
                let gradients = run_reference_tape(plain, &part(&upstream, queries * dim));
                assert_close(&part(&dq, queries * dim), &gradients.get(&q).as_vec(), "q");
                assert_close(&part(&dk, keys * dim), &gradients.get(&k).as_vec(), "k");
                assert_close(&part(&dv, keys * dim), &gradients.get(&v).as_vec(), "v");
            }
        }
    });
}

#[test]
fn swiglu_add_and_bias_match_the_reference() {
    on_each_device(|| {
        let mut stream = Seed::from_u64(5).rng();
        let (n, width) = (33, 20);
        let (gate, up) = (
            activations(random_values(&mut stream, n * width), n, width),
            activations(random_values(&mut stream, n * width), n, width),
        );
        let upstream = random_values(&mut stream, n * width);
        let bias = Weight::new(random_values(&mut stream, width), 1, width);
        let make = || {
            add_bias(
                add(
                    swiglu(gate.with_gradient_tape(), up.with_empty_tape()),
                    gate.with_empty_tape(),
                ),
                &bias,
            )
        };
        let (gate_other, up_other) = (reference_matrix(&gate), reference_matrix(&up));
        let row = reference_weight(&bias).reshape_like(&(width,));
        let plain = reference::swiglu(gate_other.leaky_trace(), up_other.retaped())
            + gate_other.retaped::<GradientTape>();
        let plain = plain
            + row
                .broadcast_like::<_, Axis<0>>(&(n, width))
                .retaped::<GradientTape>();
        assert_close(&make().values(), &plain.as_vec(), "values");
        let other = run_reference_tape(plain, &upstream);
        assert_close(
            &input_gradient(make, &upstream, &gate),
            &other.get(&gate_other).as_vec(),
            "gate",
        );
        assert_close(
            &input_gradient(make, &upstream, &up),
            &other.get(&up_other).as_vec(),
            "up",
        );
    });
}

#[test]
fn cross_entropy_and_scores_match_the_reference() {
    on_each_device(|| {
        let mut stream = Seed::from_u64(6).rng();
        let (n, width, vocabulary) = (90, 12, 50);
        let x = activations(random_values(&mut stream, n * width), n, width);
        let head = Weight::new(
            random_values(&mut stream, vocabulary * width),
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
        let slot = GradientRequest::for_gradient();
        let LossAndGradient { nll, gradient } =
            cross_entropy(&x, &head, &targets, 0.5, Some(&slot));
        let gradient = gradient.into_vec();
        let (x_other, head_other) = (reference_matrix(&x), reference_weight(&head));
        let logits = reference::linear(x_other.leaky_trace(), &head_other);
        let (plain_nll, plain) =
            reference::cross_entropy(&logits.as_vec(), vocabulary, &targets, 0.5);
        let scores = reference::token_scores(&logits.as_vec(), vocabulary, &targets);
        let gradients = run_reference_tape(logits, &plain);
        assert!(
            (nll - plain_nll).abs() <= 1e-6 * plain_nll,
            "{nll} {plain_nll}"
        );
        assert_close(&gradient, &gradients.get(&x_other).as_vec(), "x");
        assert_close(
            &slot.take_gradient().expect("asked for"),
            &gradients.get(&head_other).as_vec(),
            "head",
        );
        for (ours, other) in token_scores(&x, &head, &targets).iter().zip(&scores) {
            assert!(
                (ours.log_probability - other.log_probability).abs() < 1e-5
                    && ours.is_greedy == other.is_greedy
            );
        }
    });
}

/// |w·g| + s
struct TestScore;

impl ElementScore for TestScore {
    fn score_on_cpu(&self, w: &[f32], g: &[f32], squares: &[f32], out: &mut [f64]) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = f64::from(w[i] * g[i]).abs() + f64::from(squares.get(i).copied().unwrap_or(0.0));
        }
    }

    fn score_on_gpu(&self, w: GpuMatrix, g: GpuMatrix, squares: Option<GpuMatrix>) -> GpuMatrix {
        let products = (w * g).abs();
        match squares {
            Some(squares) => products + squares,
            None => products,
        }
    }
}

/// A slot's answers to every question, from one pack of two samples.
#[test]
fn every_query_result_follows_from_the_full_gradient() {
    on_each_device(|| {
        let mut stream = Seed::from_u64(7).rng();
        let (n, outputs, inputs) = (40, 70, 24);
        let x = activations(random_values(&mut stream, n * inputs), n, inputs);
        let w = Weight::new(
            random_values(&mut stream, outputs * inputs),
            outputs,
            inputs,
        );
        let upstream = random_values(&mut stream, n * outputs);
        let answer = |ask: GradientQuery| {
            let slot = GradientRequest::new(ask);
            run_backward(
                linear(x.with_gradient_tape(), &w, Some(&slot)),
                &upstream,
                &x,
            );
            slot.take_result().expect("asked for")
        };
        let GradientResult::Gradient { gradient, .. } = answer(GradientQuery::Gradient) else {
            panic!("a gradient")
        };
        let gradient = gradient.into_vec();
        let samples: Arc<[SampleSpan]> = [
            SampleSpan {
                positions: 0..15,
                gradient_scale: 1.5,
            },
            SampleSpan {
                positions: 15..n,
                gradient_scale: 0.5,
            },
        ]
        .into();
        let GradientResult::Gradient {
            gradient: again,
            squares,
        } = answer(GradientQuery::GradientAndSampleSquares(samples.clone()))
        else {
            panic!("a gradient")
        };
        let (again, squares) = (again.into_vec(), squares.expect("asked for").into_vec());
        assert_close(&again, &gradient, "sum of samples");
        let of = |positions: Range<usize>, share: f32| {
            let part = activations(
                x.values()[positions.start * inputs..positions.end * inputs].to_vec(),
                positions.len(),
                inputs,
            );
            let slot = GradientRequest::for_gradient();
            let upstream = upstream[positions.start * outputs..positions.end * outputs].to_vec();
            run_backward(
                linear(part.with_gradient_tape(), &w, Some(&slot)),
                &upstream,
                &part,
            );
            slot.take_gradient()
                .expect("asked for")
                .into_iter()
                .map(|g| (g * share) * (g * share))
                .collect::<Vec<_>>()
        };
        let sum: Vec<f32> = of(0..15, 1.5)
            .iter()
            .zip(of(15..n, 0.5))
            .map(|(a, b)| a + b)
            .collect();
        assert_close(&squares, &sum, "squares");

        let sides = SumAxes {
            rows: true,
            cols: true,
        };
        let worth: Arc<dyn ElementScore> = Arc::new(TestScore);
        let same = |told: GradientResult, expected: AxisSums| {
            let GradientResult::Sums(told) = told else {
                panic!("sums")
            };
            for (a, b) in [(told.rows, expected.rows), (told.cols, expected.cols)] {
                let largest = b.iter().fold(0f64, |m, x| m.max(x.abs()));
                assert!(
                    a.len() == b.len()
                        && a.iter()
                            .zip(&b)
                            .all(|(a, b)| (a - b).abs() <= 1e-5 * largest)
                );
            }
        };
        let put = |values: &[f32]| Gradient::new(values.to_vec(), outputs, inputs);
        let from_whole = |squares: Option<&[f32]>, worth: &dyn ElementScore| {
            axis_sums(&w, &put(&gradient), squares.map(put).as_ref(), sides, worth)
        };
        same(
            answer(GradientQuery::ElementScoreSums {
                samples: None,
                axes: sides,
                score: worth.clone(),
            }),
            from_whole(None, worth.as_ref()),
        );
        same(
            answer(GradientQuery::ElementScoreSums {
                samples: Some(samples),
                axes: sides,
                score: worth.clone(),
            }),
            from_whole(Some(&squares), worth.as_ref()),
        );
        same(
            answer(GradientQuery::WeightTimesGradientSums(sides)),
            from_whole(None, &super::gradient_reduction::WeightTimesGradient),
        );
    });
}

/// Every input's gradient against central differences of a sum of the outputs.
#[test]
fn operations_agree_with_finite_differences() {
    on_each_device(|| {
        let mut stream = Seed::from_u64(8).rng();
        let (n, heads) = (
            11,
            AttentionHeads {
                query_heads: 2,
                key_value_heads: 1,
                head_dim: 4,
            },
        );
        let packed = pack_layout(&[7, 4], &[1.0, 0.2]);
        let x = activations(random_values(&mut stream, n * 8), n, 8);
        let norm = Weight::new(random_values(&mut stream, 8), 1, 8);
        let make =
            |rows: usize, stream: &mut _| Weight::new(random_values(stream, rows * 8), rows, 8);
        let (wq, wk, wv, gate, up) = (
            make(8, &mut stream),
            make(4, &mut stream),
            make(4, &mut stream),
            make(8, &mut stream),
            make(8, &mut stream),
        );
        let upstream = random_values(&mut stream, n * 8);
        let block = |x: &Activations| {
            let y = rms_norm(x.with_gradient_tape(), &norm, 1e-5, None);
            let q = linear(y.with_empty_tape(), &wq, None);
            let o = attention(
                q,
                linear(y.with_empty_tape(), &wk, None),
                linear(y.with_empty_tape(), &wv, None),
                heads,
                &packed,
                None,
            );
            let (o_again, y) = (o.with_empty_tape(), add(o, y));
            let mlp = swiglu(linear(y, &gate, None), linear(o_again, &up, None));
            let mlp = gelu(layer_norm(mlp, &norm, Some(&norm), 1e-2, None));
            add(mlp, x.with_empty_tape())
        };
        let analytic = run_backward(block(&x), &upstream, &x);
        let value = |at: usize, step: f32| {
            let mut moved = x.values().into_owned();
            moved[at] += step;
            let y = block(&activations(moved, n, 8));
            y.values()
                .iter()
                .zip(&upstream)
                .map(|(y, u)| f64::from(*y) * f64::from(*u))
                .sum::<f64>()
        };
        let largest = analytic.iter().fold(0f32, |m, g| m.max(g.abs()));
        for (at, analytic) in analytic.into_iter().enumerate() {
            let numeric = ((value(at, 5e-3) - value(at, -5e-3)) / 1e-2) as f32;
            assert!(
                (numeric - analytic).abs() <= 2e-3 * largest,
                "{at}: {numeric}, not {analytic}"
            );
        }
    });
}
