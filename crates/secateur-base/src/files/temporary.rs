//! Temporary files and folders, with the permissions that the umask leaves.
//!
//! They become files and folders of the user by a rename, so they must have the permissions that
//! any other new file has: 0666 or 0777 without the bits of the umask. `tempfile` alone would create
//! files that only their owner can read.

use std::path::Path;

use tempfile::{Builder, NamedTempFile, TempDir};

use super::names::PARTIAL_PREFIX;

/// Creates an empty temporary file in `folder`.
pub(crate) fn temporary_file(folder: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = Builder::new();
    with_permissions(builder.prefix(PARTIAL_PREFIX), 0o666).tempfile_in(folder)
}

/// Creates an empty temporary folder in `parent`.
pub(crate) fn temporary_folder(parent: &Path) -> std::io::Result<TempDir> {
    let mut builder = Builder::new();
    with_permissions(builder.prefix(PARTIAL_PREFIX), 0o777).tempdir_in(parent)
}

/// Sets the permissions with which the system call creates the file: it removes the bits of the
/// umask.
#[cfg(unix)]
fn with_permissions<'a, 'b, 'c>(
    builder: &'a mut Builder<'b, 'c>,
    mode: u32,
) -> &'a mut Builder<'b, 'c> {
    use std::os::unix::fs::PermissionsExt;
    builder.permissions(std::fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn with_permissions<'a, 'b, 'c>(
    builder: &'a mut Builder<'b, 'c>,
    _mode: u32,
) -> &'a mut Builder<'b, 'c> {
    builder
}

/// Creates an empty file, or empties it, and returns its permissions: those that the umask leaves to
/// a new file. For a library that replaces the file by one that only its owner can read.
///
/// # Errors
/// If the file cannot be created.
pub fn create_empty_file(path: &Path) -> std::io::Result<std::fs::Permissions> {
    Ok(std::fs::File::create(path)?.metadata()?.permissions())
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn permissions_are_those_of_any_new_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        let [plain_file, plain_folder] = ["file", "folder"].map(|name| folder.path().join(name));
        fs::write(&plain_file, "").expect("written");
        fs::create_dir(&plain_folder).expect("created");
        let file = temporary_file(folder.path()).expect("created");
        assert_eq!(mode(file.path()), mode(&plain_file));
        let subfolder = temporary_folder(folder.path()).expect("created");
        assert_eq!(mode(subfolder.path()), mode(&plain_folder));
    }
}
