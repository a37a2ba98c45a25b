//! Atomic replacement of a folder.
//!
//! A [`PartialFolder`] is filled under a temporary name, then exchanged with the folder that it
//! replaces. Linux exchanges two names in one system call (`renameat2` with `RENAME_EXCHANGE`).
//! Elsewhere three renames do the same; a run that is killed between them leaves the old folder
//! under a name from which [`super::remove_leftovers`] moves it back.

use std::fs;
use std::path::Path;

use super::atomic_write::parent_folder;
use super::error::FileError;
use super::names::REPLACED_PREFIX;
use super::sync::sync_tree;
use super::temporary::temporary_folder;

/// A folder under a temporary name, to be filled and then moved to its final name. Dropping it
/// removes it with its content.
#[derive(Debug)]
pub struct PartialFolder {
    folder: tempfile::TempDir,
}

impl PartialFolder {
    /// Creates an empty folder inside `parent`.
    ///
    /// # Errors
    /// If `parent` cannot be written.
    pub fn new(parent: &Path) -> Result<Self, FileError> {
        let folder = temporary_folder(parent).map_err(|source| FileError::write(parent, source))?;
        Ok(Self { folder })
    }

    /// Where the folder is until it is moved.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Flushes the content to the disk and moves the folder to `target`. A folder that is there is
    /// replaced and removed.
    ///
    /// # Errors
    /// If a file cannot be flushed or the folder cannot be moved; `target` is then unchanged.
    pub fn replace(self, target: &Path) -> Result<(), FileError> {
        sync_tree(self.path()).map_err(|source| FileError::write(target, source))?;
        self.replace_unsynced(target)
    }

    /// As [`PartialFolder::replace`], but the system decides when the content reaches the disk. For
    /// content that is checked against a hash when it is used.
    ///
    /// # Errors
    /// If the folder cannot be moved; `target` is then unchanged.
    pub fn replace_unsynced(self, target: &Path) -> Result<(), FileError> {
        let failed = |source| FileError::write(target, source);
        let target_exists = target.symlink_metadata().is_ok();
        if target_exists {
            // After the exchange `self` holds the old folder under the temporary name; dropping
            // `self` removes it.
            return swap_folders(self.path(), target).map_err(failed);
        }
        fs::rename(self.path(), target).map_err(failed)?;
        // The folder no longer has its temporary name, so there is nothing for `TempDir` to remove.
        drop(self.folder.keep());
        Ok(())
    }

    /// Flushes and moves every entry of this folder into the existing folder `target`. Entries of
    /// the same name are replaced.
    ///
    /// # Errors
    /// If an entry cannot be flushed or moved; entries before it have then been moved.
    pub fn move_into(self, target: &Path) -> Result<(), FileError> {
        let unreadable = |source| FileError::read(self.path(), source);
        for entry in fs::read_dir(self.path()).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let destination = target.join(entry.file_name());
            let failed = |source| FileError::write(&destination, source);
            sync_tree(&entry.path()).map_err(failed)?;
            // A rename replaces a file, but not a folder that has content.
            if destination.is_dir() {
                remove_folder(&destination)?;
            }
            fs::rename(entry.path(), &destination).map_err(failed)?;
        }
        Ok(())
    }
}

/// Exchanges the names of two folders in one step.
#[cfg(target_os = "linux")]
fn swap_folders(new: &Path, target: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE) {
        // The file system, the kernel or a filter of system calls does not support the exchange.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP | Errno::PERM) => {
            swap_folders_by_renaming(new, target)
        }
        other => other.map_err(Into::into),
    }
}

#[cfg(not(target_os = "linux"))]
fn swap_folders(new: &Path, target: &Path) -> std::io::Result<()> {
    swap_folders_by_renaming(new, target)
}

/// Exchanges the names of two folders in three renames: target → aside, new → target, aside → new.
/// Between the first two, the old folder's name contains the name of `target`, so that
/// `remove_leftovers` can move it back.
fn swap_folders_by_renaming(new: &Path, target: &Path) -> std::io::Result<()> {
    let name = target
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let aside = target.with_file_name(format!("{REPLACED_PREFIX}{name}"));
    fs::rename(target, &aside)?;
    if let Err(error) = fs::rename(new, target) {
        fs::rename(&aside, target)?;
        return Err(error);
    }
    fs::rename(&aside, new)
}

/// Removes a file or folder from its name. It is first moved to a temporary name, so that it
/// disappears from its own name at once even if removing the content takes long or is interrupted.
/// Content that cannot be removed stays under the temporary name.
///
/// # Errors
/// If it cannot be moved.
pub fn remove_folder(folder: &Path) -> Result<(), FileError> {
    move_to_trash(folder).map(drop)
}

/// As [`remove_folder`], for freeing disk space: content that cannot be removed is an error.
///
/// # Errors
/// If it cannot be moved, or if a part of its content cannot be removed.
pub fn delete_folder(folder: &Path) -> Result<(), FileError> {
    let trash = move_to_trash(folder)?;
    let failed = |source| FileError::remove(folder, source);
    trash.folder.close().map_err(failed)
}

/// Moves a file or folder into a temporary folder, whose drop removes it.
fn move_to_trash(folder: &Path) -> Result<PartialFolder, FileError> {
    let failed = |source: std::io::Error| FileError::remove(folder, source);
    // The kind alone: the error of the temporary folder names a path that is of no interest.
    let trash =
        temporary_folder(parent_folder(folder)).map_err(|error| failed(error.kind().into()))?;
    fs::rename(folder, trash.path().join("old")).map_err(failed)?;
    Ok(PartialFolder { folder: trash })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_replaces_the_folder_at_its_target() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let target = parent.path().join("a");
        // The first call finds no folder, the second exchanges, the third exchanges by renaming.
        for (round, content) in ["one", "two", "three"].into_iter().enumerate() {
            let partial = PartialFolder::new(parent.path()).expect("created");
            fs::write(partial.path().join("x"), content).expect("written");
            if round == 2 {
                swap_folders_by_renaming(partial.path(), &target).expect("exchanged");
                drop(partial);
            } else {
                partial.replace(&target).expect("replaced");
            }
            let found = fs::read_to_string(target.join("x")).expect("the new content");
            assert_eq!(found, content);
            assert_eq!(
                fs::read_dir(parent.path()).expect("a folder").count(),
                1,
                "the old folder is removed"
            );
        }
    }

    #[test]
    fn entries_replace_those_of_the_same_name() {
        let target = tempfile::tempdir().expect("a temporary folder");
        for content in ["one", "two"] {
            let partial = PartialFolder::new(target.path()).expect("created");
            fs::create_dir(partial.path().join("hf")).expect("created");
            fs::write(partial.path().join("hf/config.json"), content).expect("written");
            partial.move_into(target.path()).expect("moved");
            let found = fs::read_to_string(target.path().join("hf/config.json")).expect("there");
            assert_eq!(found, content);
            assert_eq!(fs::read_dir(target.path()).expect("a folder").count(), 1);
        }
    }
}
