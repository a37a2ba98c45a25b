//! Permissions of finished files.

use std::fs;
use std::path::Path;

/// Flushes every file below `path` to the disk and makes all of it readable by other users.
///
/// # Errors
/// If a file cannot be opened or flushed, or its permissions cannot be set.
pub fn sync_and_make_readable(path: &Path) -> std::io::Result<()> {
    make_readable_by_all(path)?;
    if !path.is_dir() {
        return fs::File::open(path)?.sync_all();
    }
    for entry in fs::read_dir(path)? {
        sync_and_make_readable(&entry?.path())?;
    }
    Ok(())
}

/// Sets the permissions that a new file or folder usually has. `tempfile` creates its files and
/// folders readable by their owner alone.
#[cfg(unix)]
pub(crate) fn make_readable_by_all(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = if path.is_dir() { 0o755 } else { 0o644 };
    match fs::set_permissions(path, fs::Permissions::from_mode(mode)) {
        // A hard link to another user's file: only its owner can change it, and that owner's run
        // has already set its permissions.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

#[cfg(not(unix))]
pub(crate) fn make_readable_by_all(_: &Path) -> std::io::Result<()> {
    Ok(())
}
