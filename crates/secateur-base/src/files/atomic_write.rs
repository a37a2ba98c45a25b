//! Atomic replacement of one file.
//!
//! The content is written to a temporary file in the same folder, flushed, and renamed to the final
//! name. A rename inside one file system is atomic, so at every moment the name refers to the old
//! content, to the new content, or (where there was no file) to nothing. A crash, a kill or a full
//! disk leaves at most a temporary file, which [`super::remove_leftovers`] removes.

use std::fs;
use std::io::Write;
use std::path::Path;

use super::error::FileError;
use super::sync::sync_file;
use super::temporary::temporary_file;

/// Whether the content is flushed to the disk before the rename.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Durability {
    Synced,
    Unsynced,
}

/// Replaces a file atomically and flushes it to the disk.
///
/// # Errors
/// If the file cannot be written; the old file is then unchanged.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<(), FileError> {
    write_atomic_with(path, |file| file.write_all(content))
}

/// As [`write_atomic`], but the system decides when the content reaches the disk. For files whose
/// content is checked against a hash when it is used.
///
/// # Errors
/// If the file cannot be written; the old file is then unchanged.
pub fn write_atomic_unsynced(path: &Path, content: &[u8]) -> Result<(), FileError> {
    write_and_rename(path, |file| file.write_all(content), Durability::Unsynced)
}

/// As [`write_atomic`], but `write_content` writes into the open temporary file.
///
/// # Errors
/// If the file cannot be written; the old file is then unchanged.
pub fn write_atomic_with(
    path: &Path,
    write_content: impl FnOnce(&mut fs::File) -> std::io::Result<()>,
) -> Result<(), FileError> {
    write_and_rename(path, write_content, Durability::Synced)
}

fn write_and_rename(
    path: &Path,
    write_content: impl FnOnce(&mut fs::File) -> std::io::Result<()>,
    durability: Durability,
) -> Result<(), FileError> {
    let failed = |source| FileError::write(path, source);
    // The temporary file must be on the same file system as `path`: a rename cannot cross file
    // systems.
    let folder = parent_folder(path);
    let mut partial = temporary_file(folder).map_err(failed)?;
    // An error from here on drops `partial`, which removes the temporary file.
    write_content(partial.as_file_mut()).map_err(failed)?;
    // Flush before the rename: otherwise a crash could leave the new name with missing content.
    if durability == Durability::Synced {
        sync_file(partial.as_file()).map_err(failed)?;
    }
    partial
        .persist(path)
        .map_err(|persist_error| failed(persist_error.error))?;
    Ok(())
}

/// The folder of a file; `.` for a name alone.
pub(crate) fn parent_folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("table");
        write_atomic(&path, b"old").expect("written");
        let fail_half_way = |file: &mut fs::File| {
            file.write_all(b"half of the ne")
                .and(Err(std::io::Error::other("No space left on device")))
        };
        let message = write_atomic_with(&path, fail_half_way)
            .expect_err("the write fails")
            .to_string();
        assert!(
            message.contains("table") && message.contains("No space left on device"),
            "{message}"
        );
        assert_eq!(fs::read(&path).expect("the old file"), b"old");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }
}
