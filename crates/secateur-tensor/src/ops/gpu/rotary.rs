//! Rotary positions on a GPU.

use dfdx::prelude::*;

use crate::gpu::{GpuMatrix, matrix_from_vec};
use crate::ops::layout::{RotaryTables, Rotation};

/// The angles of some rows: cos and sin of every channel, (rows, head_dim). Channels that are not
/// rotated have cos 1 and sin 0.
pub(super) struct RotaryAngles {
    cos: GpuMatrix,
    forward_sin: GpuMatrix,
    inverse_sin: GpuMatrix,
    /// J, (head_dim, head_dim): x · J is (−b, a) for every pair (a, b) of channels
    /// i and i + half_dim, and 0 in the channels that are not rotated.
    quarter_turn: GpuMatrix,
}

impl RotaryAngles {
    /// The angles of rows at these positions.
    pub(super) fn new(
        rotary: &RotaryTables,
        head_dim: usize,
        positions: impl ExactSizeIterator<Item = usize>,
    ) -> Self {
        let (rows, half) = (positions.len(), rotary.half_dim);
        let unrotated = head_dim - 2 * half;
        let mut cos = Vec::with_capacity(rows * head_dim);
        let mut sin = Vec::with_capacity(rows * head_dim);
        for position in positions {
            let (pair_cos, pair_sin) = rotary.cos_sin(position);
            // both channels of a pair have the same angle
            cos.extend([pair_cos, pair_cos].concat());
            cos.extend(std::iter::repeat_n(1.0, unrotated));
            sin.extend([pair_sin, pair_sin].concat());
            sin.extend(std::iter::repeat_n(0.0, unrotated));
        }
        let mut quarter_turn = vec![0.0; head_dim * head_dim];
        for channel in 0..half {
            quarter_turn[(channel + half) * head_dim + channel] = -1.0;
            quarter_turn[channel * head_dim + channel + half] = 1.0;
        }
        let negated_sin = sin.iter().map(|sin| -sin).collect();
        Self {
            cos: matrix_from_vec(cos, rows, head_dim),
            forward_sin: matrix_from_vec(sin, rows, head_dim),
            inverse_sin: matrix_from_vec(negated_sin, rows, head_dim),
            quarter_turn: matrix_from_vec(quarter_turn, head_dim, head_dim),
        }
    }

    /// Rotates every head of every row by the angles of the row: x ⊙ cos + (x · J) ⊙ sin, which is
    /// (a·cos − b·sin, b·cos + a·sin) for a pair. x is (rows, heads · head_dim).
    pub(super) fn rotate(&self, x: GpuMatrix, direction: Rotation) -> GpuMatrix {
        let sin = match direction {
            Rotation::Forward => &self.forward_sin,
            Rotation::Inverse => &self.inverse_sin,
        };
        let ((rows, width), (head_dim, _)) = (*x.shape(), *self.quarter_turn.shape());
        let by_head = (rows, width / head_dim, head_dim);
        let for_all_heads =
            |table: &GpuMatrix| table.clone().broadcast_like::<_, Axis<1>>(&by_head);
        let quarter_turned = x
            .clone()
            .reshape_like(&(rows * (width / head_dim), head_dim))
            .matmul(self.quarter_turn.clone())
            .reshape_like(&by_head);
        let rotated = x.reshape_like(&by_head) * for_all_heads(&self.cos)
            + quarter_turned * for_all_heads(sin);
        rotated.reshape_like(&(rows, width))
    }
}
