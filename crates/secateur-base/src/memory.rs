//! How much memory the process takes.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cap::Cap;
use mimalloc::MiMalloc;

/// Keeps large pieces of memory for the next operation, because activations of one size come and go; and counts what is in use.
#[global_allocator]
static ALLOCATOR: Cap<MiMalloc> = Cap::new(MiMalloc, usize::MAX);

/// What `work` allocated on top of what there was, at its most, in bytes; looked at every few hundred microseconds. What the
/// allocator keeps to itself does not count.
pub fn peak_allocated_bytes(work: impl FnOnce()) -> u64 {
    let (before, is_done) = (ALLOCATOR.allocated(), AtomicBool::new(false));
    let most = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut most = before;
            while !is_done.load(Ordering::Relaxed) {
                most = most.max(ALLOCATOR.allocated());
                std::thread::sleep(Duration::from_micros(200));
            }
            most
        });
        work();
        is_done.store(true, Ordering::Relaxed);
        watching.join().unwrap_or(before)
    });
    (most - before) as u64
}

/// Forgets the largest memory so far, so that the next reading is of what follows. Only Linux has it.
pub fn reset_peak_resident() {
    drop(fs::write("/proc/self/clear_refs", "5"));
}

/// The process's largest memory since the last reset, in bytes.
pub fn peak_resident_bytes() -> Option<u64> {
    proc_status_bytes("VmHWM:")
}

/// The process's memory now, in bytes; 0 where the system does not tell.
pub fn resident_bytes() -> u64 {
    proc_status_bytes("VmRSS:").unwrap_or(0)
}

/// A line of the kernel's account of the process, in bytes. Only Linux has it.
fn proc_status_bytes(key: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(
        line.trim()
            .strip_suffix(" kB")?
            .trim()
            .parse::<u64>()
            .ok()?
            * 1024,
    )
}

/// Memory that nobody uses, in bytes: of the machine, or of the share of it that this process is allowed.
pub fn available_bytes() -> u64 {
    let system = refreshed_system();
    let available = system.available_memory();
    // the cache of files that a container has read is not lost to it
    system.cgroup_limits().map_or(available, |limits| {
        limits
            .total_memory
            .saturating_sub(limits.rss)
            .min(available)
    })
}

/// All memory there is, in bytes; 0 where the system does not tell.
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
