//! The CPU's face: fused operations on plain memory, put on dfdx's tape with their own backward.
//!
//! Each reads its inputs once (`as_vec`, one copy: dfdx lends no buffer), writes one output (no copy), and keeps for
//! the way back what its gradient needs.

use dfdx::prelude::*;

use super::Slot;
use super::gemm::{View, product};
use crate::tensor::{AnyTape, Device, Hidden, Recording, Weight, hidden};

/// gemm's matrix-vector path, below five rows, rounds otherwise than its matrix path: fewer rows are padded to these.
const FEWEST_ROWS: usize = 8;

/// y = x · Wᵀ. x is (positions, inputs), W is (outputs, inputs), y is (positions, outputs).
pub fn linear<T: AnyTape>(x: Hidden<T>, weight: &Weight, slot: Option<&Slot>) -> Hidden<T> {
    let (x, mut tape) = x.split_tape();
    let ((n, inputs), outputs) = (*x.shape(), weight.rows());
    debug_assert_eq!(inputs, weight.cols());
    let rows = n.max(FEWEST_ROWS);
    let mut from = x.as_vec();
    from.resize(rows * inputs, 0.0);
    let mut to = vec![0.0; rows * outputs];
    product(
        (rows, outputs, inputs),
        &mut to,
        outputs,
        false,
        View::rows(&from, inputs),
        View::transposed(&weight.values(), inputs),
    );
    to.truncate(n * outputs);
    let y = hidden(to, n, outputs);

    let (x_id, y_id) = (x.ghost(), y.ghost());
    let (memory, slot) = (weight.shared(), slot.cloned());
    let from = slot.is_some().then_some(from);
    tape.add_backward_op(move |gradients| {
        let dy = take(gradients.get_or_alloc_mut(&y_id)?);
        if let (Some(slot), Some(x)) = (slot, from) {
            let mut dw = vec![0.0; outputs * inputs];
            product((outputs, inputs, n), &mut dw, inputs, false, View::transposed(&dy, outputs), View::rows(&x, inputs));
            slot.add(dw);
        }
        let dx = gradients.get_or_alloc_mut(&x_id)?;
        product((n, inputs, outputs), dx, inputs, true, View::rows(&dy, outputs), View::rows(&memory, inputs));
        Ok(())
    });
    y.put_tape(tape)
}

/// y = x / √(mean(x²) + ε) ⊙ w, row by row (Zhang and Sennrich 2019). w is (1, width).
pub fn rms_norm<T: AnyTape>(x: Hidden<T>, weight: &Weight, epsilon: f32, slot: Option<&Slot>) -> Hidden<T> {
    let (x, mut tape) = x.split_tape();
    let (n, width) = *x.shape();
    let (from, w) = (x.as_vec(), weight.shared());
    let mut to = vec![0.0; n * width];
    let mut inverse = Vec::with_capacity(n);
    for (y, x) in to.chunks_exact_mut(width).zip(from.chunks_exact(width)) {
        let scale = 1.0 / (dot(x, x) / width as f32 + epsilon).sqrt();
        inverse.push(scale);
        y.iter_mut().zip(x).zip(w.iter()).for_each(|((y, x), w)| *y = x * scale * w);
    }
    let y = hidden(to, n, width);

    let (x_id, y_id) = (x.ghost(), y.ghost());
    let slot = slot.cloned();
    tape.add_backward_op(move |gradients| {
        let dy = take(gradients.get_or_alloc_mut(&y_id)?);
        let dx = gradients.get_or_alloc_mut(&x_id)?;
        let mut dw = vec![0.0; if slot.is_some() { width } else { 0 }];
        let mut dn = vec![0.0; width];
        for (row, scale) in inverse.iter().enumerate() {
            let at = row * width..(row + 1) * width;
            let (dy, x, dx) = (&dy[at.clone()], &from[at.clone()], &mut dx[at]);
            dn.iter_mut().zip(dy).zip(w.iter()).for_each(|((n, dy), w)| *n = dy * w);
            let along = dot(&dn, x) * scale * scale * scale / width as f32;
            dx.iter_mut().zip(&dn).zip(x).for_each(|((dx, n), x)| *dx += n * scale - x * along);
            dw.iter_mut().zip(dy).zip(x).for_each(|((dw, dy), x)| *dw += dy * x * scale);
        }
        if let Some(slot) = slot {
            slot.add(dw);
        }
        Ok(())
    });
    y.put_tape(tape)
}

/// y = silu(gate) ⊙ up (Shazeer 2020). All three are (positions, width).
pub fn swiglu<T: AnyTape>(gate: Hidden<T>, up: Hidden<T>) -> Hidden<T> {
    let (gate, tape) = gate.split_tape();
    let (up, other) = up.split_tape();
    let mut tape = tape.merge(other);
    let (n, width) = *gate.shape();
    let (g, u) = (gate.as_vec(), up.as_vec());
    let y = hidden(g.iter().zip(&u).map(|(&g, u)| g * sigmoid(g) * u).collect(), n, width);

    let (gate_id, up_id, y_id) = (gate.ghost(), up.ghost(), y.ghost());
    tape.add_backward_op(move |gradients| {
        let dy = take(gradients.get_or_alloc_mut(&y_id)?);
        let dg = gradients.get_or_alloc_mut(&gate_id)?;
        for (((dg, dy), &g), u) in dg.iter_mut().zip(&dy).zip(&g).zip(&u) {
            let s = sigmoid(g);
            *dg += dy * u * (s + g * s * (1.0 - s));
        }
        let du = gradients.get_or_alloc_mut(&up_id)?;
        du.iter_mut().zip(&dy).zip(&g).for_each(|((du, dy), &g)| *du += dy * g * sigmoid(g));
        Ok(())
    });
    y.put_tape(tape)
}

/// The rows of the embedding that `ids` name: (positions, width).
///
/// # Panics
/// If an id lies outside the vocabulary; whoever makes ids checks them.
pub fn embed(weight: &Weight, ids: &[u32]) -> Hidden {
    let width = weight.cols();
    let values = weight.values();
    hidden(
        ids.iter().flat_map(|&id| &values[id as usize * width..(id as usize + 1) * width]).copied().collect(),
        ids.len(),
        width,
    )
}

/// Runs the tape of `y` backward from the gradient `upstream` of `y`, (positions, width) row-major.
pub fn backward(y: Hidden<Recording>, upstream: Vec<f32>) -> Gradients<f32, Device> {
    let (y, mut tape) = y.split_tape();
    let y_id = y.ghost();
    tape.add_backward_op(move |gradients| {
        gradients.get_or_alloc_mut(&y_id)?.copy_from_slice(&upstream);
        Ok(())
    });
    let end: Tensor<Rank0, f32, Device> = y.device().zeros();
    end.put_tape(tape).backward()
}

/// Takes the gradient of an operation's output; nothing reads it afterwards.
pub(super) fn take(gradient: &mut <Device as Storage<f32>>::Vec) -> Vec<f32> {
    std::mem::take(&mut **gradient)
}

/// Σ a·b over eight running sums, so that it is both fast and accurate.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a8.zip(b8) {
        sums.iter_mut().zip(x).zip(y).for_each(|((s, x), y)| *s += x * y);
    }
    sums.iter().sum::<f32>() + rest
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
