//! How much memory the process took.

use std::fs;

/// Forgets the largest memory so far, so that the next reading is of what follows. Only Linux has it.
pub fn reset_peak() {
    drop(fs::write("/proc/self/clear_refs", "5"));
}

/// The process's largest memory since the last reset, in bytes.
pub fn peak() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}
