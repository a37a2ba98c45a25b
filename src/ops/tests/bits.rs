//! Neither threads nor neighbours nor the place of what was read before change a bit.

use std::ops::Range;
use std::sync::Arc;

use super::*;
use crate::random::Seed;

/// Rows of (positions, width).
fn rows(x: &Hidden, at: impl IntoIterator<Item = usize>) -> Hidden {
    crate::ops::picked(x, at.into_iter().collect())
}

/// To the bit on the CPU, to rounding on a GPU, whose products depend on their shapes.
#[test]
fn attention_has_the_same_bits_alone_behind_a_shared_beginning_and_behind_a_cache() {
    on_each_face(|| {
        let mut stream = Seed::root(3).stream();
        let frequencies = [1.0, 0.3, 0.1, 0.01];
        let heads = Heads { queries: 4, keys: 2, dim: 8 };
        // how much two sequences share, and what each has of its own
        for (shared, one, two) in
            [(1, 1, 1), (2, 5, 3), (7, 3, 90), (62, 3, 70), (64, 1, 2), (130, 600, 4), (510, 3, 4), (700, 9, 30)]
        {
            let n = shared + one + two;
            let make = |count: usize, stream: &mut _| hidden(numbers(stream, n * count * 8), n, count * 8);
            let (q, k, v) = (make(4, &mut stream), make(2, &mut stream), make(2, &mut stream));
            let rotary = Arc::new(Rotary::new(&frequencies, n));
            let spans = [
                Span::of(0..shared + one),
                Span { rows: shared + one..n, before: Vec::from_iter(std::iter::once(0..shared)), past: 0 },
            ];
            let both =
                attention(q.clone(), k.clone(), v.clone(), heads, &Layout { spans: spans.into(), rotary: rotary.clone() }, None);
            for (own, whole) in [(shared..shared + one, 0..shared + one), (shared + one..n, 0..shared)] {
                let places: Vec<usize> = if own.end == n { whole.chain(own.clone()).collect() } else { whole.collect() };
                let part = |x: &Hidden| rows(x, places.iter().copied());
                let layout = |at: Range<usize>| Layout { spans: [Span::of(at)].into(), rotary: rotary.clone() };
                let alone = attention(part(&q), part(&k), part(&v), heads, &layout(0..places.len()), None);
                let same = |a: &[f32], b: &[f32], what: &str| {
                    assert_eq!(a.len(), b.len());
                    if tensor::gpu::is_selected() {
                        return close(a, b, what);
                    }
                    let differs = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits());
                    assert_eq!(differs, None, "{shared} {one} {two}, {what}");
                };
                same(&part(&both).values(), &alone.values(), "shared");
                let mut past = Past::new(1, n, 16);
                let mut cached = Vec::new();
                for step in [0..shared, shared..places.len()] {
                    let part = |x: &Hidden| rows(x, places[step.clone()].iter().copied());
                    let out = attention(part(&q), part(&k), part(&v), heads, &layout(0..step.len()), Some(&mut past));
                    cached.extend(out.into_vec());
                }
                same(&cached, &alone.values(), "cached");
                // and the reference reads behind a cache the same
                let all: Matrix = matrix(&part(&v));
                let turned = |x: Hidden, start| reference::rotated(matrix(&x), 8, &rotary, start);
                let last = rows(&part(&q), shared..places.len());
                let plain = reference::attend(turned(last, shared), turned(part(&k), 0), all, heads);
                close(&alone.values()[shared * 32..], &plain.as_vec(), "behind a cache");
            }
        }
    });
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    let mut stream = Seed::root(3).stream();
    for (n, outputs, inputs) in
        [(20, 33, 40), (300, 70, 24), (100, 40, 600), (70, 64, 1100), (200, 130, 700), (60, 9, 24), (50, 300, 48), (40, 700, 900)]
    {
        let w = Weight::new(numbers(&mut stream, outputs * inputs), outputs, inputs);
        let all = numbers(&mut stream, n * inputs);
        let of = |rows: Range<usize>| {
            let x = hidden(all[rows.start * inputs..rows.end * inputs].to_vec(), rows.len(), inputs);
            linear(x, &w, None).into_vec()
        };
        let together = of(0..n);
        for rows in [0..1, 3..4, 5..9, n - 17..n, n / 2..n] {
            let own = rows.start * outputs..rows.end * outputs;
            assert_eq!(of(rows), together[own], "{n} rows, {inputs} to {outputs}");
        }
    }
}

/// All numbers of an answer.
fn told(answer: Option<Answer>) -> (Vec<f32>, Vec<f64>) {
    match answer.expect("asked for") {
        Answer::Gradient { gradient, .. } => (gradient.into_vec(), Vec::new()),
        Answer::Sums(SideSums { rows, cols }) => (Vec::new(), [rows, cols].concat()),
    }
}

/// Shapes that are shared out among threads: the same bits on 1, 2 and 5.
#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let mut stream = Seed::root(9).stream();
    let (n, width, heads) = (300, 192, Heads { queries: 6, keys: 2, dim: 32 });
    let packed = layout(&[130, 170], &[0.1; 16]);
    let x = numbers(&mut stream, n * width);
    let make = |rows: usize, cols: usize, stream: &mut _| Weight::new(numbers(stream, rows * cols), rows, cols);
    let (norm, wq, wk, wv) =
        (make(1, width, &mut stream), make(192, width, &mut stream), make(64, width, &mut stream), make(64, width, &mut stream));
    let head = make(500, width, &mut stream);
    let targets: Vec<Target> = (0..n).map(|position| Target { position, id: position as u32 }).collect();
    let samples: Arc<[SampleAt]> =
        [SampleAt { positions: 0..130, share: 1.0 }, SampleAt { positions: 130..n, share: 2.0 }].into();
    let worth: Arc<dyn Worth> = Arc::new(Sample);
    let all = || {
        let x = hidden(x.clone(), n, width);
        let sides = Sides { rows: true, cols: true };
        let slots = [
            Slot::new(Ask::Elements { samples: Some(samples.clone()), sides, worth: worth.clone() }),
            Slot::gradient(),
            Slot::new(Ask::Products(sides)),
        ];
        let y = rms_norm(x.recorded(), &norm, 1e-5, None);
        let (q, k, v) = (
            linear(y.retaped(), &wq, Some(&slots[0])),
            linear(y.retaped(), &wk, Some(&slots[1])),
            linear(y.retaped(), &wv, Some(&slots[2])),
        );
        let out = add(attention(q, k, v, heads, &packed, None), y);
        let scored = cross_entropy(&out.retaped(), &head, &targets, 1.0, None);
        let dx = backward(out, scored.gradient, &x);
        (scored.nll.to_bits(), dx.into_vec(), slots.map(|slot| told(slot.take())))
    };
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.scope(|_| all())
    };
    let one = on(1);
    assert!(one == on(2) && one == on(5));
}
