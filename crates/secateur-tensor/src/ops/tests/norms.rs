//! Linear layers and norms against the reference.

use super::*;

#[test]
fn linear_and_norm_match_the_reference() {
    on_each_device(|| {
        let mut rng = Seed::from_u64(1).rng();
        for n in [1, 3, 7, 16, 70] {
            let x = activations(random_values(&mut rng, n * 24), n, 24);
            let w = Weight::new(random_values(&mut rng, 10 * 24), 10, 24);
            let norm = Weight::new(random_values(&mut rng, 24), 1, 24);
            let upstream = random_values(&mut rng, n * 10);
            let (w_request, norm_request) = (
                GradientRequest::for_gradient(),
                GradientRequest::for_gradient(),
            );
            let fused = linear(
                rms_norm(x.with_gradient_tape(), &norm, 1e-5, Some(&norm_request)),
                &w,
                Some(&w_request),
            );
            let (x_reference, w_reference, norm_reference) = (
                reference_matrix(&x),
                reference_weight(&w),
                reference_weight(&norm),
            );
            let expected = reference::linear(
                reference::rms_norm(x_reference.leaky_trace(), &norm_reference, 1e-5),
                &w_reference,
            );
            assert_close(&fused.values(), &expected.as_vec(), "values");
            let dx = run_backward(fused, &upstream, &x);
            let gradients = run_reference_tape(expected, &upstream);
            assert_close(&dx, &gradients.get(&x_reference).as_vec(), "x");
            assert_close(
                &w_request
                    .take_gradient()
                    .expect("the gradient was requested"),
                &gradients.get(&w_reference).as_vec(),
                "weight",
            );
            assert_close(
                &norm_request
                    .take_gradient()
                    .expect("the gradient was requested"),
                &gradients.get(&norm_reference).as_vec(),
                "norm",
            );
        }
    });
}

#[test]
fn layer_norm_matches_the_reference() {
    on_each_device(|| {
        let mut rng = Seed::from_u64(21).rng();
        for (n, width) in [(1, 24), (7, 33), (70, 24), (9, 1024)] {
            let x = activations(random_values(&mut rng, n * width), n, width);
            let weight = Weight::new(random_values(&mut rng, width), 1, width);
            let bias = Weight::new(random_values(&mut rng, width), 1, width);
            let upstream = random_values(&mut rng, n * width);
            let request = GradientRequest::for_gradient();
            let tape = x.with_gradient_tape();
            let fused = layer_norm(tape, &weight, Some(&bias), 1e-5, Some(&request));
            let (x_reference, weight_reference) = (reference_matrix(&x), reference_weight(&weight));
            let expected = reference::layer_norm(
                x_reference.leaky_trace(),
                &weight_reference,
                &reference_weight(&bias),
                1e-5,
            );
            assert_close(&fused.values(), &expected.as_vec(), "values");
            let dx = run_backward(fused, &upstream, &x);
            let gradients = run_reference_tape(expected, &upstream);
            assert_close(&dx, &gradients.get(&x_reference).as_vec(), "x");
            assert_close(
                &request.take_gradient().expect("the gradient was requested"),
                &gradients.get(&weight_reference).as_vec(),
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

/// The squares of the samples' gradients of a norm's weight, from the gradients of the samples
/// alone.
#[test]
fn norm_weight_squares_follow_from_the_gradients_of_samples() {
    type Norm =
        fn(Activations<GradientTape>, &Weight, &GradientRequest) -> Activations<GradientTape>;
    let norms: [Norm; 2] = [
        |x, weight, request| rms_norm(x, weight, 1e-5, Some(request)),
        |x, weight, request| layer_norm(x, weight, None, 1e-5, Some(request)),
    ];
    on_each_device(|| {
        let mut rng = Seed::from_u64(22).rng();
        let (n, width) = (12, 20);
        let x = activations(random_values(&mut rng, n * width), n, width);
        let weight = Weight::new(random_values(&mut rng, width), 1, width);
        let upstream = random_values(&mut rng, n * width);
        let samples = [(0..5, 1.5), (5..n, 0.5)].map(|(positions, gradient_scale)| SampleSpan {
            positions,
            gradient_scale,
        });
        for norm in norms {
            let (mut sum, mut squares) = (vec![0.0; width], vec![0.0; width]);
            for sample in &samples {
                let elements = sample.positions.start * width..sample.positions.end * width;
                let rows = x.values()[elements.clone()].to_vec();
                let sample_x = activations(rows, sample.positions.len(), width);
                let request = GradientRequest::for_gradient();
                let y = norm(sample_x.with_gradient_tape(), &weight, &request);
                run_backward(y, &upstream[elements], &sample_x);
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
