//! A linear layer with a low-rank adapter beside it (Hu et al. 2021), on the CPU:
//! y = x · Wᵀ + scale · (mask ⊙ x) · Aᵀ · Bᵀ. The thin products go straight into the thick one's output.

use rayon::prelude::*;

use super::gemm::{MatrixView, OutputMode, Parallelism, matmul, scaled_matmul};
use super::{gradient, linear};
use crate::activations::cpu::{CpuActivations, activations_from_vec};
use crate::ops::simd::ELEMENTS_PER_TASK;
use crate::ops::{AdapterInput, GradientResult};
use crate::{AnyTape, Weight};

/// x is (positions, inputs), W is (outputs, inputs), y is (positions, outputs).
pub fn linear_with_adapter<T: AnyTape>(
    x: CpuActivations<T>,
    weight: &Weight,
    beside: AdapterInput<'_>,
) -> CpuActivations<T> {
    let (x, mut tape) = x.split_tape();
    let ((n, inputs), outputs, rank) = (*x.shape(), weight.rows(), beside.a.rows());
    let (w, a, b, scale) = (
        weight.shared_values(),
        beside.a.shared_values(),
        beside.b.shared_values(),
        beside.scale,
    );
    let mask = beside.dropout_mask;
    let low = match &mask {
        Some(mask) => linear::linear_values(&apply_mask(x.values(), &mask()), n, &a, rank, inputs), // (positions, rank)
        None => linear::linear_values(x.values(), n, &a, rank, inputs),
    };
    let mut y = linear::linear_values(x.values(), n, &w, outputs, inputs);
    let b_across = MatrixView::column_major(&b, rank);
    scaled_matmul(
        Parallelism::AllCores,
        scale,
        (n, outputs, rank),
        &mut y,
        outputs,
        OutputMode::Accumulate,
        MatrixView::row_major(&low, rank),
        b_across,
    );
    let y = activations_from_vec(y, n, outputs);
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let (x_node, y_node, kept) = (x.node(), y.node(), x.save_for_backward());
    let slots = beside
        .gradient_requests
        .map(|(a, b)| (a.clone(), b.clone()));
    tape.add_backward_op(move |gradients| {
        let mask = mask.map(|mask| mask());
        let dy = y_node.take_gradient(gradients)?;
        let (dx, is_begun) = x_node.gradient_mut(gradients)?;
        let into = if is_begun {
            OutputMode::Accumulate
        } else {
            OutputMode::Overwrite
        };
        matmul(
            (n, inputs, outputs),
            dx,
            inputs,
            into,
            MatrixView::row_major(&dy, outputs),
            MatrixView::row_major(&w, inputs),
        );
        let mut d_low = vec![0.0; n * rank];
        let b_rows = MatrixView::row_major(&b, rank);
        scaled_matmul(
            Parallelism::AllCores,
            scale,
            (n, rank, outputs),
            &mut d_low,
            rank,
            OutputMode::Overwrite,
            MatrixView::row_major(&dy, outputs),
            b_rows,
        );
        match &mask {
            None => matmul(
                (n, inputs, rank),
                dx,
                inputs,
                OutputMode::Accumulate,
                MatrixView::row_major(&d_low, rank),
                MatrixView::row_major(&a, inputs),
            ),
            Some(mask) => {
                let mut d_dropped = vec![0.0; n * inputs];
                let (d_low, a) = (
                    MatrixView::row_major(&d_low, rank),
                    MatrixView::row_major(&a, inputs),
                );
                matmul(
                    (n, inputs, rank),
                    &mut d_dropped,
                    inputs,
                    OutputMode::Overwrite,
                    d_low,
                    a,
                );
                let parts = d_dropped
                    .par_chunks(ELEMENTS_PER_TASK)
                    .zip(mask.par_chunks(ELEMENTS_PER_TASK));
                dx.par_chunks_mut(ELEMENTS_PER_TASK)
                    .zip(parts)
                    .for_each(|(dx, (d, mask))| {
                        dx.iter_mut()
                            .zip(d)
                            .zip(mask)
                            .for_each(|((dx, d), m)| *dx += d * m);
                    });
            }
        }
        if let Some((slot_a, slot_b)) = slots {
            let (mut da, mut db) = (vec![0.0; rank * inputs], vec![0.0; outputs * rank]);
            let x = kept.values();
            match &mask {
                Some(mask) => gradient::weight_gradient(
                    &mut da,
                    (rank, inputs, n),
                    &d_low,
                    &apply_mask(&x, mask),
                ),
                None => gradient::weight_gradient(&mut da, (rank, inputs, n), &d_low, &x),
            }
            let dy_across = MatrixView::column_major(&dy, outputs);
            scaled_matmul(
                Parallelism::AllCores,
                scale,
                (outputs, rank, n),
                &mut db,
                rank,
                OutputMode::Overwrite,
                dy_across,
                MatrixView::row_major(&low, rank),
            );
            slot_a.set_result(GradientResult::from_gradient(da, rank, inputs));
            slot_b.set_result(GradientResult::from_gradient(db, outputs, rank));
        }
        Ok(())
    });
    y.put_tape(tape)
}

fn apply_mask(x: &[f32], mask: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    out.par_chunks_mut(ELEMENTS_PER_TASK)
        .zip(x.par_chunks(ELEMENTS_PER_TASK))
        .zip(mask.par_chunks(ELEMENTS_PER_TASK))
        .for_each(|((out, x), mask)| {
            out.iter_mut()
                .zip(x)
                .zip(mask)
                .for_each(|((out, x), m)| *out = x * m);
        });
    out
}
