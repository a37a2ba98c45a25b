//! Memory of this process and of the machine.
//!
//! This module also sets the global allocator of every program that links this crate: `mimalloc`,
//! wrapped in `cap`, which counts the allocated bytes. It is here, not in the program, because
//! [`peak_allocated_bytes`] reads the counter and because tests and benchmarks, which are programs
//! of their own, must measure and run with the same allocator. A program that links this crate
//! cannot set another global allocator.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cap::Cap;
use mimalloc::MiMalloc;

/// `mimalloc` keeps freed large blocks for the next allocation. Activations of the same size are
/// allocated and freed for every operation; with the system's allocator each of them would be
/// returned to the system and mapped again. `usize::MAX` means that `cap` sets no limit.
#[global_allocator]
static ALLOCATOR: Cap<MiMalloc> = Cap::new(MiMalloc, usize::MAX);

/// Time between two readings of the counter in [`peak_allocated_bytes`].
const SAMPLING_INTERVAL: Duration = Duration::from_micros(200);

/// Runs `work` and returns the largest number of bytes that were allocated during it, beyond those
/// allocated before.
///
/// A second thread reads the allocator's counter every 200 µs, so a shorter peak can be missed.
/// Freed blocks that the allocator keeps are not counted.
pub fn peak_allocated_bytes(work: impl FnOnce()) -> u64 {
    let allocated_before = ALLOCATOR.allocated();
    let is_done = AtomicBool::new(false);
    let sample_until_done = || {
        let mut peak = allocated_before;
        while !is_done.load(Ordering::Relaxed) {
            peak = peak.max(ALLOCATOR.allocated());
            std::thread::sleep(SAMPLING_INTERVAL);
        }
        peak
    };
    let peak = std::thread::scope(|scope| {
        let sampler = scope.spawn(sample_until_done);
        work();
        is_done.store(true, Ordering::Relaxed);
        sampler.join().unwrap_or(allocated_before)
    });
    (peak - allocated_before) as u64
}

/// Resets the kernel's record of the largest resident memory, so that [`peak_resident_bytes`]
/// covers only what follows. Has an effect on Linux only.
pub fn reset_peak_resident() {
    // "5" resets VmHWM (proc(5)). Without the file the reading covers the whole process.
    drop(fs::write("/proc/self/clear_refs", "5"));
}

/// The largest resident memory of the process since the last reset, in bytes. `None` on systems
/// other than Linux.
pub fn peak_resident_bytes() -> Option<u64> {
    proc_status_bytes("VmHWM:")
}

/// The resident memory of the process, in bytes; 0 on systems other than Linux.
pub fn resident_bytes() -> u64 {
    proc_status_bytes("VmRSS:").unwrap_or(0)
}

/// Reads a line of `/proc/self/status` such as `VmRSS:     5120 kB`. Returns bytes.
fn proc_status_bytes(key: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kibibytes: u64 = value.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Memory that can still be allocated, in bytes: of the machine, or of the limit of this process's
/// control group (container) if that leaves less.
pub fn available_bytes() -> u64 {
    let system = refreshed_system();
    let machine_available = system.available_memory();
    let Some(limits) = system.cgroup_limits() else {
        return machine_available;
    };
    // `rss`, not the group's total use: that includes cached files, whose memory the kernel frees
    // when it is needed.
    let group_available = limits.total_memory.saturating_sub(limits.rss);
    group_available.min(machine_available)
}

/// The memory of the machine, or the limit of this process's control group, in bytes; 0 where the
/// system does not report it.
pub fn total_bytes() -> u64 {
    let system = refreshed_system();
    system
        .cgroup_limits()
        .map_or(system.total_memory(), |limits| limits.total_memory)
}

fn refreshed_system() -> sysinfo::System {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    system
}
