//! Locks between processes that share a folder.
//!
//! The locks are advisory locks of the operating system on empty files. The system releases them
//! when a process ends, in whatever way, so no stale lock has to be detected. The protocol:
//!
//! - `<folder>/.lock` is held *shared* by every process that works in the folder, until its
//!   [`SharedFolder`] is dropped. A process that obtains it *exclusively* when it opens the folder
//!   is the only one in it: then, and only then, unfinished files belong to a killed process and
//!   may be removed.
//! - `<folder>/.locks/<name>` is held *exclusively* by the process that works on the item `<name>`,
//!   until its [`Claim`] is dropped.
//!
//! Some network file systems have no locks. Every claim is then granted at once, nothing is removed
//! as left over, and only one process at a time may use the folder.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::files::names::LOCK_FILE_NAME;
use crate::files::{FileError, FolderFault, check_writable, create_folder, remove_leftovers};

/// The subfolder with one lock file for each claimed item.
const CLAIMS_FOLDER_NAME: &str = ".locks";

/// A folder in which several processes may work at the same time.
#[derive(Debug)]
pub struct SharedFolder {
    path: PathBuf,
    /// The shared lock on `.lock`. Released when this value is dropped. `None` where the file
    /// system has no locks.
    lock: Option<File>,
    leftover_failures: Vec<FileError>,
}

/// The exclusive right to work on one item of a shared folder. Released when it is dropped.
#[derive(Debug)]
pub struct Claim {
    /// `None` where the file system has no locks.
    _lock: Option<File>,
}

/// Whether processes can share a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockSupport {
    Available,
    /// The file system has no locks.
    Missing,
}

impl SharedFolder {
    /// Creates the folder if needed and takes the shared lock. If no other process is in the
    /// folder, removes what killed processes left there.
    ///
    /// # Errors
    /// If the folder cannot be created or its lock file cannot be locked.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        create_folder(path)?;
        let lock_path = path.join(LOCK_FILE_NAME);
        let failed = |source| FileError::lock(&lock_path, source);
        let lock = open_lock_file(&lock_path).map_err(failed)?;
        let path = path.to_owned();
        let mut leftover_failures = Vec::new();
        match lock.try_lock() {
            Ok(()) => {
                leftover_failures = remove_leftovers(&path);
                // Every holder of a claim also holds the shared lock, so none of these files is in
                // use. Files that cannot be removed do no harm: they are locked again when needed.
                drop(fs::remove_dir_all(path.join(CLAIMS_FOLDER_NAME)));
                lock.unlock().map_err(failed)?;
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) if is_without_locks(&error) => {
                return Ok(Self {
                    path,
                    lock: None,
                    leftover_failures,
                });
            }
            Err(TryLockError::Error(error)) => return Err(failed(explain(error))),
        }
        // Waits while another process that found itself alone removes leftovers.
        lock.lock_shared().map_err(failed)?;
        for failure in &leftover_failures {
            tracing::warn!("the rest of a run that was killed stays: {failure}");
        }
        Ok(Self {
            path,
            lock: Some(lock),
            leftover_failures,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why files that killed processes left are still there.
    pub fn leftover_failures(&self) -> &[FileError] {
        &self.leftover_failures
    }

    pub fn lock_support(&self) -> LockSupport {
        match self.lock {
            Some(_) => LockSupport::Available,
            None => LockSupport::Missing,
        }
    }

    /// Claims the item `name`. Returns `None`, without waiting, while another process holds it.
    ///
    /// # Errors
    /// If the lock file cannot be created or locked.
    pub fn try_claim(&self, name: &str) -> Result<Option<Claim>, FileError> {
        if self.lock.is_none() {
            return Ok(Some(Claim { _lock: None }));
        }
        let claims_folder = self.path.join(CLAIMS_FOLDER_NAME);
        create_folder(&claims_folder)?;
        let lock_path = claims_folder.join(name);
        let failed = |source| FileError::lock(&lock_path, source);
        let lock = open_lock_file(&lock_path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Claim { _lock: Some(lock) })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(explain(error))),
        }
    }
}

/// Checks that a process could open a shared folder and claim items in it, without changing
/// anything there.
///
/// # Errors
/// If the folder, or the files of its locks, cannot be written.
pub fn check_shared_folder(path: &Path) -> Result<LockSupport, FolderFault> {
    let support = check_writable(path, |file| match file.try_lock() {
        Err(TryLockError::Error(error)) if is_without_locks(&error) => LockSupport::Missing,
        _ => LockSupport::Available,
    })?;
    if support == LockSupport::Available && path.is_dir() {
        let lock_path = path.join(LOCK_FILE_NAME);
        if lock_path.exists() {
            open_lock_file(&lock_path).map_err(|error| FileError::lock(&lock_path, error))?;
        }
        let claims_folder = path.join(CLAIMS_FOLDER_NAME);
        // Another process may remove the folder at this moment: `try_claim` creates it again.
        if claims_folder.exists() {
            check_writable(&claims_folder, |_| ())?;
        }
    }
    Ok(support)
}

/// Whether a process holds the claim on the item `name` of a folder. Creates no file; where the
/// lock file cannot be read, as in a folder without locks, no process is known to hold it.
pub fn is_claimed(folder: &Path, name: &str) -> bool {
    let lock_path = folder.join(CLAIMS_FOLDER_NAME).join(name);
    File::open(lock_path)
        .is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Opens a lock file and creates it if needed. A file of another user may not be writable; reading
/// it is enough to lock it.
fn open_lock_file(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).append(true).create(true);
    match options.open(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => File::open(path),
        other => other,
    }
}

/// Whether the error of a lock says that the file system has no locks (`ENOLCK`, `ENOTSUP`,
/// `ENOSYS`).
fn is_without_locks(error: &io::Error) -> bool {
    #[cfg(unix)]
    {
        use rustix::io::Errno;
        let missing = [Errno::NOLCK, Errno::NOTSUP, Errno::OPNOTSUPP, Errno::NOSYS];
        Errno::from_io_error(error).is_some_and(|errno| missing.contains(&errno))
    }
    #[cfg(not(unix))]
    {
        error.kind() == ErrorKind::Unsupported
    }
}

/// On NFS a file that is open for reading alone cannot be locked exclusively. The system calls that
/// a bad file descriptor; the cause is that another user owns the lock file.
fn explain(error: io::Error) -> io::Error {
    #[cfg(unix)]
    if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::BADF) {
        return ErrorKind::PermissionDenied.into();
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_has_one_claim_at_a_time() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let first = SharedFolder::open(folder.path()).expect("opened");
        let second = SharedFolder::open(folder.path()).expect("opened");
        let claim = first.try_claim("a").expect("locked");
        assert!(claim.is_some());
        assert!(second.try_claim("a").expect("locked").is_none());
        assert!(second.try_claim("b").expect("locked").is_some());
        drop(claim);
        assert!(second.try_claim("a").expect("locked").is_some());
    }

    #[test]
    fn leftovers_are_removed_only_when_the_folder_is_not_in_use() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let leftover = folder.path().join(".partial-dead");
        let first = SharedFolder::open(folder.path()).expect("opened");
        fs::create_dir(&leftover).expect("created");
        drop(SharedFolder::open(folder.path()).expect("opened"));
        assert!(leftover.exists(), "the folder is in use");
        drop(first);
        drop(SharedFolder::open(folder.path()).expect("opened"));
        assert!(!leftover.exists());
    }

    #[test]
    fn a_claim_is_seen_from_outside_while_it_is_held() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(!is_claimed(folder.path(), "a"));
        let shared = SharedFolder::open(folder.path()).expect("opened");
        let claim = shared.try_claim("a").expect("locked");
        assert!(is_claimed(folder.path(), "a") && !is_claimed(folder.path(), "b"));
        drop(claim);
        assert!(!is_claimed(folder.path(), "a"));
    }

    #[cfg(unix)]
    #[test]
    fn without_locks_every_claim_is_granted() {
        use rustix::io::Errno;
        for errno in [Errno::NOLCK, Errno::NOTSUP, Errno::NOSYS] {
            assert!(is_without_locks(&errno.into()));
        }
        assert!(!is_without_locks(&Errno::ACCESS.into()));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let shared = SharedFolder {
            path: folder.path().to_owned(),
            lock: None,
            leftover_failures: Vec::new(),
        };
        let first = shared.try_claim("a").expect("granted");
        let second = shared.try_claim("a").expect("granted");
        assert!(first.is_some() && second.is_some());
    }
}
