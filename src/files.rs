//! Files that appear whole or not at all: written beside their place under another name, flushed, then renamed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Begins the name of whatever is not whole yet.
const PARTIAL: &str = ".partial-";

/// A file or folder could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write `{}`: {source}", .path.display())]
pub struct FileError {
    pub path: PathBuf,
    pub source: std::io::Error,
}

impl FileError {
    fn at(path: &Path) -> impl Fn(std::io::Error) -> Self + '_ {
        move |source| Self { path: path.to_owned(), source }
    }
}

/// Writes a file whole: after a crash, a full disk or a kill there is the old one, or none, or the new one.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_with(path, |file| file.write_all(bytes))
}

/// As [`write_whole`], the content coming from `write`.
pub fn write_with(path: &Path, write: impl FnOnce(&mut fs::File) -> std::io::Result<()>) -> Result<(), FileError> {
    let failed = FileError::at(path);
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut partial = tempfile::Builder::new().prefix(PARTIAL).tempfile_in(folder).map_err(&failed)?;
    write(partial.as_file_mut()).map_err(&failed)?;
    readable_by_all(partial.path()).map_err(&failed)?;
    partial.as_file().sync_all().map_err(&failed)?;
    partial.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// A folder that is being filled; [`PartialFolder::move_into`] makes its content visible.
#[derive(Debug)]
pub struct PartialFolder {
    folder: tempfile::TempDir,
}

impl PartialFolder {
    /// A new folder inside `parent`.
    pub fn new(parent: &Path) -> Result<Self, FileError> {
        let folder = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(parent).map_err(FileError::at(parent))?;
        Ok(Self { folder })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Takes the place of a folder: everything is on the disk before the old one moves aside, and the old one goes last.
    pub fn replace(self, target: &Path) -> Result<(), FileError> {
        let failed = FileError::at(target);
        publish_all_in(self.path()).map_err(&failed)?;
        let aside = Self::new(target.parent().unwrap_or(Path::new(".")))?;
        let old = aside.path().join("old");
        fs::rename(target, &old).map_err(&failed)?;
        if let Err(error) = fs::rename(self.path(), target) {
            fs::rename(&old, target).map_err(&failed)?;
            return Err(failed(error));
        }
        // it has another name now, so there is nothing to clean up
        drop(self.folder.keep());
        Ok(())
    }

    /// Moves every entry to `target`, in place of what had its name.
    pub fn move_into(self, target: &Path) -> Result<(), FileError> {
        for entry in fs::read_dir(self.path()).map_err(FileError::at(self.path()))? {
            let entry = entry.map_err(FileError::at(self.path()))?;
            let to = target.join(entry.file_name());
            publish_all_in(&entry.path()).map_err(FileError::at(&to))?;
            if to.is_dir() {
                remove(&to)?;
            }
            fs::rename(entry.path(), &to).map_err(FileError::at(&to))?;
        }
        Ok(())
    }
}

/// Removes a folder: it is gone under its name at once, however long its content takes.
pub fn remove(folder: &Path) -> Result<(), FileError> {
    let old = PartialFolder::new(folder.parent().unwrap_or(Path::new(".")))?;
    fs::rename(folder, old.path().join("old")).map_err(FileError::at(folder))
}

/// Removes what an earlier run that was killed left unfinished in `folder` and the folders in it.
pub fn remove_leftovers(folder: &Path) -> Result<(), FileError> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_folder = entry.file_type().is_ok_and(|t| t.is_dir());
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.map_err(FileError::at(&path))?;
        } else if is_folder {
            remove_leftovers(&path)?;
        }
    }
    Ok(())
}

/// Makes a folder and those above it.
pub fn make_folder(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(FileError::at(path))
}

/// Puts every file on the disk, and lets others read it.
fn publish_all_in(path: &Path) -> std::io::Result<()> {
    readable_by_all(path)?;
    if path.is_dir() {
        fs::read_dir(path)?.try_for_each(|entry| publish_all_in(&entry?.path()))
    } else {
        fs::File::open(path)?.sync_all()
    }
}

/// Temporary files and folders are private; what is published is as readable as anything new.
#[cfg(unix)]
fn readable_by_all(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = if path.is_dir() { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn readable_by_all(_: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("table");
        write_whole(&path, b"old").expect("written");
        let full =
            |file: &mut fs::File| file.write_all(b"half of the ne").and(Err(std::io::Error::other("No space left on device")));
        let error = write_with(&path, full).expect_err("the disk is full").to_string();
        assert!(error.contains("table") && error.contains("No space left on device"), "{error}");
        assert_eq!(fs::read(&path).expect("still there"), b"old");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn leftovers_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let variant = folder.path().join("a");
        fs::create_dir_all(variant.join(".partial-x/hf")).expect("made");
        fs::write(variant.join(".partial-y"), "half").expect("written");
        fs::write(variant.join("prune.parquet"), "whole").expect("written");
        remove_leftovers(folder.path()).expect("removed");
        let left: Vec<_> = fs::read_dir(&variant).expect("a folder").flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["prune.parquet"]);
    }

    #[test]
    fn a_folder_replaces_the_one_that_was_there() {
        let target = tempfile::tempdir().expect("a folder");
        for content in ["one", "two"] {
            let partial = PartialFolder::new(target.path()).expect("made");
            fs::create_dir(partial.path().join("hf")).expect("made");
            fs::write(partial.path().join("hf/config.json"), content).expect("written");
            partial.move_into(target.path()).expect("moved");
            assert_eq!(fs::read_to_string(target.path().join("hf/config.json")).expect("there"), content);
            assert_eq!(fs::read_dir(target.path()).expect("a folder").count(), 1);
        }
    }
}
