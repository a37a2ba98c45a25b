//! Weights on the GPU. A weight that is used is brought there and stays, while there is room; one that finds no room is brought
//! again whenever its block's turn comes. Walks pass all blocks in turn, so keeping the first comers saves as many transfers
//! as any other choice would.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use dfdx::prelude::HasShape;

use super::gpu::{HalfMatrix, Matrix};
use super::weight::{Precision, Weight};
use super::{gpu, pinned};

/// A weight as a GPU holds it.
#[derive(Clone)]
pub enum Held {
    Single(Matrix),
    Half(HalfMatrix),
}

impl Held {
    /// In f32.
    pub fn widened(self) -> Matrix {
        match self {
            Self::Single(matrix) => matrix,
            Self::Half(matrix) => matrix.to_dtype(),
        }
    }

    fn bytes(&self) -> u64 {
        let ((rows, cols), element) = match self {
            Self::Single(matrix) => (*matrix.shape(), Precision::Float32),
            Self::Half(matrix) => (*matrix.shape(), Precision::Float16),
        };
        (rows * cols) as u64 * element.bytes()
    }
}

/// What is on the GPU. A name that is dead is nobody's, and its address is not used again while it is here.
struct There {
    /// By the address of a weight's name: what stays.
    kept: HashMap<usize, (Weak<()>, Held)>,
    /// The same: what is there for a while, and how often it was lent.
    lent: HashMap<usize, (usize, Held)>,
    /// Bytes of what stays.
    taken: u64,
    /// Bytes that it may take.
    room: u64,
}

thread_local! {
    static THERE: RefCell<There> =
        RefCell::new(There { kept: HashMap::new(), lent: HashMap::new(), taken: 0, room: u64::MAX });
}

/// Lets weights that stay take so many bytes, and forgets those that are there.
pub fn set_room(bytes: u64) {
    THERE.with_borrow_mut(|there| {
        there.kept.clear();
        (there.taken, there.room) = (0, bytes);
    });
}

/// Makes ready for a walk that multiplies by these weights: if they find no room beside those of other models, the others go.
/// Returns whether all of them can stay, and how many bytes of them are still to come.
pub fn settle<'w>(weights: impl Iterator<Item = &'w Weight>) -> (bool, u64) {
    THERE.with_borrow_mut(|there| {
        there.forget_dead();
        let mut own = HashSet::new();
        let mut missing = 0;
        for weight in weights {
            if own.insert(address(weight)) && !there.kept.contains_key(&address(weight)) {
                missing += weight.len() as u64 * weight.precision().bytes();
            }
        }
        if there.taken + missing > there.room {
            there.kept.retain(|at, _| own.contains(at));
            there.taken = there.kept.values().map(|(_, held)| held.bytes()).sum();
        }
        (there.taken + missing <= there.room, missing)
    })
}

/// Bytes of the weights that stay.
pub fn taken() -> u64 {
    THERE.with_borrow(|there| there.taken)
}

/// A weight that is on the GPU for a while.
pub struct Lent(usize);

impl Drop for Lent {
    fn drop(&mut self) {
        THERE.with_borrow_mut(|there| {
            if let Some((times, _)) = there.lent.get_mut(&self.0) {
                *times -= 1;
                if *times == 0 {
                    there.lent.remove(&self.0);
                }
            }
        });
    }
}

/// The weight on the GPU for as long as this is held; None where this thread computes elsewhere, or the weight stays anyway.
pub(super) fn lent(weight: &Weight) -> Option<Lent> {
    if !gpu::is_selected() {
        return None;
    }
    let (at, held) = (address(weight), held(weight));
    THERE.with_borrow_mut(|there| {
        if there.kept.contains_key(&at) {
            return None;
        }
        there.lent.entry(at).or_insert((0, held)).0 += 1;
        Some(Lent(at))
    })
}

/// The weight on the GPU: as it is there, or brought there now.
pub(super) fn held(weight: &Weight) -> Held {
    let at = address(weight);
    let found = THERE.with_borrow(|there| {
        let kept = there.kept.get(&at).map(|(_, held)| held);
        kept.or_else(|| there.lent.get(&at).map(|(_, held)| held)).cloned()
    });
    found.unwrap_or_else(|| {
        let held = brought(weight);
        THERE.with_borrow_mut(|there| there.keep(weight, &held));
        held
    })
}

/// Whether the weight is on the GPU.
pub(super) fn is_there(weight: &Weight) -> bool {
    let at = address(weight);
    THERE.with_borrow(|there| there.kept.contains_key(&at) || there.lent.contains_key(&at))
}

fn address(weight: &Weight) -> usize {
    Arc::as_ptr(weight.name()) as usize
}

fn brought(weight: &Weight) -> Held {
    let (values, shape) = (weight.values(), (weight.rows(), weight.cols()));
    match weight.precision() {
        Precision::Float32 => Held::Single(pinned::brought(&values, shape)),
        Precision::Float16 => Held::Half(pinned::halved(&values, shape)),
    }
}

impl There {
    fn keep(&mut self, weight: &Weight, held: &Held) {
        self.forget_dead();
        if self.taken + held.bytes() <= self.room {
            self.taken += held.bytes();
            self.kept.insert(address(weight), (Arc::downgrade(weight.name()), held.clone()));
        }
    }

    /// Weights that nobody has any more go.
    fn forget_dead(&mut self) {
        let Self { kept, taken, .. } = self;
        kept.retain(|_, (name, held)| {
            let lives = name.strong_count() > 0;
            *taken -= if lives { 0 } else { held.bytes() };
            lives
        });
    }
}
