//! A linear layer with a low-rank adapter (Hu et al. 2021) on the CPU:
//! y = x · Wᵀ + scale · h · Bᵀ, with h = (mask ⊙ x) · Aᵀ, (positions, rank).
//!
//! The backward step:
//!
//! - dh = scale · dy · B, (positions, rank);
//! - dx = dy · W + mask ⊙ (dh · A);
//! - dA = dhᵀ · (mask ⊙ x), dB = scale · dyᵀ · h.
//!
//! The products of the adapter are added to y and dx in place.

use std::borrow::Cow;

use rayon::prelude::*;

use super::gemm::{MatrixView, OutputMode, Parallelism, matmul, scaled_matmul};
use super::gradient::weight_gradient;
use super::linear::linear_values;
use crate::activations::CpuActivations;
use crate::ops::adapter::AdapterInput;
use crate::ops::gradient_query::GradientResult;
use crate::ops::simd::ELEMENTS_PER_TASK;
use crate::tape::AnyTape;
use crate::weight::Weight;

/// x is (positions, inputs), W is (outputs, inputs), y is (positions, outputs).
pub(crate) fn linear_with_adapter<T: AnyTape>(
    x: CpuActivations<T>,
    weight: &Weight,
    adapter: AdapterInput<'_>,
) -> CpuActivations<T> {
    let (x, mut tape) = x.split_tape();
    let ((positions, inputs), outputs) = (*x.shape(), weight.rows());
    let rank = adapter.a.rows();
    let (w, a, b) = (
        weight.shared_values(),
        adapter.a.shared_values(),
        adapter.b.shared_values(),
    );
    let (scale, dropout_mask) = (adapter.scale, adapter.dropout_mask);
    // h = (mask ⊙ x) · Aᵀ, (positions, rank)
    let mask = dropout_mask.as_ref().map(|mask| mask());
    let masked_x = apply_mask(x.values(), mask.as_deref());
    let hidden = linear_values(&masked_x, positions, &a, rank, inputs);
    // y = x · Wᵀ + scale · h · Bᵀ. The last product is not padded as `linear_values` pads: with
    // fewer than MIN_STABLE_ROWS positions, the bits of a row depend on their number.
    let mut y_values = linear_values(x.values(), positions, &w, outputs, inputs);
    scaled_matmul(
        Parallelism::AllCores,
        scale,
        (positions, outputs, rank),
        &mut y_values,
        outputs,
        OutputMode::Accumulate,
        MatrixView::row_major(&hidden, rank),
        MatrixView::column_major(&b, rank),
    );
    drop(masked_x);
    let y = CpuActivations::from_vec(y_values, positions, outputs);
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let (x_node, y_node, saved_x) = (x.node(), y.node(), x.save_for_backward());
    let requests = adapter
        .gradient_requests
        .map(|(a_request, b_request)| (a_request.clone(), b_request.clone()));
    tape.add_backward_op(move |gradients| {
        let mask = dropout_mask.map(|mask| mask());
        let dy = y_node.take_gradient(gradients)?;
        let (dx, has_begun) = x_node.gradient_mut(gradients)?;
        // dx = dy · W, to which the adapter's part is added below
        matmul(
            (positions, inputs, outputs),
            dx,
            inputs,
            OutputMode::accumulate_if(has_begun),
            MatrixView::row_major(&dy, outputs),
            MatrixView::row_major(&w, inputs),
        );
        // dh = scale · dy · B, (positions, rank)
        let mut hidden_gradient = vec![0.0; positions * rank];
        scaled_matmul(
            Parallelism::AllCores,
            scale,
            (positions, rank, outputs),
            &mut hidden_gradient,
            rank,
            OutputMode::Overwrite,
            MatrixView::row_major(&dy, outputs),
            MatrixView::row_major(&b, rank),
        );
        // dx += mask ⊙ (dh · A)
        let adapter_dx = |dx: &mut [f32], output_mode| {
            matmul(
                (positions, inputs, rank),
                dx,
                inputs,
                output_mode,
                MatrixView::row_major(&hidden_gradient, rank),
                MatrixView::row_major(&a, inputs),
            );
        };
        match &mask {
            None => adapter_dx(dx, OutputMode::Accumulate),
            Some(mask) => {
                let mut masked_x_gradient = vec![0.0; positions * inputs];
                adapter_dx(&mut masked_x_gradient, OutputMode::Overwrite);
                add_masked(dx, &masked_x_gradient, mask);
            }
        }
        if let Some((a_request, b_request)) = requests {
            // dA = dhᵀ · (mask ⊙ x), dB = scale · dyᵀ · h
            let x = saved_x.values();
            let masked_x = apply_mask(&x, mask.as_deref());
            let mut a_gradient = vec![0.0; rank * inputs];
            let a_shape = (rank, inputs, positions);
            weight_gradient(&mut a_gradient, a_shape, &hidden_gradient, &masked_x);
            let mut b_gradient = vec![0.0; outputs * rank];
            scaled_matmul(
                Parallelism::AllCores,
                scale,
                (outputs, rank, positions),
                &mut b_gradient,
                rank,
                OutputMode::Overwrite,
                MatrixView::column_major(&dy, outputs),
                MatrixView::row_major(&hidden, rank),
            );
            a_request.set_result(GradientResult::from_gradient(a_gradient, rank, inputs));
            b_request.set_result(GradientResult::from_gradient(b_gradient, outputs, rank));
        }
        Ok(())
    });
    y.put_tape(tape)
}

/// mask ⊙ x; x itself without a mask.
fn apply_mask<'x>(x: &'x [f32], mask: Option<&[f32]>) -> Cow<'x, [f32]> {
    let Some(mask) = mask else {
        return Cow::Borrowed(x);
    };
    let mut masked = vec![0.0; x.len()];
    masked
        .par_chunks_mut(ELEMENTS_PER_TASK)
        .zip(x.par_chunks(ELEMENTS_PER_TASK))
        .zip(mask.par_chunks(ELEMENTS_PER_TASK))
        .for_each(|((masked, x), mask)| {
            for ((masked, x), factor) in masked.iter_mut().zip(x).zip(mask) {
                *masked = x * factor;
            }
        });
    Cow::Owned(masked)
}

/// sum += mask ⊙ part
fn add_masked(sum: &mut [f32], part: &[f32], mask: &[f32]) {
    sum.par_chunks_mut(ELEMENTS_PER_TASK)
        .zip(part.par_chunks(ELEMENTS_PER_TASK))
        .zip(mask.par_chunks(ELEMENTS_PER_TASK))
        .for_each(|((sum, part), mask)| {
            for ((sum, part), factor) in sum.iter_mut().zip(part).zip(mask) {
                *sum += part * factor;
            }
        });
}
