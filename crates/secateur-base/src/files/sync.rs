//! Flushing files to the disk.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Flushes every file below `path`, or the file `path` itself, to the disk.
///
/// # Errors
/// If a file cannot be opened or flushed.
pub fn sync_tree(path: &Path) -> std::io::Result<()> {
    if !path.is_dir() {
        return sync_file(&fs::File::open(path)?);
    }
    for entry in fs::read_dir(path)? {
        sync_tree(&entry?.path())?;
    }
    Ok(())
}

/// Flushes a file to the disk. A file system that has no such operation decides itself when it
/// writes: that is no error.
pub(crate) fn sync_file(file: &fs::File) -> std::io::Result<()> {
    match file.sync_all() {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::Unsupported | ErrorKind::InvalidInput
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}
