//! The two faces against each other, values and gradients, and the fused operations against differences.

use dfdx::prelude::*;
use rand::{Rng, RngExt};

use super::{Heads, Rotary, Slot, composed, cpu};
use crate::random::Seed;
use crate::tensor::{Hidden, Weight, hidden};

fn numbers(stream: &mut impl Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| stream.random_range(-1.0..1.0)).collect()
}

fn close(a: &[f32], b: &[f32], what: &str) {
    let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    let worst = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max);
    assert!(a.len() == b.len() && worst <= 1e-5 * largest.max(1e-3), "{what}: {worst} of {largest}");
}

fn tensor(weight: &Weight) -> Hidden {
    hidden(weight.values().into_owned(), weight.rows(), weight.cols())
}

#[test]
fn linear_and_norm_are_the_same_on_both_faces() {
    let mut stream = Seed::root(1).stream();
    for n in [1, 3, 7, 16] {
        let x = hidden(numbers(&mut stream, n * 24), n, 24);
        let w = Weight::new(numbers(&mut stream, 10 * 24), 10, 24);
        let norm = Weight::new(numbers(&mut stream, 24), 1, 24);
        let upstream = numbers(&mut stream, n * 10);
        let (slot_w, slot_n) = (Slot::default(), Slot::default());
        let fused = cpu::linear(cpu::rms_norm(x.leaky_trace(), &norm, 1e-5, Some(&slot_n)), &w, Some(&slot_w));
        let (tensor_w, tensor_n) = (tensor(&w), tensor(&norm));
        let plain = composed::linear(composed::rms_norm(x.leaky_trace(), &tensor_n, 1e-5), &tensor_w);
        close(&fused.as_vec(), &plain.as_vec(), "values");
        let (f, p) = (cpu::backward(fused, upstream.clone()), cpu::backward(plain, upstream));
        close(&f.get(&x).as_vec(), &p.get(&x).as_vec(), "x");
        close(&slot_w.take().expect("asked for"), &p.get(&tensor_w).as_vec(), "weight");
        close(&slot_n.take().expect("asked for"), &p.get(&tensor_n).as_vec(), "norm");
    }
}

#[test]
fn attention_and_mlp_are_the_same_on_both_faces() {
    let mut stream = Seed::root(2).stream();
    for (n, queries, keys) in [(1, 2, 2), (9, 4, 4), (13, 6, 2)] {
        let (dim, heads) = (8, Heads { queries, keys, dim: 8 });
        let rotary = Rotary::new(&[1.0, 0.3, 0.1, 0.01], 16);
        let make = |count: usize, stream: &mut _| hidden(numbers(stream, n * count * dim), n, count * dim);
        let (q, k, v) = (make(queries, &mut stream), make(keys, &mut stream), make(keys, &mut stream));
        let upstream = numbers(&mut stream, n * queries * dim);
        let fused = super::attention(q.leaky_trace(), k.retaped(), v.retaped(), heads, &rotary);
        let plain = composed::attention(q.leaky_trace(), k.retaped(), v.retaped(), heads, &rotary);
        close(&fused.as_vec(), &plain.as_vec(), "attention");
        let (f, p) = (cpu::backward(fused, upstream.clone()), cpu::backward(plain, upstream));
        for (x, name) in [(&q, "q"), (&k, "k"), (&v, "v")] {
            close(&f.get(x).as_vec(), &p.get(x).as_vec(), name);
        }
        let (gate, up) = (make(queries, &mut stream), make(queries, &mut stream));
        let upstream = numbers(&mut stream, n * queries * dim);
        let (fused, plain) = (cpu::swiglu(gate.leaky_trace(), up.retaped()), composed::swiglu(gate.leaky_trace(), up.retaped()));
        close(&fused.as_vec(), &plain.as_vec(), "swiglu");
        let (f, p) = (cpu::backward(fused, upstream.clone()), cpu::backward(plain, upstream));
        close(&f.get(&gate).as_vec(), &p.get(&gate).as_vec(), "gate");
        close(&f.get(&up).as_vec(), &p.get(&up).as_vec(), "up");
    }
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    let mut stream = Seed::root(3).stream();
    let w = Weight::new(numbers(&mut stream, 33 * 40), 33, 40);
    let all = numbers(&mut stream, 20 * 40);
    let together = cpu::linear(hidden(all.clone(), 20, 40), &w, None).as_vec();
    for row in 0..20 {
        let alone = cpu::linear(hidden(all[row * 40..(row + 1) * 40].to_vec(), 1, 40), &w, None).as_vec();
        assert_eq!(alone, together[row * 33..(row + 1) * 33]);
    }
}
