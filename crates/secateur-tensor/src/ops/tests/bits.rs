//! The bits of results on the CPU depend neither on the number of threads, nor on the other rows,
//! nor on where the keys before a row are.

use std::ops::Range;
use std::sync::Arc;

use super::queries::TestScore;
use super::*;
use crate::ops::gather_rows;

/// Attention to the same keys gives the same outputs whether they are in the sequence itself, in a
/// prefix that it shares with another sequence, or in a cache: the same bits on the CPU, equal up
/// to rounding on a GPU, whose products depend on their shapes.
#[test]
fn attention_bits_equal_alone_with_shared_prefix_and_with_cache() {
    let whole_head = &[1.0, 0.3, 0.1, 0.01][..];
    let part_of_head = &[1.0, 0.3][..];
    on_each_device(|| {
        let mut rng = Seed::from_u64(3).rng();
        for (shared, first_own, second_own, frequencies) in [
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
            let n = shared + first_own + second_own;
            let [q, k, v] = [
                HEADS.query_heads,
                HEADS.key_value_heads,
                HEADS.key_value_heads,
            ]
            .map(|heads| {
                let width = heads * HEADS.head_dim;
                activations(random_values(&mut rng, n * width), n, width)
            });
            let rotary = Arc::new(RotaryTables::new(frequencies, n));
            let operands = Operands { q, k, v, rotary };
            let second_rows = shared + first_own..n;
            let spans = [
                SequenceSpan::from_rows(0..second_rows.start),
                SequenceSpan {
                    rows: second_rows.clone(),
                    prefix: Vec::from_iter(std::iter::once(0..shared)),
                    cache_sequence: 0,
                },
            ];
            let both = operands.attention(&(0..n).collect::<Vec<_>>(), spans.into(), None);
            let first: Vec<usize> = (0..second_rows.start).collect();
            let second: Vec<usize> = (0..shared).chain(second_rows).collect();
            for rows in [first, second] {
                let span = |len: usize| [SequenceSpan::from_rows(0..len)].into();
                let alone = operands.attention(&rows, span(rows.len()), None);
                let with_prefix = gather_rows(&both, rows.clone());
                assert_same(
                    &with_prefix.values(),
                    &alone.values(),
                    "with a shared prefix",
                );
                let mut cache = KvCache::new(1, n, HEADS.key_value_heads * HEADS.head_dim);
                let mut cached = Vec::new();
                for part in [&rows[..shared], &rows[shared..]] {
                    let outputs = operands.attention(part, span(part.len()), Some(&mut cache));
                    cached.extend(outputs.into_vec());
                }
                assert_same(&cached, &alone.values(), "with a cache");
                assert_close(
                    &alone.values()[shared * alone.width()..],
                    &operands.reference_after_prefix(&rows, shared),
                    "the reference after a prefix",
                );
            }
        }
    });
}

const HEADS: AttentionHeads = AttentionHeads {
    query_heads: 4,
    key_value_heads: 2,
    head_dim: 8,
};

/// Queries, keys and values before rotation.
struct Operands {
    q: Activations,
    k: Activations,
    v: Activations,
    rotary: Arc<RotaryTables>,
}

impl Operands {
    /// Attention of some rows, which lie in these spans.
    fn attention(
        &self,
        rows: &[usize],
        spans: Arc<[SequenceSpan]>,
        cache: Option<&mut KvCache>,
    ) -> Activations {
        let select = |x: &Activations| gather_rows(x, rows.to_vec());
        let rotary = self.rotary.clone();
        let (q, k, v) = (select(&self.q), select(&self.k), select(&self.v));
        attention(q, k, v, HEADS, &PackLayout { spans, rotary }, cache)
    }

    /// The reference's outputs of a sequence's rows after the first `prefix`.
    fn reference_after_prefix(&self, rows: &[usize], prefix: usize) -> Vec<f32> {
        let select =
            |x: &Activations, rows: &[usize]| reference_matrix(&gather_rows(x, rows.to_vec()));
        let rotate = |x: Matrix, first_position| {
            reference::apply_rotary(x, HEADS.head_dim, &self.rotary, first_position)
        };
        let q = rotate(select(&self.q, &rows[prefix..]), prefix);
        let k = rotate(select(&self.k, rows), 0);
        reference::attend(q, k, select(&self.v, rows), HEADS).as_vec()
    }
}

/// Compares bits on the CPU, and values up to rounding on a GPU.
fn assert_same(actual: &[f32], expected: &[f32], what: &str) {
    assert_eq!(actual.len(), expected.len());
    if crate::gpu::is_selected() {
        return assert_close(actual, expected, what);
    }
    let first_difference = actual
        .iter()
        .zip(expected)
        .position(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!(first_difference, None, "{what}");
}

#[test]
fn linear_row_does_not_depend_on_other_rows() {
    let mut rng = Seed::from_u64(3).rng();
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
        let w = Weight::new(random_values(&mut rng, outputs * inputs), outputs, inputs);
        let all = random_values(&mut rng, n * inputs);
        let output = |rows: Range<usize>| {
            let x = activations(
                all[rows.start * inputs..rows.end * inputs].to_vec(),
                rows.len(),
                inputs,
            );
            linear(x, &w, None).into_vec()
        };
        let together = output(0..n);
        for rows in [0..1, 3..4, 5..9, n - 17..n, n / 2..n] {
            let elements = rows.start * outputs..rows.end * outputs;
            let alone = output(rows);
            assert_eq!(alone, together[elements], "{n} rows, {inputs} to {outputs}");
        }
    }
}

/// All numbers of a result: a gradient, or sums.
fn result_values(result: Option<GradientResult>) -> (Vec<f32>, Vec<f64>) {
    match result.expect("the gradient was requested") {
        GradientResult::Gradient { gradient, .. } => (gradient.into_vec(), Vec::new()),
        GradientResult::Sums(AxisSums { rows, cols }) => (Vec::new(), [rows, cols].concat()),
    }
}

/// A block whose operations are divided among threads: the same bits on 1, 2 and 5 threads.
#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let mut rng = Seed::from_u64(9).rng();
    let (n, width) = (300, 192);
    let heads = AttentionHeads {
        query_heads: 6,
        key_value_heads: 2,
        head_dim: 32,
    };
    let layout = pack_layout(&[130, 170], &[0.1; 16]);
    let x_values = random_values(&mut rng, n * width);
    let mut random_weight =
        |rows: usize| Weight::new(random_values(&mut rng, rows * width), rows, width);
    let norm = random_weight(1);
    let (wq, wk, wv) = (random_weight(192), random_weight(64), random_weight(64));
    let head = random_weight(500);
    let targets: Vec<TokenTarget> = (0..n)
        .map(|position| TokenTarget {
            position,
            token_id: position as u32,
        })
        .collect();
    let samples = [(0..130, 1.0), (130..n, 2.0)].map(|(positions, gradient_scale)| SampleSpan {
        positions,
        gradient_scale,
    });
    let samples: Arc<[SampleSpan]> = samples.into();
    let score: Arc<dyn ElementScore> = Arc::new(TestScore);
    let axes = SumAxes {
        rows: true,
        cols: true,
    };
    let loss_and_gradients = || {
        let x = activations(x_values.clone(), n, width);
        let norm_request = GradientRequest::for_gradient();
        let requests = [
            GradientRequest::new(GradientQuery::ElementScoreSums {
                samples: Some(samples.clone()),
                axes,
                score: score.clone(),
            }),
            GradientRequest::for_gradient(),
            GradientRequest::new(GradientQuery::WeightTimesGradientSums(axes)),
        ];
        let normed = rms_norm(x.with_gradient_tape(), &norm, 1e-5, None);
        let y = gelu(layer_norm(normed, &norm, None, 1e-5, Some(&norm_request)));
        let q = linear(y.with_empty_tape(), &wq, Some(&requests[0]));
        let k = linear(y.with_empty_tape(), &wk, Some(&requests[1]));
        let v = linear(y.with_empty_tape(), &wv, Some(&requests[2]));
        let output = add(attention(q, k, v, heads, &layout, None), y);
        let loss = cross_entropy(&output.with_empty_tape(), &head, &targets, 1.0, None);
        let dx = backward(output, loss.gradient, &x);
        (
            loss.nll.to_bits(),
            dx.into_vec(),
            result_values(norm_request.take_result()),
            requests.map(|request| result_values(request.take_result())),
        )
    };
    let on_threads = |count: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build();
        pool.expect("a thread pool").scope(|_| loss_and_gradients())
    };
    let on_one = on_threads(1);
    assert!(on_one == on_threads(2) && on_one == on_threads(5));
}
