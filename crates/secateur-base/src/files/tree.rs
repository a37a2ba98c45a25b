//! Folders with everything below them: listing, creating, copying.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::FileError;

/// Creates a folder and its missing parents.
///
/// # Errors
/// If a folder cannot be created.
pub fn create_folder(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(FileError::with_path(path))
}

/// Returns the files in a folder and its subfolders, as paths relative to the folder, sorted.
///
/// # Errors
/// If a folder cannot be read.
pub fn list_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    collect_files(folder, Path::new(""), &mut files)?;
    files.sort();
    Ok(files)
}

/// Appends the files below `root/subfolder` to `files`, relative to `root`.
fn collect_files(root: &Path, subfolder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(root.join(subfolder))? {
        let entry = entry?;
        let relative_path = subfolder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect_files(root, &relative_path, files)?;
        } else {
            files.push(relative_path);
        }
    }
    Ok(())
}

/// Copies a folder with everything below it to `to`. Files are hard-linked where the file system
/// allows it, which takes no space.
///
/// # Errors
/// If a file cannot be read or copied.
pub fn link_or_copy_tree(from: &Path, to: &Path) -> Result<(), FileError> {
    let files = list_files(from).map_err(FileError::with_path(from))?;
    link_or_copy_files(from, files.iter().map(PathBuf::as_path), to)
}

/// Copies files, given relative to the folder `from`, to the same relative paths in `to`. Files are
/// hard-linked where the file system allows it.
///
/// # Errors
/// If a file cannot be copied.
pub fn link_or_copy_files<'a>(
    from: &Path,
    files: impl IntoIterator<Item = &'a Path>,
    to: &Path,
) -> Result<(), FileError> {
    for file in files {
        let source = from.join(file);
        let target = to.join(file);
        create_folder(target.parent().unwrap_or(to))?;
        if fs::hard_link(&source, &target).is_err() {
            fs::copy(&source, &target).map_err(FileError::with_path(&target))?;
        }
    }
    Ok(())
}
