//! How the sequences of a pack are brought together for attention on a GPU: those of about the same length become one batch,
//! padded to the longest. A plan is made once for a layout and serves all blocks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use dfdx::prelude::*;

use super::product::{by_row, constant};
use super::rows::{Index, Return, index};
use crate::ops::{Heads, Layout, Rotary, Span};
use crate::tensor::gpu::{Gpu, Matrix, device, matrix};

/// Rows of a sequence that meet their keys at once.
pub const QUERIES: usize = 512;

/// Heads of a batch: (sequences · key heads, rows, dim).
pub type Batch = Tensor<(usize, usize, usize), f32, Gpu>;

/// What attention needs to know of a layout.
pub struct Plan {
    pub turn: Turn,
    pub parts: Vec<Part>,
}

/// Sequences of about the same length.
pub struct Part {
    /// Sequences, and the rows that each is padded to: queries, keys.
    sequences: usize,
    queries: usize,
    keys: usize,
    /// The pack's rows that they are; None: these are all, in order.
    rows: Option<Rows>,
    /// Added to the scores: 0 where a query may look, else what no score survives; (sequences, queries, keys).
    mask: Batch,
}

struct Rows {
    queries: Index,
    keys: Index,
    /// 1 for a query that is one, 0 for one that pads; (sequences · queries, 1).
    counts: Matrix,
    /// Where the queries' rows come back from.
    back: Return,
    /// Where the keys' do; only without shared beginnings.
    keys_back: Option<Return>,
}

/// The angles of rows: cos and sin, (rows, dim).
pub struct Turn {
    cos: Matrix,
    /// Forward and back.
    sin: [Matrix; 2],
    /// Turns (low, high) into (−high, low): (dim, dim).
    quarter: Matrix,
}

impl Plan {
    /// The plan of a layout, as it was made before if it was.
    pub fn of(layout: &Layout, dim: usize) -> Rc<Self> {
        /// A plan, and what it was made of.
        struct Known {
            spans: Weak<[Span]>,
            dim: usize,
            plan: Rc<Plan>,
        }
        thread_local! {
            static PLANS: RefCell<Vec<Known>> = const { RefCell::new(Vec::new()) };
        }
        PLANS.with_borrow_mut(|plans| {
            plans.retain(|known| known.spans.strong_count() > 0);
            let of_layout = |known: &&Known| known.dim == dim && std::ptr::addr_eq(known.spans.as_ptr(), layout.spans.as_ptr());
            if let Some(known) = plans.iter().find(of_layout) {
                return known.plan.clone();
            }
            let plan = Rc::new(Self::made(layout, dim));
            plans.push(Known { spans: Arc::downgrade(&layout.spans), dim, plan: plan.clone() });
            plan
        })
    }

    fn made(layout: &Layout, dim: usize) -> Self {
        let rows = layout.spans.iter().map(|span| span.rows.end).max().unwrap_or(0);
        let mut positions = vec![0; rows];
        // The rows of a sequence are taken some at a time, so that scores never take more than a share of its square; those of one
        // sequence lie in parts of their own, so that in none a key has two places.
        let mut alike: BTreeMap<(usize, usize, usize), Vec<Rest>> = BTreeMap::new();
        for span in layout.spans.iter() {
            let start = span.start(0);
            span.rows.clone().enumerate().for_each(|(i, row)| positions[row] = start + i);
            for (number, first) in span.rows.clone().step_by(QUERIES).enumerate() {
                let own = first..(first + QUERIES).min(span.rows.end);
                let before = span.before.iter().cloned().chain(std::iter::once(span.rows.start..first)).flatten().collect();
                let rest = Rest { rows: own, before, shares: !span.before.is_empty() };
                let lengths = (number, rest.rows.len().next_power_of_two(), rest.seen().next_power_of_two());
                alike.entry(lengths).or_default().push(rest);
            }
        }
        let parts = alike.into_values().map(|spans| Part::of(&spans, rows)).collect();
        Self { turn: Turn::of(&layout.rotary, dim, positions.into_iter()), parts }
    }
}

/// Some rows of a sequence, and the rows of the pack that stand before them in it.
struct Rest {
    rows: Range<usize>,
    before: Vec<usize>,
    /// Whether some of these are another sequence's too.
    shares: bool,
}

impl Rest {
    /// Keys that its last row looks at.
    fn seen(&self) -> usize {
        self.before.len() + self.rows.len()
    }
}

impl Part {
    /// Of sequences in a pack of so many rows.
    fn of(sequences: &[Rest], rows: usize) -> Self {
        let queries = sequences.iter().map(|rest| rest.rows.len()).max().unwrap_or(0);
        let keys = sequences.iter().map(Rest::seen).max().unwrap_or(0);
        let (mut of_queries, mut of_keys, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        let (mut back, mut keys_back) = (vec![None; rows], vec![None; rows]);
        for (b, rest) in sequences.iter().enumerate() {
            of_queries.extend((0..queries).map(|i| rest.rows.start + i.min(rest.rows.len() - 1)));
            counts.extend((0..queries).map(|i| if i < rest.rows.len() { 1.0 } else { 0.0 }));
            let all: Vec<usize> = rest.before.iter().copied().chain(rest.rows.clone()).collect();
            of_keys.extend((0..keys).map(|j| all[j.min(all.len() - 1)]));
            rest.rows.clone().enumerate().for_each(|(i, row)| back[row] = Some(b * queries + i));
            all.iter().enumerate().for_each(|(j, &row)| keys_back[row] = Some(b * keys + j));
        }
        let in_order = |of: &[usize]| of.len() == rows && of.iter().enumerate().all(|(i, &row)| i == row);
        let shares = sequences.iter().any(|rest| rest.shares);
        let all = in_order(&of_queries) && in_order(&of_keys);
        let mask = mask(queries, keys, sequences.iter().map(|rest| (rest.before.len(), rest.rows.len())));
        Self {
            sequences: sequences.len(),
            queries,
            keys,
            rows: (!all).then(|| Rows {
                queries: index(of_queries),
                keys: index(of_keys),
                counts: matrix(counts, sequences.len() * queries, 1),
                back: Return::of(&back),
                keys_back: (!shares).then(|| Return::of(&keys_back)),
            }),
            mask,
        }
    }

    /// Of one sequence alone, whose rows from `start` on look at all before them.
    pub fn alone(start: usize, rows: usize) -> Self {
        let keys = start + rows;
        Self { sequences: 1, queries: rows, keys, rows: None, mask: mask(rows, keys, [(start, rows)].into_iter()) }
    }

    /// Query heads, those of one key head after another: (sequences · key heads, group · queries, dim).
    pub fn query_heads(&self, q: &Matrix, heads: Heads) -> Batch {
        let x = self.rows.as_ref().map_or_else(|| q.clone(), |rows| q.clone().gather(rows.queries.clone()));
        self.grouped(x, heads)
    }

    /// Gradients of the outputs as query heads: what pads has none.
    pub fn delta_heads(&self, delta: &Matrix, heads: Heads) -> Batch {
        let x = self.rows.as_ref().map_or_else(
            || delta.clone(),
            |rows| {
                let x: Matrix = delta.clone().gather(rows.queries.clone());
                let shape = *x.shape();
                x * by_row(rows.counts.clone(), shape)
            },
        );
        self.grouped(x, heads)
    }

    fn grouped(&self, x: Matrix, heads: Heads) -> Batch {
        let group = heads.queries / heads.keys;
        let x = heads_first(x, (self.sequences, self.queries, heads.queries, heads.dim));
        x.reshape_like(&(self.sequences * heads.keys, group * self.queries, heads.dim))
    }

    /// Key heads, or value heads: (sequences · key heads, keys, dim).
    pub fn key_heads(&self, k: &Matrix, heads: Heads) -> Batch {
        let x = self.rows.as_ref().map_or_else(|| k.clone(), |rows| k.clone().gather(rows.keys.clone()));
        heads_first(x, (self.sequences, self.keys, heads.keys, heads.dim)).reshape_like(&(
            self.sequences * heads.keys,
            self.keys,
            heads.dim,
        ))
    }

    /// The pack's rows of query heads; those of other parts are zero.
    pub fn queries_back(&self, x: Batch, heads: Heads) -> Matrix {
        let x = heads_last(x, (self.sequences, self.queries, heads.queries, heads.dim));
        self.rows.as_ref().map_or_else(|| x.clone(), |rows| rows.back.rows(x.clone()))
    }

    /// The same of key heads.
    pub fn keys_back(&self, x: Batch, heads: Heads) -> Matrix {
        let x = heads_last(x, (self.sequences, self.keys, heads.keys, heads.dim));
        match &self.rows {
            None => x,
            Some(Rows { keys_back: Some(back), .. }) => back.rows(x),
            Some(_) => unreachable!("there is no way back to what is shared"),
        }
    }

    /// Scores, the future hidden: (sequences · key heads · group · queries, keys).
    pub fn masked(&self, scores: Batch, heads: Heads) -> Matrix {
        let shape = (self.sequences, heads.queries, self.queries, self.keys);
        let scores = scores.reshape_like(&shape) + self.mask.clone().broadcast_like::<_, Axis<1>>(&shape);
        scores.reshape_like(&(self.sequences * heads.queries * self.queries, self.keys))
    }
}

/// For sequences of which a query at i stands at `start + i`; rows beyond a sequence's own look at its first key.
fn mask(queries: usize, keys: usize, sequences: impl Iterator<Item = (usize, usize)>) -> Batch {
    let mut values = Vec::new();
    for (start, rows) in sequences {
        for i in 0..queries {
            let seen = if i < rows { start + i + 1 } else { 1 };
            values.extend((0..keys).map(|j| if j < seen { 0.0 } else { f32::MIN }));
        }
    }
    let sequences = values.len() / (queries * keys).max(1);
    device().tensor_from_vec(values, (sequences, queries, keys))
}

/// (sequences · rows, heads · dim) → (sequences, heads, rows, dim), as it lies then.
fn heads_first(
    x: Matrix,
    (sequences, rows, heads, dim): (usize, usize, usize, usize),
) -> Tensor<(usize, usize, usize, usize), f32, Gpu> {
    let x = x.reshape_like(&(sequences, rows, heads, dim));
    in_order(x.permute::<(usize, usize, usize, usize), Axes4<0, 2, 1, 3>>())
}

/// The way back: (sequences · heads, rows, dim) → (sequences · rows, heads · dim).
fn heads_last(x: Batch, (sequences, rows, heads, dim): (usize, usize, usize, usize)) -> Matrix {
    let x = x.reshape_like(&(sequences, heads, rows, dim));
    in_order(x.permute::<(usize, usize, usize, usize), Axes4<0, 2, 1, 3>>()).reshape_like(&(sequences * rows, heads * dim))
}

/// The same values lying in the order of their axes: an operation on two tensors writes them so.
fn in_order(x: Tensor<(usize, usize, usize, usize), f32, Gpu>) -> Tensor<(usize, usize, usize, usize), f32, Gpu> {
    let shape = *x.shape();
    let one: Tensor<Rank0, f32, Gpu> = constant(1, 1, 1.0).reshape_like(&());
    x * one.broadcast_like::<_, Axes4<0, 1, 2, 3>>(&shape)
}

impl Turn {
    /// Of rows at these positions.
    pub fn of(rotary: &Rotary, dim: usize, positions: impl ExactSizeIterator<Item = usize>) -> Self {
        let (rows, half) = (positions.len(), dim / 2);
        let (mut cos, mut sin) = (Vec::with_capacity(rows * dim), Vec::with_capacity(rows * dim));
        for position in positions {
            let at = position * half..(position + 1) * half;
            (0..2).for_each(|_| cos.extend_from_slice(&rotary.cos[at.clone()]));
            (0..2).for_each(|_| sin.extend_from_slice(&rotary.sin[at.clone()]));
        }
        let mut quarter = vec![0.0; dim * dim];
        for i in 0..half {
            quarter[(i + half) * dim + i] = -1.0;
            quarter[i * dim + i + half] = 1.0;
        }
        let back = sin.iter().map(|sin| -sin).collect();
        let sin = [matrix(sin, rows, dim), matrix(back, rows, dim)];
        Self { cos: matrix(cos, rows, dim), sin, quarter: matrix(quarter, dim, dim) }
    }

    /// Every head of every row turned by its position's angles.
    pub fn turned(&self, x: Matrix) -> Matrix {
        self.by(x, &self.sin[0])
    }

    /// The way back.
    pub fn turned_back(&self, x: Matrix) -> Matrix {
        self.by(x, &self.sin[1])
    }

    fn by(&self, x: Matrix, sin: &Matrix) -> Matrix {
        let ((rows, width), (dim, _)) = (*x.shape(), *self.quarter.shape());
        let whole = (rows, width / dim, dim);
        let beside = |table: &Matrix| table.clone().broadcast_like::<_, Axis<1>>(&whole);
        let across = x.clone().reshape_like(&(rows * (width / dim), dim)).matmul(self.quarter.clone()).reshape_like(&whole);
        let turned = x.reshape_like(&whole) * beside(&self.cos) + across * beside(sin);
        turned.reshape_like(&(rows, width))
    }
}
