//! Neither threads nor neighbours nor the place of what was read before change a bit.

use std::ops::Range;
use std::sync::Arc;

use super::*;
use secateur_base::random::Seed;

/// Rows of (positions, width).
fn select_rows(x: &Activations, at: impl IntoIterator<Item = usize>) -> Activations {
    crate::ops::gather_rows(x, at.into_iter().collect())
}

/// To the bit on the CPU, to rounding on a GPU, whose products depend on their shapes.
#[test]
fn attention_bits_equal_alone_with_shared_prefix_and_with_cache() {
    on_each_device(|| {
        let mut stream = Seed::from_u64(3).rng();
        let heads = AttentionHeads {
            query_heads: 4,
            key_value_heads: 2,
            head_dim: 8,
        };
        // how much two sequences share, and what each has of its own
        let whole_head = &[1.0, 0.3, 0.1, 0.01][..];
        let part_of_head = &[1.0, 0.3][..];
        for (shared, one, two, frequencies) in [
            (1, 1, 1, whole_head),
            (2, 5, 3, whole_head),
            (7, 3, 90, whole_head),
            (62, 3, 70, whole_head),
            (64, 1, 2, whole_head),
            (130, 600, 4, whole_head),
            (510, 3, 4, whole_head),
            (700, 9, 30, whole_head),
            (7, 3, 90, part_of_head),
        ] {
            let n = shared + one + two;
            let make = |count: usize, stream: &mut _| {
                activations(random_values(stream, n * count * 8), n, count * 8)
            };
            let (q, k, v) = (
                make(4, &mut stream),
                make(2, &mut stream),
                make(2, &mut stream),
            );
            let rotary = Arc::new(RotaryTables::new(frequencies, n));
            let spans = [
                SequenceSpan::from_rows(0..shared + one),
                SequenceSpan {
                    rows: shared + one..n,
                    prefix: Vec::from_iter(std::iter::once(0..shared)),
                    cache_sequence: 0,
                },
            ];
            let both = attention(
                q.clone(),
                k.clone(),
                v.clone(),
                heads,
                &PackLayout {
                    spans: spans.into(),
                    rotary: rotary.clone(),
                },
                None,
            );
            for (own, whole) in [
                (shared..shared + one, 0..shared + one),
                (shared + one..n, 0..shared),
            ] {
                let places: Vec<usize> = if own.end == n {
                    whole.chain(own.clone()).collect()
                } else {
                    whole.collect()
                };
                let part = |x: &Activations| select_rows(x, places.iter().copied());
                let layout = |at: Range<usize>| PackLayout {
                    spans: [SequenceSpan::from_rows(at)].into(),
                    rotary: rotary.clone(),
                };
                let alone = attention(
                    part(&q),
                    part(&k),
                    part(&v),
                    heads,
                    &layout(0..places.len()),
                    None,
                );
                let same = |a: &[f32], b: &[f32], what: &str| {
                    assert_eq!(a.len(), b.len());
                    if crate::gpu::is_selected() {
                        return assert_close(a, b, what);
                    }
                    let differs = a
                        .iter()
                        .zip(b)
                        .position(|(a, b)| a.to_bits() != b.to_bits());
                    assert_eq!(differs, None, "{shared} {one} {two}, {what}");
                };
                same(&part(&both).values(), &alone.values(), "shared");
                let mut past = KvCache::new(1, n, 16);
                let mut cached = Vec::new();
                for step in [0..shared, shared..places.len()] {
                    let part =
                        |x: &Activations| select_rows(x, places[step.clone()].iter().copied());
                    let out = attention(
                        part(&q),
                        part(&k),
                        part(&v),
                        heads,
                        &layout(0..step.len()),
                        Some(&mut past),
                    );
                    cached.extend(out.into_vec());
                }
                same(&cached, &alone.values(), "cached");
                // and the reference reads behind a cache the same
                let all: Matrix = reference_matrix(&part(&v));
                let turned = |x: Activations, start| {
                    reference::apply_rotary(reference_matrix(&x), 8, &rotary, start)
                };
                let last = select_rows(&part(&q), shared..places.len());
                let plain =
                    reference::attend(turned(last, shared), turned(part(&k), 0), all, heads);
                assert_close(
                    &alone.values()[shared * 32..],
                    &plain.as_vec(),
                    "behind a cache",
                );
            }
        }
    });
}

#[test]
fn linear_row_does_not_depend_on_other_rows() {
    let mut stream = Seed::from_u64(3).rng();
    for (n, outputs, inputs) in [
        (20, 33, 40),
        (300, 70, 24),
        (100, 40, 600),
        (70, 64, 1100),
        (200, 130, 700),
        (60, 9, 24),
        (50, 300, 48),
        (40, 700, 900),
    ] {
        let w = Weight::new(
            random_values(&mut stream, outputs * inputs),
            outputs,
            inputs,
        );
        let all = random_values(&mut stream, n * inputs);
        let of = |rows: Range<usize>| {
            let x = activations(
                all[rows.start * inputs..rows.end * inputs].to_vec(),
                rows.len(),
                inputs,
            );
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
fn result_values(answer: Option<GradientResult>) -> (Vec<f32>, Vec<f64>) {
    match answer.expect("asked for") {
        GradientResult::Gradient { gradient, .. } => (gradient.into_vec(), Vec::new()),
        GradientResult::Sums(AxisSums { rows, cols }) => (Vec::new(), [rows, cols].concat()),
    }
}

/// Shapes that are shared out among threads: the same bits on 1, 2 and 5.
#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let mut stream = Seed::from_u64(9).rng();
    let (n, width, heads) = (
        300,
        192,
        AttentionHeads {
            query_heads: 6,
            key_value_heads: 2,
            head_dim: 32,
        },
    );
    let packed = pack_layout(&[130, 170], &[0.1; 16]);
    let x = random_values(&mut stream, n * width);
    let make = |rows: usize, cols: usize, stream: &mut _| {
        Weight::new(random_values(stream, rows * cols), rows, cols)
    };
    let (norm, wq, wk, wv) = (
        make(1, width, &mut stream),
        make(192, width, &mut stream),
        make(64, width, &mut stream),
        make(64, width, &mut stream),
    );
    let head = make(500, width, &mut stream);
    let targets: Vec<TokenTarget> = (0..n)
        .map(|position| TokenTarget {
            position,
            token_id: position as u32,
        })
        .collect();
    let samples: Arc<[SampleSpan]> = [
        SampleSpan {
            positions: 0..130,
            gradient_scale: 1.0,
        },
        SampleSpan {
            positions: 130..n,
            gradient_scale: 2.0,
        },
    ]
    .into();
    let worth: Arc<dyn ElementScore> = Arc::new(TestScore);
    let all = || {
        let x = activations(x.clone(), n, width);
        let sides = SumAxes {
            rows: true,
            cols: true,
        };
        let norm_request = GradientRequest::for_gradient();
        let slots = [
            GradientRequest::new(GradientQuery::ElementScoreSums {
                samples: Some(samples.clone()),
                axes: sides,
                score: worth.clone(),
            }),
            GradientRequest::for_gradient(),
            GradientRequest::new(GradientQuery::WeightTimesGradientSums(sides)),
        ];
        let y = rms_norm(x.with_gradient_tape(), &norm, 1e-5, None);
        let y = gelu(layer_norm(y, &norm, None, 1e-5, Some(&norm_request)));
        let (q, k, v) = (
            linear(y.with_empty_tape(), &wq, Some(&slots[0])),
            linear(y.with_empty_tape(), &wk, Some(&slots[1])),
            linear(y.with_empty_tape(), &wv, Some(&slots[2])),
        );
        let out = add(attention(q, k, v, heads, &packed, None), y);
        let scored = cross_entropy(&out.with_empty_tape(), &head, &targets, 1.0, None);
        let dx = backward(out, scored.gradient, &x);
        (
            scored.nll.to_bits(),
            dx.into_vec(),
            result_values(norm_request.take_result()),
            slots.map(|slot| result_values(slot.take_result())),
        )
    };
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a pool");
        pool.scope(|_| all())
    };
    let one = on(1);
    assert!(one == on(2) && one == on(5));
}
