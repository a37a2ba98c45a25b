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
    Answer, Ask, Beside, Heads, Layout, Mask, Past, Rotary, SampleAt, Scored, SideSums, Sides, Slot, Span, Target, Worth,
    adapted, add, add_bias, attention, backward, cross_entropy, linear, rms_norm, side_sums, swiglu, token_scores,
};
use crate::random::Seed;
use crate::tensor::gpu::Matrix as GpuMatrix;
use crate::tensor::{self, Device, Gradient, Hidden, Recording, Weight, cpu::device};
use reference::Matrix;

/// Runs a test on either face.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn on_each_face(test: impl Fn()) {
    let other = if cfg!(feature = "cuda") { Device::Cuda(0) } else { Device::CpuAsGpu };
    for face in [Device::Cpu, other] {
        match tensor::select(face) {
            Ok(()) => test(),
            Err(missing) => eprintln!("SKIPPED on {face}: {missing}"),
        }
    }
    tensor::select(Device::Cpu).expect("a processor");
}

fn numbers(stream: &mut impl Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| stream.random_range(-1.0..1.0)).collect()
}

fn close(a: &[f32], b: &[f32], what: &str) {
    let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    let worst = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max);
    assert!(a.len() == b.len() && worst <= 1e-5 * largest.max(1e-2), "{what}: {worst} of {largest}");
}

fn hidden(values: Vec<f32>, rows: usize, cols: usize) -> Hidden {
    Hidden::new(values, rows, cols)
}

/// The same values for the reference.
fn matrix(of: &Hidden) -> Matrix {
    device().tensor_from_vec(of.values().into_owned(), of.shape())
}

fn tensor(weight: &Weight) -> Matrix {
    device().tensor_from_vec(weight.values().into_owned(), (weight.rows(), weight.cols()))
}

/// Runs a tape of dfdx's operations.
fn run(y: Matrix<Recording>, upstream: &[f32]) -> Gradients<f32, Cpu> {
    let upstream: Matrix = device().tensor_from_vec(upstream.to_vec(), *y.shape());
    (y * upstream).sum::<Rank0, _>().backward()
}

/// The gradients of several inputs: the tape is made anew for each.
fn gradient(make: impl Fn() -> Hidden<Recording>, upstream: &[f32], of: &Hidden) -> Vec<f32> {
    back(make(), upstream, of)
}

/// Runs a tape backward.
fn back(y: Hidden<Recording>, upstream: &[f32], of: &Hidden) -> Vec<f32> {
    let (rows, cols) = y.shape();
    backward(y, hidden(upstream.to_vec(), rows, cols), of).into_vec()
}

fn layout(lengths: &[usize], frequencies: &[f32]) -> Layout {
    let ends: Vec<usize> = lengths
        .iter()
        .scan(0, |at, n| {
            *at += n;
            Some(*at)
        })
        .collect();
    let sequences: Vec<Range<usize>> = ends.iter().zip(lengths).map(|(end, n)| end - n..*end).collect();
    let longest = lengths.iter().max().copied().unwrap_or(0);
    Layout { spans: sequences.into_iter().map(Span::of).collect(), rotary: Arc::new(Rotary::new(frequencies, longest)) }
}

#[test]
fn linear_and_norm_are_the_same_on_both_faces() {
    on_each_face(|| {
        let mut stream = Seed::root(1).stream();
        for n in [1, 3, 7, 16, 70] {
            let x = hidden(numbers(&mut stream, n * 24), n, 24);
            let w = Weight::new(numbers(&mut stream, 10 * 24), 10, 24);
            let norm = Weight::new(numbers(&mut stream, 24), 1, 24);
            let upstream = numbers(&mut stream, n * 10);
            let (slot_w, slot_n) = (Slot::gradient(), Slot::gradient());
            let fused = linear(rms_norm(x.recorded(), &norm, 1e-5, Some(&slot_n)), &w, Some(&slot_w));
            let (x_other, w_other, n_other) = (matrix(&x), tensor(&w), tensor(&norm));
            let plain = reference::linear(reference::rms_norm(x_other.leaky_trace(), &n_other, 1e-5), &w_other);
            close(&fused.values(), &plain.as_vec(), "values");
            let dx = back(fused, &upstream, &x);
            let other = run(plain, &upstream);
            close(&dx, &other.get(&x_other).as_vec(), "x");
            close(&slot_w.take_gradient().expect("asked for"), &other.get(&w_other).as_vec(), "weight");
            close(&slot_n.take_gradient().expect("asked for"), &other.get(&n_other).as_vec(), "norm");
        }
    });
}

#[test]
fn an_adapter_is_the_same_on_both_faces() {
    on_each_face(|| {
        let mut stream = Seed::root(4).stream();
        for (n, drops) in [(5, false), (40, true)] {
            let x = hidden(numbers(&mut stream, n * 24), n, 24);
            let make = |rows: usize, cols: usize, stream: &mut _| Weight::new(numbers(stream, rows * cols), rows, cols);
            let (w, a, b) = (make(10, 24, &mut stream), make(3, 24, &mut stream), make(10, 3, &mut stream));
            let mask: Option<Vec<f32>> = drops.then(|| (0..n * 24).map(|i| if i % 3 == 0 { 0.0 } else { 1.5 }).collect());
            let upstream = numbers(&mut stream, n * 10);
            let (slot_a, slot_b) = (Slot::gradient(), Slot::gradient());
            let beside = Beside {
                a: &a,
                b: &b,
                scale: 2.0,
                mask: mask.clone().map(|mask| -> Mask { Arc::new(move || mask.clone()) }),
                slots: Some((&slot_a, &slot_b)),
            };
            let fused = adapted(x.recorded(), &w, beside);
            let (x_other, a_other, b_other) = (matrix(&x), tensor(&a), tensor(&b));
            let mask = mask.map(|mask| device().tensor_from_vec(mask, (n, 24)));
            let plain = reference::adapted(x_other.leaky_trace(), &tensor(&w), (&a_other, &b_other), 2.0, mask);
            close(&fused.values(), &plain.as_vec(), "values");
            let dx = back(fused, &upstream, &x);
            let other = run(plain, &upstream);
            close(&dx, &other.get(&x_other).as_vec(), "x");
            close(&slot_a.take_gradient().expect("asked for"), &other.get(&a_other).as_vec(), "A");
            close(&slot_b.take_gradient().expect("asked for"), &other.get(&b_other).as_vec(), "B");
        }
    });
}

#[test]
fn attention_is_the_same_on_both_faces_and_for_packed_sequences() {
    on_each_face(|| {
        let mut stream = Seed::root(2).stream();
        let frequencies = [1.0, 0.3, 0.1, 0.01];
        for (lengths, queries, keys) in
            [(&[1][..], 2, 2), (&[9], 4, 4), (&[13], 6, 2), (&[150], 2, 1), (&[9, 1, 70, 128, 3], 4, 2), (&[1100, 40, 600], 2, 1)]
        {
            let (dim, n, heads) = (8, lengths.iter().sum::<usize>(), Heads { queries, keys, dim: 8 });
            let make = |count: usize, stream: &mut _| hidden(numbers(stream, n * count * dim), n, count * dim);
            let (q, k, v) = (make(queries, &mut stream), make(keys, &mut stream), make(keys, &mut stream));
            let upstream = numbers(&mut stream, n * queries * dim);
            let packed = layout(lengths, &frequencies);
            let make = || attention(q.recorded(), k.retaped(), v.retaped(), heads, &packed, None);
            let (out, dq, dk, dv) =
                (make(), gradient(make, &upstream, &q), gradient(make, &upstream, &k), gradient(make, &upstream, &v));
            for at in packed.spans.iter().map(|span| &span.rows) {
                // each sequence for itself on the other face
                let part = |x: &[f32], width: usize| x[at.start * width..at.end * width].to_vec();
                let other =
                    |x: &Hidden| -> Matrix { device().tensor_from_vec(part(&x.values(), x.width()), (at.len(), x.width())) };
                let (q, k, v) = (other(&q), other(&k), other(&v));
                let plain = reference::attention(q.leaky_trace(), k.retaped(), v.retaped(), heads, &packed.rotary);
                close(&part(&out.values(), queries * dim), &plain.as_vec(), "attention");
                let gradients = run(plain, &part(&upstream, queries * dim));
                close(&part(&dq, queries * dim), &gradients.get(&q).as_vec(), "q");
                close(&part(&dk, keys * dim), &gradients.get(&k).as_vec(), "k");
                close(&part(&dv, keys * dim), &gradients.get(&v).as_vec(), "v");
            }
        }
    });
}

#[test]
fn swiglu_sums_and_biases_are_the_same_on_both_faces() {
    on_each_face(|| {
        let mut stream = Seed::root(5).stream();
        let (n, width) = (33, 20);
        let (gate, up) = (hidden(numbers(&mut stream, n * width), n, width), hidden(numbers(&mut stream, n * width), n, width));
        let upstream = numbers(&mut stream, n * width);
        let bias = Weight::new(numbers(&mut stream, width), 1, width);
        let make = || add_bias(add(swiglu(gate.recorded(), up.retaped()), gate.retaped()), &bias);
        let (gate_other, up_other) = (matrix(&gate), matrix(&up));
        let row = tensor(&bias).reshape_like(&(width,));
        let plain = reference::swiglu(gate_other.leaky_trace(), up_other.retaped()) + gate_other.retaped::<Recording>();
        let plain = plain + row.broadcast_like::<_, Axis<0>>(&(n, width)).retaped::<Recording>();
        close(&make().values(), &plain.as_vec(), "values");
        let other = run(plain, &upstream);
        close(&gradient(make, &upstream, &gate), &other.get(&gate_other).as_vec(), "gate");
        close(&gradient(make, &upstream, &up), &other.get(&up_other).as_vec(), "up");
    });
}

#[test]
fn the_loss_is_the_same_on_both_faces() {
    on_each_face(|| {
        let mut stream = Seed::root(6).stream();
        let (n, width, vocabulary) = (90, 12, 50);
        let x = hidden(numbers(&mut stream, n * width), n, width);
        let head = Weight::new(numbers(&mut stream, vocabulary * width), vocabulary, width);
        let targets: Vec<Target> =
            (0..n).filter(|i| i % 4 != 3).map(|i| Target { position: i, id: (i * 7 % vocabulary) as u32 }).collect();
        let slot = Slot::gradient();
        let Scored { nll, gradient } = cross_entropy(&x, &head, &targets, 0.5, Some(&slot));
        let gradient = gradient.into_vec();
        let (x_other, head_other) = (matrix(&x), tensor(&head));
        let logits = reference::linear(x_other.leaky_trace(), &head_other);
        let (plain_nll, plain) = reference::cross_entropy(&logits.as_vec(), vocabulary, &targets, 0.5);
        let scores = reference::token_scores(&logits.as_vec(), vocabulary, &targets);
        let gradients = run(logits, &plain);
        assert!((nll - plain_nll).abs() <= 1e-6 * plain_nll, "{nll} {plain_nll}");
        close(&gradient, &gradients.get(&x_other).as_vec(), "x");
        close(&slot.take_gradient().expect("asked for"), &gradients.get(&head_other).as_vec(), "head");
        for (ours, other) in token_scores(&x, &head, &targets).iter().zip(&scores) {
            assert!((ours.log_probability - other.log_probability).abs() < 1e-5 && ours.greedy == other.greedy);
        }
    });
}

/// |w·g| + s
struct Sample;

impl Worth for Sample {
    fn on_cpu(&self, w: &[f32], g: &[f32], squares: &[f32], out: &mut [f64]) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = f64::from(w[i] * g[i]).abs() + f64::from(squares.get(i).copied().unwrap_or(0.0));
        }
    }

    fn on_gpu(&self, w: GpuMatrix, g: GpuMatrix, squares: Option<GpuMatrix>) -> GpuMatrix {
        let products = (w * g).abs();
        match squares {
            Some(squares) => products + squares,
            None => products,
        }
    }
}

/// A slot's answers to every question, from one pack of two samples.
#[test]
fn what_a_slot_is_told_follows_from_the_gradient() {
    on_each_face(|| {
        let mut stream = Seed::root(7).stream();
        let (n, outputs, inputs) = (40, 70, 24);
        let x = hidden(numbers(&mut stream, n * inputs), n, inputs);
        let w = Weight::new(numbers(&mut stream, outputs * inputs), outputs, inputs);
        let upstream = numbers(&mut stream, n * outputs);
        let answer = |ask: Ask| {
            let slot = Slot::new(ask);
            back(linear(x.recorded(), &w, Some(&slot)), &upstream, &x);
            slot.take().expect("asked for")
        };
        let Answer::Gradient { gradient, .. } = answer(Ask::Gradient) else { panic!("a gradient") };
        let gradient = gradient.into_vec();
        let samples: Arc<[SampleAt]> =
            [SampleAt { positions: 0..15, share: 1.5 }, SampleAt { positions: 15..n, share: 0.5 }].into();
        let Answer::Gradient { gradient: again, squares } = answer(Ask::Squares(samples.clone())) else { panic!("a gradient") };
        let (again, squares) = (again.into_vec(), squares.expect("asked for").into_vec());
        close(&again, &gradient, "sum of samples");
        let of = |positions: Range<usize>, share: f32| {
            let part = hidden(x.values()[positions.start * inputs..positions.end * inputs].to_vec(), positions.len(), inputs);
            let slot = Slot::gradient();
            let upstream = upstream[positions.start * outputs..positions.end * outputs].to_vec();
            back(linear(part.recorded(), &w, Some(&slot)), &upstream, &part);
            slot.take_gradient().expect("asked for").into_iter().map(|g| (g * share) * (g * share)).collect::<Vec<_>>()
        };
        let sum: Vec<f32> = of(0..15, 1.5).iter().zip(of(15..n, 0.5)).map(|(a, b)| a + b).collect();
        close(&squares, &sum, "squares");

        let sides = Sides { rows: true, cols: true };
        let worth: Arc<dyn Worth> = Arc::new(Sample);
        let same = |told: Answer, expected: SideSums| {
            let Answer::Sums(told) = told else { panic!("sums") };
            for (a, b) in [(told.rows, expected.rows), (told.cols, expected.cols)] {
                let largest = b.iter().fold(0f64, |m, x| m.max(x.abs()));
                assert!(a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-5 * largest));
            }
        };
        let put = |values: &[f32]| Gradient::new(values.to_vec(), outputs, inputs);
        let from_whole =
            |squares: Option<&[f32]>, worth: &dyn Worth| side_sums(&w, &put(&gradient), squares.map(put).as_ref(), sides, worth);
        same(answer(Ask::Elements { samples: None, sides, worth: worth.clone() }), from_whole(None, worth.as_ref()));
        same(
            answer(Ask::Elements { samples: Some(samples), sides, worth: worth.clone() }),
            from_whole(Some(&squares), worth.as_ref()),
        );
        same(answer(Ask::Products(sides)), from_whole(None, &super::slot::Product));
    });
}

/// Every input's gradient against central differences of a sum of the outputs.
#[test]
fn operations_agree_with_finite_differences() {
    on_each_face(|| {
        let mut stream = Seed::root(8).stream();
        let (n, heads) = (11, Heads { queries: 2, keys: 1, dim: 4 });
        let packed = layout(&[7, 4], &[1.0, 0.2]);
        let x = hidden(numbers(&mut stream, n * 8), n, 8);
        let norm = Weight::new(numbers(&mut stream, 8), 1, 8);
        let make = |rows: usize, stream: &mut _| Weight::new(numbers(stream, rows * 8), rows, 8);
        let (wq, wk, wv, gate, up) =
            (make(8, &mut stream), make(4, &mut stream), make(4, &mut stream), make(8, &mut stream), make(8, &mut stream));
        let upstream = numbers(&mut stream, n * 8);
        let block = |x: &Hidden| {
            let y = rms_norm(x.recorded(), &norm, 1e-5, None);
            let q = linear(y.retaped(), &wq, None);
            let o = attention(q, linear(y.retaped(), &wk, None), linear(y.retaped(), &wv, None), heads, &packed, None);
            let (o_again, y) = (o.retaped(), add(o, y));
            let mlp = swiglu(linear(y, &gate, None), linear(o_again, &up, None));
            add(mlp, x.retaped())
        };
        let analytic = back(block(&x), &upstream, &x);
        let value = |at: usize, step: f32| {
            let mut moved = x.values().into_owned();
            moved[at] += step;
            let y = block(&hidden(moved, n, 8));
            y.values().iter().zip(&upstream).map(|(y, u)| f64::from(*y) * f64::from(*u)).sum::<f64>()
        };
        let largest = analytic.iter().fold(0f32, |m, g| m.max(g.abs()));
        for (at, analytic) in analytic.into_iter().enumerate() {
            let numeric = ((value(at, 5e-3) - value(at, -5e-3)) / 1e-2) as f32;
            assert!((numeric - analytic).abs() <= 2e-3 * largest, "{at}: {numeric}, not {analytic}");
        }
    });
}
