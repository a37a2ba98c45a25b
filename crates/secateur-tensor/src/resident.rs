//! Weights on the GPU. A weight that is used is brought there and stays, while there is room; one that finds no room is brought
//! again whenever its block's turn comes. Walks pass all blocks in turn, so keeping the first comers saves as many transfers
//! as any other choice would.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use dfdx::prelude::HasShape;

use crate::activations::gpu;
use crate::activations::gpu::{GpuHalfMatrix, GpuMatrix};
use crate::pinned;
use crate::weight::{Precision, Weight};

/// A weight as a GPU holds it.
#[derive(Clone)]
pub enum GpuWeight {
    F32(GpuMatrix),
    F16(GpuHalfMatrix),
}

impl GpuWeight {
    /// In f32.
    pub fn into_f32(self) -> GpuMatrix {
        match self {
            Self::F32(matrix) => matrix,
            Self::F16(matrix) => matrix.to_dtype(),
        }
    }

    fn bytes(&self) -> u64 {
        let ((rows, cols), element) = match self {
            Self::F32(matrix) => (*matrix.shape(), Precision::Float32),
            Self::F16(matrix) => (*matrix.shape(), Precision::Float16),
        };
        (rows * cols) as u64 * element.bytes()
    }
}

/// What is on the GPU. A name that is dead is nobody's, and its address is not used again while it is here.
struct GpuWeightCache {
    /// By the address of a weight's name: what stays.
    resident: HashMap<usize, (Weak<()>, GpuWeight)>,
    /// The same: what is there for a while, and how often it was lent.
    leased: HashMap<usize, (usize, GpuWeight)>,
    /// Bytes of what stays.
    resident_bytes: u64,
    /// Bytes that it may take.
    capacity_bytes: u64,
}

thread_local! {
    static GPU_WEIGHT_CACHE: RefCell<GpuWeightCache> =
        RefCell::new(GpuWeightCache { resident: HashMap::new(), leased: HashMap::new(), resident_bytes: 0, capacity_bytes: u64::MAX });
}

/// Lets weights that stay take so many bytes, and forgets those that are there.
pub fn set_capacity(bytes: u64) {
    GPU_WEIGHT_CACHE.with_borrow_mut(|there| {
        there.resident.clear();
        (there.resident_bytes, there.capacity_bytes) = (0, bytes);
    });
}

/// Makes ready for a walk that multiplies by these weights: if they find no room beside those of other models, the others go.
/// Returns whether all of them can stay, and how many bytes of them are still to come.
pub fn reserve_space<'w>(weights: impl Iterator<Item = &'w Weight>) -> (bool, u64) {
    GPU_WEIGHT_CACHE.with_borrow_mut(|there| {
        there.remove_dropped();
        let mut own = HashSet::new();
        let mut missing = 0;
        for weight in weights {
            if own.insert(identity_address(weight))
                && !there.resident.contains_key(&identity_address(weight))
            {
                missing += weight.len() as u64 * weight.precision().bytes();
            }
        }
        if there.resident_bytes + missing > there.capacity_bytes {
            there.resident.retain(|at, _| own.contains(at));
            there.resident_bytes = there.resident.values().map(|(_, held)| held.bytes()).sum();
        }
        (
            there.resident_bytes + missing <= there.capacity_bytes,
            missing,
        )
    })
}

/// Bytes of the weights that stay.
pub fn resident_bytes() -> u64 {
    GPU_WEIGHT_CACHE.with_borrow(|there| there.resident_bytes)
}

/// A weight that is on the GPU for a while.
pub struct GpuLease(usize);

impl Drop for GpuLease {
    fn drop(&mut self) {
        GPU_WEIGHT_CACHE.with_borrow_mut(|there| {
            if let Some((times, _)) = there.leased.get_mut(&self.0) {
                *times -= 1;
                if *times == 0 {
                    there.leased.remove(&self.0);
                }
            }
        });
    }
}

/// The weight on the GPU for as long as this is held; None where this thread computes elsewhere, or the weight stays anyway.
pub(super) fn lease(weight: &Weight) -> Option<GpuLease> {
    if !gpu::is_selected() {
        return None;
    }
    let (at, held) = (identity_address(weight), get_or_upload(weight));
    GPU_WEIGHT_CACHE.with_borrow_mut(|there| {
        if there.resident.contains_key(&at) {
            return None;
        }
        there.leased.entry(at).or_insert((0, held)).0 += 1;
        Some(GpuLease(at))
    })
}

/// The weight on the GPU: as it is there, or brought there now.
pub(super) fn get_or_upload(weight: &Weight) -> GpuWeight {
    let at = identity_address(weight);
    let found = GPU_WEIGHT_CACHE.with_borrow(|there| {
        let kept = there.resident.get(&at).map(|(_, held)| held);
        kept.or_else(|| there.leased.get(&at).map(|(_, held)| held))
            .cloned()
    });
    found.unwrap_or_else(|| {
        let held = upload(weight);
        GPU_WEIGHT_CACHE.with_borrow_mut(|there| there.insert_if_fits(weight, &held));
        held
    })
}

/// Whether the weight is on the GPU.
pub(super) fn is_on_gpu(weight: &Weight) -> bool {
    let at = identity_address(weight);
    GPU_WEIGHT_CACHE
        .with_borrow(|there| there.resident.contains_key(&at) || there.leased.contains_key(&at))
}

fn identity_address(weight: &Weight) -> usize {
    Arc::as_ptr(weight.identity()) as usize
}

fn upload(weight: &Weight) -> GpuWeight {
    let (values, shape) = (weight.values(), (weight.rows(), weight.cols()));
    match weight.precision() {
        Precision::Float32 => GpuWeight::F32(pinned::upload_f32(&values, shape)),
        Precision::Float16 => GpuWeight::F16(pinned::upload_f16(&values, shape)),
    }
}

impl GpuWeightCache {
    fn insert_if_fits(&mut self, weight: &Weight, held: &GpuWeight) {
        self.remove_dropped();
        if self.resident_bytes + held.bytes() <= self.capacity_bytes {
            self.resident_bytes += held.bytes();
            self.resident.insert(
                identity_address(weight),
                (Arc::downgrade(weight.identity()), held.clone()),
            );
        }
    }

    /// Weights that nobody has any more go.
    fn remove_dropped(&mut self) {
        let Self {
            resident: kept,
            resident_bytes: taken,
            ..
        } = self;
        kept.retain(|_, (name, held)| {
            let lives = name.strong_count() > 0;
            *taken -= if lives { 0 } else { held.bytes() };
            lives
        });
    }
}
