//! A KV cache on a GPU: room for all positions from the start, into which rows are added where zeros are, because dfdx
//! writes into no tensor.

use dfdx::prelude::*;

use super::attention::attended;
use super::rows::Return;
use super::spans::{Part, QUERIES, Turn};
use crate::ops::{Heads, Layout};
use crate::tensor::gpu::{Matrix, added, device};

/// Keys, rotated, and values of what was read before, sequence by sequence: a layer's part of a KV cache.
#[derive(Clone)]
pub struct Past {
    sequences: Vec<Remembered>,
    /// Of each sequence at most.
    positions: usize,
}

#[derive(Clone)]
struct Remembered {
    /// (positions, keys · dim), of which the first `len` rows were read.
    keys: Matrix,
    values: Matrix,
    len: usize,
}

impl Past {
    /// Of so many sequences nothing was read; each has room for so many positions, with so many numbers of keys, and of values.
    pub fn new(sequences: usize, positions: usize, width: usize) -> Self {
        let nothing = || device().zeros_like(&(positions, width));
        let one = || Remembered { keys: nothing(), values: nothing(), len: 0 };
        Self { sequences: (0..sequences).map(|_| one()).collect(), positions }
    }
}

impl std::fmt::Debug for Past {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} sequences on a GPU", self.sequences.len())
    }
}

/// Attention of every sequence's rows to what was read of it and to themselves.
pub fn with_past((q, k, v): (Matrix, Matrix, Matrix), heads: Heads, layout: &Layout, past: &mut Past) -> Matrix {
    let total = q.shape().0;
    let mut outputs: Option<Matrix> = None;
    for span in layout.spans.iter() {
        let positions = past.positions;
        let remembered = &mut past.sequences[span.past];
        let (start, rows) = (remembered.len, span.rows.len());
        let own = |x: &Matrix| -> Matrix { x.clone().slice((span.rows.clone(), ..)) };
        let turn = Turn::of(&layout.rotary, heads.dim, start..start + rows);
        let place = Return::within(positions, start..start + rows);
        remembered.keys = remembered.keys.clone() + place.rows(turn.turned(own(&k)));
        remembered.values = remembered.values.clone() + place.rows(own(&v));
        remembered.len += rows;

        let q = turn.turned(own(&q));
        for first in (0..rows).step_by(QUERIES) {
            let now = first..(first + QUERIES).min(rows);
            let part = Part::alone(start + first, now.len());
            let read = |all: &Matrix| -> Matrix { all.clone().slice((0..start + now.end, ..)) };
            let q = part.query_heads(&q.clone().slice((now.clone(), ..)), heads);
            let (k, v) = (part.key_heads(&read(&remembered.keys), heads), part.key_heads(&read(&remembered.values), heads));
            let o = part.queries_back(attended(&part, (q, &k, v), heads), heads);
            let back = Return::within(total, span.rows.start + now.start..span.rows.start + now.end).rows(o);
            outputs = Some(added(outputs, back));
        }
    }
    outputs.unwrap_or(q)
}
