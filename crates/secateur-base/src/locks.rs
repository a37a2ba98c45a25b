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

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::files::names::LOCK_FILE_NAME;
use crate::files::{FileError, create_folder, remove_leftovers};

/// The subfolder with one lock file for each claimed item.
const CLAIMS_FOLDER_NAME: &str = ".locks";

/// A folder in which several processes may work at the same time.
#[derive(Debug)]
pub struct SharedFolder {
    path: PathBuf,
    /// The shared lock on `.lock`. Released when this value is dropped.
    _lock: File,
}

/// The exclusive right to work on one item of a shared folder. Released when it is dropped.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
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
        let failed = FileError::with_path(&lock_path);
        let lock = open_lock_file(&lock_path).map_err(&failed)?;
        let is_alone = lock.try_lock().is_ok();
        if is_alone {
            remove_leftovers(path);
            // Every holder of a claim also holds the shared lock, so none of these files is in use.
            // Files that cannot be removed do no harm: they are locked again when needed.
            drop(fs::remove_dir_all(path.join(CLAIMS_FOLDER_NAME)));
            lock.unlock().map_err(&failed)?;
        }
        // Waits while another process that found itself alone removes leftovers.
        lock.lock_shared().map_err(&failed)?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Claims the item `name`. Returns `None`, without waiting, while another process holds it.
    ///
    /// # Errors
    /// If the lock file cannot be created or locked.
    pub fn try_claim(&self, name: &str) -> Result<Option<Claim>, FileError> {
        let claims_folder = self.path.join(CLAIMS_FOLDER_NAME);
        create_folder(&claims_folder)?;
        let lock_path = claims_folder.join(name);
        let failed = FileError::with_path(&lock_path);
        let lock = open_lock_file(&lock_path).map_err(&failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Claim { _lock: lock })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

/// Opens a lock file and creates it if needed. A file of another user may not be writable; reading
/// it is enough to lock it.
fn open_lock_file(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.read(true).append(true).create(true);
    match options.open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => File::open(path),
        other => other,
    }
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
}
