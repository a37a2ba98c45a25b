//! Locks between processes that share a folder. The system lets go of them however a process ends.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::files::{self, FileError};

/// Where the locks of single things in a folder lie.
const LOCKS_FOLDER: &str = ".locks";

/// A folder that several processes may be at work in.
#[derive(Debug)]
pub struct SharedFolder {
    path: PathBuf,
    /// Held, shared, by every process in the folder.
    _lock: File,
}

/// One thing in a shared folder that no other process works on meanwhile.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
}

impl SharedFolder {
    /// Enters a folder, which is made if need be. A process that is alone in it removes what a killed one left unfinished.
    ///
    /// # Errors
    /// If the folder cannot be made or written.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        files::create_folder(path)?;
        let lock_path = path.join(".lock");
        let failed = |source| FileError {
            path: lock_path.clone(),
            source,
        };
        let lock = open_lock_file(&lock_path).map_err(failed)?;
        if lock.try_lock().is_ok() {
            files::remove_leftovers(path);
            drop(fs::remove_dir_all(path.join(LOCKS_FOLDER)));
            lock.unlock().map_err(failed)?;
        }
        lock.lock_shared().map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Claims a thing by its name; None while another process has it.
    ///
    /// # Errors
    /// If the lock cannot be written.
    pub fn try_claim(&self, name: &str) -> Result<Option<Claim>, FileError> {
        let folder = self.path.join(LOCKS_FOLDER);
        files::create_folder(&folder)?;
        let path = folder.join(name);
        let failed = |source| FileError {
            path: path.clone(),
            source,
        };
        let lock = open_lock_file(&path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Claim { _lock: lock })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

/// A lock file, made if need be. Another user's is good enough to be locked.
fn open_lock_file(path: &Path) -> std::io::Result<File> {
    match File::options()
        .read(true)
        .append(true)
        .create(true)
        .open(path)
    {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => File::open(path),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_claimed_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let (one, other) = [(); 2]
            .map(|()| SharedFolder::open(folder.path()).expect("entered"))
            .into();
        let claim = one.try_claim("a").expect("written");
        assert!(claim.is_some() && other.try_claim("a").expect("written").is_none());
        assert!(other.try_claim("b").expect("written").is_some());
        drop(claim);
        assert!(other.try_claim("a").expect("written").is_some());
    }

    #[test]
    fn leftovers_go_when_nobody_else_is_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let leftover = folder.path().join(".partial-dead");
        let one = SharedFolder::open(folder.path()).expect("entered");
        fs::create_dir(&leftover).expect("made");
        drop(SharedFolder::open(folder.path()).expect("entered"));
        assert!(leftover.exists(), "another is at work");
        drop(one);
        drop(SharedFolder::open(folder.path()).expect("entered"));
        assert!(!leftover.exists());
    }
}
