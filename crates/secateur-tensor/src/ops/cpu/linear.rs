//! y = x · Wᵀ on the CPU. The frozen weight is plain memory, read in place.

use super::gemm::{MatrixView, OutputMode, matmul, matmul_transposed_output, min_stable_rows};
use super::gradient::CpuPendingGradient;
use crate::activations::CpuActivations;
use crate::ops::gradient_query::GradientRequest;
use crate::tape::AnyTape;
use crate::weight::Weight;

/// With up to this many rows, gemm would spend longer on copying the weight into its own order than
/// on the product. Then the transposed product is computed, which reads the weight as it is.
const TRANSPOSED_OUTPUT_MAX_ROWS: usize = 32;

/// y = x · Wᵀ. x is (positions, inputs), W is (outputs, inputs), y is (positions, outputs).
pub(crate) fn linear<T: AnyTape>(
    x: CpuActivations<T>,
    weight: &Weight,
    request: Option<&GradientRequest>,
) -> CpuActivations<T> {
    let (x, mut tape) = x.split_tape();
    let ((positions, inputs), outputs) = (*x.shape(), weight.rows());
    let w = weight.shared_values();
    let y_values = linear_values(x.values(), positions, &w, outputs, inputs);
    let y = CpuActivations::from_vec(y_values, positions, outputs);
    if !T::OWNS_TAPE {
        return y.put_tape(tape);
    }

    let (x_node, y_node) = (x.node(), y.node());
    let pending = request.map(|request| CpuPendingGradient::new(request, &x, &y));
    tape.add_backward_op(move |gradients| {
        let dy = y_node.take_gradient(gradients)?;
        // dx = dy · W, (positions, inputs)
        let input_gradient = |dx: &mut [f32], output_mode| {
            matmul(
                (positions, inputs, outputs),
                dx,
                inputs,
                output_mode,
                MatrixView::row_major(&dy, outputs),
                MatrixView::row_major(&w, inputs),
            );
        };
        let Some(pending) = pending else {
            let (dx, has_begun) = x_node.gradient_mut(gradients)?;
            input_gradient(dx, OutputMode::accumulate_if(has_begun));
            return Ok(());
        };
        // The query may need the dx of this operation alone, so it is not added in place to the
        // gradients of other readers of x.
        let mut dx = vec![0.0; positions * inputs];
        input_gradient(&mut dx, OutputMode::Overwrite);
        pending.resolve(&w, (outputs, inputs), positions, &dy, &dx);
        x_node.add_gradient(gradients, dx)
    });
    y.put_tape(tape)
}

/// x · Wᵀ, (positions, outputs). The bits of a row do not depend on the other rows: few rows are
/// padded with zeros to where gemm computes each row in the same way, see [`min_stable_rows`].
pub(super) fn linear_values(
    x: &[f32],
    positions: usize,
    weight: &[f32],
    outputs: usize,
    inputs: usize,
) -> Vec<f32> {
    let rows = positions.max(min_stable_rows(outputs, inputs));
    let padded: Vec<f32>;
    let x_rows = if positions < rows {
        let zeros = std::iter::repeat_n(0.0, (rows - positions) * inputs);
        padded = x.iter().copied().chain(zeros).collect();
        &padded[..]
    } else {
        x
    };
    let mut y = vec![0.0; rows * outputs];
    if rows <= TRANSPOSED_OUTPUT_MAX_ROWS {
        let mut y_transposed = vec![0.0; outputs * rows];
        matmul_transposed_output(
            (rows, outputs, inputs),
            &mut y_transposed,
            MatrixView::row_major(x_rows, inputs),
            MatrixView::column_major(weight, inputs),
        );
        // y[row, output] = yᵀ[output, row]
        for (output, column) in y_transposed.chunks_exact(rows).enumerate() {
            for (row, value) in column.iter().enumerate() {
                y[row * outputs + output] = *value;
            }
        }
    } else {
        matmul(
            (rows, outputs, inputs),
            &mut y,
            outputs,
            OutputMode::Overwrite,
            MatrixView::row_major(x_rows, inputs),
            MatrixView::column_major(weight, inputs),
        );
    }
    y.truncate(positions * outputs);
    y
}
