//! Why a folder cannot be used.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::error::FileError;

/// Why nothing can be written into a folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderFault {
    #[error("`{}` is a link to `{}`, which does not exist", .link.display(), .target.display())]
    DanglingLink { link: PathBuf, target: PathBuf },
    #[error("`{}` is not a folder", .0.display())]
    NotAFolder(PathBuf),
    #[error(transparent)]
    NotWritable(#[from] FileError),
}

/// Checks that files can be created in a folder, or that the folder can be created: its nearest
/// ancestor that exists is then checked. Calls `test_file` with an unnamed file there.
pub(crate) fn check_writable<T>(
    folder: &Path,
    test_file: impl FnOnce(&fs::File) -> T,
) -> Result<T, FolderFault> {
    let existing = nearest_existing(folder)?;
    let file = tempfile::tempfile_in(&existing);
    let file = file.map_err(|source| FileError::write(&existing, source))?;
    Ok(test_file(&file))
}

/// The folder if it exists, else its nearest ancestor that exists.
fn nearest_existing(folder: &Path) -> Result<PathBuf, FolderFault> {
    for ancestor in folder.ancestors() {
        if ancestor.as_os_str().is_empty() {
            break;
        }
        match find_fault(ancestor) {
            Ok(()) => return Ok(ancestor.to_owned()),
            // A file in place of an ancestor is found when the loop reaches it.
            Err(FolderFault::NotWritable(error))
                if matches!(
                    error.source.kind(),
                    ErrorKind::NotFound | ErrorKind::NotADirectory
                ) => {}
            Err(fault) => return Err(fault),
        }
    }
    Ok(PathBuf::from("."))
}

/// Why a path is not a folder.
pub(crate) fn find_fault(path: &Path) -> Result<(), FolderFault> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(FolderFault::NotAFolder(path.to_owned())),
        Err(error) => match fs::read_link(path) {
            Ok(target) if is_dangling(&error) => Err(FolderFault::DanglingLink {
                link: path.to_owned(),
                target,
            }),
            _ => Err(FileError::write(path, error).into()),
        },
    }
}

/// Whether the error says that the target of a link does not exist, or that the link leads back to
/// itself.
fn is_dangling(error: &io::Error) -> bool {
    #[cfg(unix)]
    let is_loop =
        rustix::io::Errno::from_io_error(error).is_some_and(|e| e == rustix::io::Errno::LOOP);
    #[cfg(not(unix))]
    let is_loop = false;
    error.kind() == ErrorKind::NotFound || is_loop
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_can_be_created_is_no_fault_and_a_file_in_its_place_is() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        check_writable(&folder.path().join("a/b"), |_| ()).expect("it can be created");
        fs::write(folder.path().join("a"), "").expect("written");
        let fault = check_writable(&folder.path().join("a/b"), |_| ()).expect_err("a file");
        assert!(fault.to_string().ends_with("a` is not a folder"), "{fault}");
    }

    #[cfg(unix)]
    #[test]
    fn a_dangling_link_is_named_with_its_target() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let link = folder.path().join("results");
        std::os::unix::fs::symlink("/no/such/disk", &link).expect("linked");
        for path in [link.clone(), link.join("ablation")] {
            let fault = check_writable(&path, |_| ()).expect_err("the link leads nowhere");
            assert!(
                fault.to_string().contains("is a link to `/no/such/disk`"),
                "{fault}"
            );
        }
        let error = super::super::create_folder(&link).expect_err("the link leads nowhere");
        assert!(error.to_string().contains("/no/such/disk"), "{error}");
    }
}
