//! Folders with everything below them: listing, creating, copying.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::FileError;
use super::folder_fault::{FolderFault, find_fault};

/// Creates a folder and its missing parents.
///
/// # Errors
/// If a folder cannot be created.
pub fn create_folder(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(|error| match find_fault(path) {
        // The system only says that something exists there.
        Err(fault @ (FolderFault::DanglingLink { .. } | FolderFault::NotAFolder(_))) => {
            FileError::write(path, std::io::Error::other(fault))
        }
        _ => FileError::write(path, error),
    })
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
    let files = list_files(from).map_err(|source| FileError::read(from, source))?;
    link_or_copy_files(from, files.iter().map(PathBuf::as_path), to)
}

/// Copies files, given relative to the folder `from`, to the same relative paths in `to`. Files are
/// hard-linked where the file system allows it and the file has the permissions that the umask
/// gives to a new one: a link has the permissions of the other file.
///
/// # Errors
/// If a file cannot be read or copied.
pub fn link_or_copy_files<'a>(
    from: &Path,
    files: impl IntoIterator<Item = &'a Path>,
    to: &Path,
) -> Result<(), FileError> {
    for file in files {
        let source = from.join(file);
        let target = to.join(file);
        let target_folder = target.parent().unwrap_or(to);
        create_folder(target_folder)?;
        let is_linked = has_permissions_of_new_files(&source, target_folder)
            && fs::hard_link(&source, &target).is_ok();
        if !is_linked {
            copy_content(&source, &target)?;
        }
    }
    Ok(())
}

/// Whether a file has the permissions of a new file in `folder`, which this process has created:
/// read and write as for the folder.
#[cfg(unix)]
fn has_permissions_of_new_files(file: &Path, folder: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).map(|metadata| metadata.permissions().mode());
    match (mode(file), mode(folder)) {
        (Ok(file), Ok(folder)) => file & 0o777 == folder & 0o666,
        _ => false,
    }
}

#[cfg(not(unix))]
fn has_permissions_of_new_files(_file: &Path, _folder: &Path) -> bool {
    true
}

/// Copies the content of a file into a new one, without its permissions.
fn copy_content(source: &Path, target: &Path) -> Result<(), FileError> {
    let mut reader = fs::File::open(source).map_err(|error| FileError::read(source, error))?;
    let failed = |error| FileError::write(target, error);
    let mut writer = fs::File::create(target).map_err(failed)?;
    std::io::copy(&mut reader, &mut writer).map_err(failed)?;
    Ok(())
}

/// Records in a file's time of modification that it is used now. Its owner and everyone who may
/// write it can do so.
///
/// # Errors
/// If the time cannot be set.
#[cfg(unix)]
pub fn set_time_of_use(file: &Path) -> std::io::Result<()> {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
    // "Now" as a value, unlike a time, needs no ownership.
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    Ok(utimensat(CWD, file, &times, AtFlags::empty())?)
}

#[cfg(not(unix))]
pub fn set_time_of_use(file: &Path) -> std::io::Result<()> {
    fs::File::open(file)?.set_modified(std::time::SystemTime::now())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_file_is_linked_only_if_it_has_the_permissions_of_a_new_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
        create_folder(&from).expect("created");
        create_folder(&to).expect("created");
        fs::write(from.join("like-new"), "a").expect("written");
        fs::write(from.join("private"), "b").expect("written");
        let private = fs::Permissions::from_mode(0o400);
        fs::set_permissions(from.join("private"), private).expect("set");
        link_or_copy_tree(&from, &to).expect("linked or copied");
        let metadata = |file: PathBuf| fs::metadata(file).expect("there");
        let inode = |file: PathBuf| metadata(file).ino();
        assert_eq!(inode(from.join("like-new")), inode(to.join("like-new")));
        assert_ne!(inode(from.join("private")), inode(to.join("private")));
        assert_eq!(
            metadata(to.join("private")).mode(),
            metadata(to.join("like-new")).mode()
        );
        assert_eq!(fs::read(to.join("private")).expect("read"), b"b");
        let error = link_or_copy_files(&from, [Path::new("none")], &to).expect_err("missing");
        assert!(error.to_string().starts_with("cannot read"), "{error}");
    }
}
