//! What identifies this process to other processes and on other machines.

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// A process: its id alone may be given to another process after it has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// The name of the machine; empty where the system has none.
    pub host: String,
    /// The process id.
    pub id: u32,
    /// When the process began, in seconds since 1970; 0 where the system does not report it.
    pub began: u64,
}

impl ProcessIdentity {
    /// The identity of this process.
    pub fn current() -> Self {
        let id = std::process::id();
        let pid = Pid::from_u32(id);
        let mut system = System::new();
        system.refresh_processes_specifics(
            ProcessesToUpdate::Some(&[pid]),
            false,
            ProcessRefreshKind::nothing(),
        );
        Self {
            host: System::host_name().unwrap_or_default(),
            id,
            began: system.process(pid).map_or(0, sysinfo::Process::start_time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_began_before_now_and_keeps_its_identity() {
        let identity = ProcessIdentity::current();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.expect("after 1970").as_secs();
        assert!(
            identity.began > 0 && identity.began <= now + 1,
            "{identity:?}"
        );
        assert_eq!(identity, ProcessIdentity::current());
    }
}
