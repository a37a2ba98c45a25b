//! Weights in the GPU's memory.
//!
//! A weight that is used is uploaded and stays while there is room. One that finds no room is
//! uploaded again each time its block is computed. A walk uses all blocks in turn, so every weight
//! is needed equally often, and keeping the first ones saves as many uploads as any other choice.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use dfdx::prelude::HasShape;

use crate::gpu::{self, GpuHalfMatrix, GpuMatrix};
use crate::pinned_upload;
use crate::weight::{Precision, Weight};

/// A weight as the GPU holds it.
#[derive(Clone)]
pub(crate) enum GpuWeight {
    F32(GpuMatrix),
    F16(GpuHalfMatrix),
}

impl GpuWeight {
    /// The weight in f32.
    pub(crate) fn into_f32(self) -> GpuMatrix {
        match self {
            Self::F32(matrix) => matrix,
            Self::F16(matrix) => matrix.to_dtype(),
        }
    }

    fn bytes(&self) -> u64 {
        let ((rows, cols), precision) = match self {
            Self::F32(matrix) => (*matrix.shape(), Precision::Float32),
            Self::F16(matrix) => (*matrix.shape(), Precision::Float16),
        };
        (rows * cols) as u64 * precision.bytes()
    }
}

/// The address of a weight's identity, see `Weight::identity`.
type IdentityAddress = usize;

/// A weight that stays.
struct ResidentWeight {
    /// Dead once the weight is dropped. It keeps the address of the identity from being reused, so
    /// a dead entry never matches another weight.
    identity: Weak<()>,
    matrix: GpuWeight,
}

/// A weight that found no room to stay, held while leases on it exist.
struct LeasedWeight {
    lease_count: usize,
    matrix: GpuWeight,
}

struct GpuWeightCache {
    resident: HashMap<IdentityAddress, ResidentWeight>,
    leased: HashMap<IdentityAddress, LeasedWeight>,
    /// Bytes of the resident weights.
    resident_bytes: u64,
    /// Bytes that the resident weights may take.
    capacity_bytes: u64,
}

thread_local! {
    static GPU_WEIGHT_CACHE: RefCell<GpuWeightCache> = RefCell::new(GpuWeightCache {
        resident: HashMap::new(),
        leased: HashMap::new(),
        resident_bytes: 0,
        capacity_bytes: u64::MAX,
    });
}

/// Sets the bytes that resident weights may take, and drops all resident weights.
pub fn set_capacity(bytes: u64) {
    GPU_WEIGHT_CACHE.with_borrow_mut(|cache| {
        cache.resident.clear();
        (cache.resident_bytes, cache.capacity_bytes) = (0, bytes);
    });
}

/// Prepares for a walk that uses these weights: if they find no room beside those of other models,
/// the others are dropped. Returns whether all of them can stay, and the bytes of those not yet
/// uploaded.
pub fn reserve_space<'w>(weights: impl Iterator<Item = &'w Weight>) -> (bool, u64) {
    GPU_WEIGHT_CACHE.with_borrow_mut(|cache| {
        cache.remove_dropped();
        let mut wanted = HashSet::new();
        let mut missing_bytes = 0;
        for weight in weights {
            let address = identity_address(weight);
            let is_first_use = wanted.insert(address);
            if is_first_use && !cache.resident.contains_key(&address) {
                missing_bytes += weight.len() as u64 * weight.precision().bytes();
            }
        }
        if cache.resident_bytes + missing_bytes > cache.capacity_bytes {
            cache.resident.retain(|address, _| wanted.contains(address));
            let kept = cache.resident.values();
            cache.resident_bytes = kept.map(|resident| resident.matrix.bytes()).sum();
        }
        let all_fit = cache.resident_bytes + missing_bytes <= cache.capacity_bytes;
        (all_fit, missing_bytes)
    })
}

/// Bytes of the resident weights.
pub fn resident_bytes() -> u64 {
    GPU_WEIGHT_CACHE.with_borrow(|cache| cache.resident_bytes)
}

/// Keeps a weight on the GPU that found no room to stay, until it is dropped.
pub struct GpuLease(IdentityAddress);

impl Drop for GpuLease {
    fn drop(&mut self) {
        GPU_WEIGHT_CACHE.with_borrow_mut(|cache| {
            if let Some(leased) = cache.leased.get_mut(&self.0) {
                leased.lease_count -= 1;
                if leased.lease_count == 0 {
                    cache.leased.remove(&self.0);
                }
            }
        });
    }
}

impl Weight {
    /// The weight on the GPU, in its precision: from the cache, or uploaded now from memory.
    pub(crate) fn to_gpu(&self) -> GpuWeight {
        let address = identity_address(self);
        let cached = GPU_WEIGHT_CACHE.with_borrow(|cache| cache.find(address).cloned());
        cached.unwrap_or_else(|| {
            let uploaded = upload(self);
            GPU_WEIGHT_CACHE.with_borrow_mut(|cache| cache.insert_if_fits(self, &uploaded));
            uploaded
        })
    }

    /// The weight on the GPU, in f32.
    pub(crate) fn to_gpu_f32(&self) -> GpuMatrix {
        self.to_gpu().into_f32()
    }

    /// Whether this thread computes on the GPU and the GPU holds the weight, resident or leased.
    pub fn is_on_gpu(&self) -> bool {
        if !gpu::is_selected() {
            return false;
        }
        let address = identity_address(self);
        GPU_WEIGHT_CACHE.with_borrow(|cache| cache.find(address).is_some())
    }

    /// Uploads the weight, which is in memory or on the GPU already, and keeps it on the GPU until
    /// the lease is dropped. None if the current thread computes on the CPU, or if the weight is
    /// resident and needs no lease.
    pub fn lease_on_gpu(&self) -> Option<GpuLease> {
        if !gpu::is_selected() {
            return None;
        }
        let (address, matrix) = (identity_address(self), self.to_gpu());
        GPU_WEIGHT_CACHE.with_borrow_mut(|cache| {
            if cache.resident.contains_key(&address) {
                return None;
            }
            let leased = cache.leased.entry(address).or_insert(LeasedWeight {
                lease_count: 0,
                matrix,
            });
            leased.lease_count += 1;
            Some(GpuLease(address))
        })
    }
}

fn identity_address(weight: &Weight) -> IdentityAddress {
    Arc::as_ptr(weight.identity()) as usize
}

fn upload(weight: &Weight) -> GpuWeight {
    let (values, shape) = (weight.values(), (weight.rows(), weight.cols()));
    match weight.precision() {
        Precision::Float32 => GpuWeight::F32(pinned_upload::upload_f32(values, shape)),
        Precision::Float16 => GpuWeight::F16(pinned_upload::upload_f16(values, shape)),
    }
}

impl GpuWeightCache {
    fn find(&self, address: IdentityAddress) -> Option<&GpuWeight> {
        let resident = self.resident.get(&address).map(|entry| &entry.matrix);
        resident.or_else(|| self.leased.get(&address).map(|entry| &entry.matrix))
    }

    fn insert_if_fits(&mut self, weight: &Weight, matrix: &GpuWeight) {
        self.remove_dropped();
        if self.resident_bytes + matrix.bytes() <= self.capacity_bytes {
            self.resident_bytes += matrix.bytes();
            let entry = ResidentWeight {
                identity: Arc::downgrade(weight.identity()),
                matrix: matrix.clone(),
            };
            self.resident.insert(identity_address(weight), entry);
        }
    }

    /// Removes the weights of which no clone exists any more.
    fn remove_dropped(&mut self) {
        let resident_bytes = &mut self.resident_bytes;
        self.resident.retain(|_, entry| {
            let is_alive = entry.identity.strong_count() > 0;
            if !is_alive {
                *resident_bytes -= entry.matrix.bytes();
            }
            is_alive
        });
    }
}
