//! Results of gradient queries against what follows from the whole gradient.

use super::*;

/// |w·g| + s
pub(super) struct TestScore;

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

/// The result of every query against what follows from the whole gradient, for a pack of two
/// samples.
#[test]
fn every_query_result_follows_from_the_full_gradient() {
    on_each_device(|| {
        let mut rng = Seed::from_u64(7).rng();
        let (n, outputs, inputs) = (40, 70, 24);
        let x = activations(random_values(&mut rng, n * inputs), n, inputs);
        let w = Weight::new(random_values(&mut rng, outputs * inputs), outputs, inputs);
        let upstream = random_values(&mut rng, n * outputs);
        let result = |query: GradientQuery| {
            let request = GradientRequest::new(query);
            let y = linear(x.with_gradient_tape(), &w, Some(&request));
            run_backward(y, &upstream, &x);
            request.take_result().expect("the gradient was requested")
        };
        let GradientResult::Gradient { gradient, .. } = result(GradientQuery::Gradient) else {
            panic!("a gradient")
        };
        let gradient = gradient.into_vec();

        let sample_spans = [(0..15, 1.5), (15..n, 0.5)];
        let samples: Arc<[SampleSpan]> = sample_spans
            .map(|(positions, gradient_scale)| SampleSpan {
                positions,
                gradient_scale,
            })
            .into();
        let query = GradientQuery::GradientAndSampleSquares(samples.clone());
        let GradientResult::Gradient {
            gradient: sum_of_samples,
            squares: Some(squares),
        } = result(query)
        else {
            panic!("a gradient and squares")
        };
        let squares = squares.into_vec();
        assert_close(&sum_of_samples.into_vec(), &gradient, "sum of samples");
        let scaled_squares = |sample: &SampleSpan| {
            let positions = &sample.positions;
            let rows = x.values()[positions.start * inputs..positions.end * inputs].to_vec();
            let x = activations(rows, positions.len(), inputs);
            let request = GradientRequest::for_gradient();
            let y = linear(x.with_gradient_tape(), &w, Some(&request));
            let upstream = &upstream[positions.start * outputs..positions.end * outputs];
            run_backward(y, upstream, &x);
            let gradient = request.take_gradient().expect("the gradient was requested");
            let scale = sample.gradient_scale;
            gradient.into_iter().map(move |g| (g * scale) * (g * scale))
        };
        let expected_squares: Vec<f32> = scaled_squares(&samples[0])
            .zip(scaled_squares(&samples[1]))
            .map(|(first, second)| first + second)
            .collect();
        assert_close(&squares, &expected_squares, "squares");

        let axes = SumAxes {
            rows: true,
            cols: true,
        };
        let score: Arc<dyn ElementScore> = Arc::new(TestScore);
        let expected_sums = |squares: Option<&[f32]>, score: &dyn ElementScore| {
            let to_gradient = |values: &[f32]| Gradient::new(values.to_vec(), outputs, inputs);
            let squares = squares.map(to_gradient);
            axis_sums(&w, &to_gradient(&gradient), squares.as_ref(), axes, score)
        };
        let element_scores = |samples| GradientQuery::ElementScoreSums {
            samples,
            axes,
            score: score.clone(),
        };
        assert_sums_close(
            result(element_scores(None)),
            &expected_sums(None, score.as_ref()),
        );
        assert_sums_close(
            result(element_scores(Some(samples))),
            &expected_sums(Some(&squares), score.as_ref()),
        );
        assert_sums_close(
            result(GradientQuery::WeightTimesGradientSums(axes)),
            &expected_sums(None, &crate::ops::gradient_reduction::WeightTimesGradient),
        );
    });
}

fn assert_sums_close(result: GradientResult, expected: &AxisSums) {
    let GradientResult::Sums(sums) = result else {
        panic!("sums")
    };
    for (actual, expected) in [(&sums.rows, &expected.rows), (&sums.cols, &expected.cols)] {
        assert_eq!(actual.len(), expected.len());
        let largest = expected.iter().fold(0f64, |max, x| max.max(x.abs()));
        for (actual, expected) in actual.iter().zip(expected) {
            assert!((actual - expected).abs() <= 1e-5 * largest);
        }
    }
}
