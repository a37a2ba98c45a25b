//! y = x · Wᵀ on the CPU. The frozen weight is plain memory; its gradient is made only where somebody asks, and only as
//! much of it at a time as the question needs.

use super::gemm::{MatrixView, OutputMode, matmul, matmul_transposed_output, min_stable_rows};
use super::gradient;
use crate::activations::cpu::{CpuActivations, activations_from_vec};
use crate::ops::GradientRequest;
use crate::{AnyTape, Weight};

/// y = x · Wᵀ. x is (positions, inputs), W is (outputs, inputs), y is (positions, outputs).
pub fn linear<T: AnyTape>(
    x: CpuActivations<T>,
    weight: &Weight,
    slot: Option<&GradientRequest>,
) -> CpuActivations<T> {
    let (x, mut tape) = x.split_tape();
    let ((n, inputs), outputs) = (*x.shape(), weight.rows());
    let memory = weight.shared_values();
    let y = activations_from_vec(
        linear_values(x.values(), n, &memory, outputs, inputs),
        n,
        outputs,
    );
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let (x_node, y_node) = (x.node(), y.node());
    let asked = slot.map(|slot| gradient::CpuPendingGradient::new(slot, &x, &y));
    tape.add_backward_op(move |gradients| {
        let dy = y_node.take_gradient(gradients)?;
        let Some(asked) = asked else {
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
                MatrixView::row_major(&memory, inputs),
            );
            return Ok(());
        };
        let mut dx = vec![0.0; n * inputs];
        matmul(
            (n, inputs, outputs),
            &mut dx,
            inputs,
            OutputMode::Overwrite,
            MatrixView::row_major(&dy, outputs),
            MatrixView::row_major(&memory, inputs),
        );
        asked.resolve(&memory, (outputs, inputs), n, &dy, &dx);
        x_node.add_gradient(gradients, dx)
    });
    y.put_tape(tape)
}

/// Up to so many rows bringing the weight into another order, as gemm does, takes longer than the product.
const TRANSPOSED_OUTPUT_MAX_ROWS: usize = 32;

/// x · Wᵀ, of as many rows as x has.
pub(super) fn linear_values(
    x: &[f32],
    n: usize,
    weight: &[f32],
    outputs: usize,
    inputs: usize,
) -> Vec<f32> {
    let rows = n.max(min_stable_rows(outputs, inputs));
    let padded: Vec<f32>;
    let from = if n < rows {
        padded = x
            .iter()
            .copied()
            .chain(std::iter::repeat_n(0.0, (rows - n) * inputs))
            .collect();
        &padded[..]
    } else {
        x
    };
    let mut y = vec![0.0; rows * outputs];
    if rows <= TRANSPOSED_OUTPUT_MAX_ROWS {
        let mut across = vec![0.0; outputs * rows];
        matmul_transposed_output(
            (rows, outputs, inputs),
            &mut across,
            MatrixView::row_major(from, inputs),
            MatrixView::column_major(weight, inputs),
        );
        for (o, column) in across.chunks_exact(rows).enumerate() {
            column
                .iter()
                .enumerate()
                .for_each(|(i, value)| y[i * outputs + o] = *value);
        }
        y.truncate(n * outputs);
        return y;
    }
    matmul(
        (rows, outputs, inputs),
        &mut y,
        outputs,
        OutputMode::Overwrite,
        MatrixView::row_major(from, inputs),
        MatrixView::column_major(weight, inputs),
    );
    y.truncate(n * outputs);
    y
}
