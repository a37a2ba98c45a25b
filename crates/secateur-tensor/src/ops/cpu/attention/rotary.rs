//! Rotary positions on the CPU.

use rayon::prelude::*;

use crate::ops::layout::{PackLayout, Rotation};
use crate::ops::simd::{dispatch_simd, rows_per_task};

/// Rotates the pairs of channels (i, i + half_dim) of every head of every row by the angles of the
/// row's position. x is (rows, heads · head_dim); `first_positions` are the positions of the spans'
/// first rows.
pub(super) fn apply_rotary(
    mut x: Vec<f32>,
    head_dim: usize,
    layout: &PackLayout,
    first_positions: &[usize],
    direction: Rotation,
) -> Vec<f32> {
    let positions: Vec<usize> = layout
        .spans
        .iter()
        .zip(first_positions)
        .flat_map(|(span, &first)| first..first + span.rows.len())
        .collect();
    let width = x.len() / positions.len().max(1);
    if width == 0 {
        return x;
    }
    let task_rows = rows_per_task(width);
    x.par_chunks_mut(task_rows * width)
        .zip(positions.par_chunks(task_rows))
        .for_each(|(rows, positions)| {
            for (row, &position) in rows.chunks_exact_mut(width).zip(positions) {
                let (cos, sin) = layout.rotary.cos_sin(position);
                dispatch_simd(
                    #[inline(always)]
                    || rotate_row(row, head_dim, cos, sin, direction),
                );
            }
        });
    x
}

/// (a, b) → (a·cos − b·sin, b·cos + a·sin), with −sin for the inverse.
#[inline(always)]
fn rotate_row(row: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], direction: Rotation) {
    let sign = match direction {
        Rotation::Forward => 1.0,
        Rotation::Inverse => -1.0,
    };
    for head in row.chunks_exact_mut(head_dim) {
        // Channels from 2 · half_dim on, of which `high` may have some, are left as they are.
        let (low, high) = head.split_at_mut(cos.len());
        for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            let sin = sin * sign;
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}
