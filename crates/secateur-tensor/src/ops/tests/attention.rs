//! Attention over packed sequences against the reference.

use super::*;

#[test]
fn attention_matches_the_reference_for_packed_sequences() {
    on_each_device(|| {
        let mut rng = Seed::from_u64(2).rng();
        // frequencies for four, one, or none of the four pairs of a head's channels
        let (all, first) = (&[1.0, 0.3, 0.1, 0.01][..], &[0.3][..]);
        for (lengths, query_heads, key_value_heads, frequencies) in [
            (&[1][..], 2, 2, all),
            (&[9], 4, 4, all),
            (&[13], 6, 2, all),
            (&[150], 2, 1, all),
            (&[9, 1, 70, 128, 3], 4, 2, all),
            (&[1100, 40, 600], 2, 1, all),
            (&[9, 1, 70], 4, 2, first),
            (&[600, 13], 2, 2, first),
        ] {
            let head_dim = 8;
            let heads = AttentionHeads {
                query_heads,
                key_value_heads,
                head_dim,
            };
            let n: usize = lengths.iter().sum();
            let mut random_heads = |count: usize| {
                let width = count * head_dim;
                activations(random_values(&mut rng, n * width), n, width)
            };
            let q = random_heads(query_heads);
            let k = random_heads(key_value_heads);
            let v = random_heads(key_value_heads);
            let upstream = random_values(&mut rng, n * query_heads * head_dim);
            let layout = pack_layout(lengths, frequencies);
            let record = || {
                let (q, k, v) = (
                    q.with_gradient_tape(),
                    k.with_empty_tape(),
                    v.with_empty_tape(),
                );
                attention(q, k, v, heads, &layout, None)
            };
            let outputs = record();
            let dq = input_gradient(record, &upstream, &q);
            let dk = input_gradient(record, &upstream, &k);
            let dv = input_gradient(record, &upstream, &v);
            // the reference computes each sequence alone
            for rows in layout.spans.iter().map(|span| &span.rows) {
                let sequence_rows =
                    |x: &[f32], width: usize| x[rows.start * width..rows.end * width].to_vec();
                let sequence = |x: &Activations| -> Matrix {
                    let values = sequence_rows(&x.values(), x.width());
                    dfdx_cpu().tensor_from_vec(values, (rows.len(), x.width()))
                };
                let (q, k, v) = (sequence(&q), sequence(&k), sequence(&v));
                let expected = reference::attention(
                    q.leaky_trace(),
                    k.retaped(),
                    v.retaped(),
                    heads,
                    &layout.rotary,
                );
                let (width, key_width) = (query_heads * head_dim, key_value_heads * head_dim);
                let compare = |actual: &[f32], width, expected: Vec<f32>, what| {
                    assert_close(&sequence_rows(actual, width), &expected, what);
                };
                compare(&outputs.values(), width, expected.as_vec(), "outputs");
                let gradients = run_reference_tape(expected, &sequence_rows(&upstream, width));
                compare(&dq, width, gradients.get(&q).as_vec(), "q");
                compare(&dk, key_width, gradients.get(&k).as_vec(), "k");
                compare(&dv, key_width, gradients.get(&v).as_vec(), "v");
            }
        }
    });
}
