//! Removal of what a killed run left unfinished.

use std::fs;
use std::path::Path;

use super::error::FileError;
use super::names::{LOCK_FILE_NAME, PARTIAL_PREFIX, REPLACED_PREFIX};

/// Removes temporary files and folders that a killed run left in `folder` and below, and moves back
/// a folder that such a run had moved aside and not yet replaced.
///
/// Subfolders with a lock file of their own are skipped: another process may be working there.
/// Returns why leftovers stay, if they cannot be removed: no later file needs their names.
pub(crate) fn remove_leftovers(folder: &Path) -> Vec<FileError> {
    let mut failures = Vec::new();
    collect_failures(folder, &mut failures);
    failures
}

fn collect_failures(folder: &Path, failures: &mut Vec<FileError>) {
    // An unreadable folder has no leftovers that this process could remove.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_folder = entry.file_type().is_ok_and(|file_type| file_type.is_dir());
        let interrupted_target = name
            .strip_prefix(REPLACED_PREFIX)
            .map(|original_name| folder.join(original_name))
            .filter(|target| !target.exists());
        if let Some(target) = interrupted_target {
            if let Err(error) = fs::rename(&path, &target) {
                failures.push(FileError::write(&target, error));
            }
        } else if name.starts_with(PARTIAL_PREFIX) || name.starts_with(REPLACED_PREFIX) {
            let removed = if is_folder {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            // If the path is gone in spite of an error, another process removed it first.
            if let Err(error) = removed
                && path.exists()
            {
                failures.push(FileError::remove(&path, error));
            }
        } else if is_folder && !path.join(LOCK_FILE_NAME).exists() {
            collect_failures(&path, failures);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_leftovers_are_removed_and_a_folder_moved_aside_returns() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let variant = folder.path().join("a");
        fs::create_dir_all(variant.join(".partial-x/hf")).expect("created");
        fs::write(variant.join(".partial-y"), "half").expect("written");
        fs::write(variant.join("prune.parquet"), "whole").expect("written");
        fs::create_dir(folder.path().join(".replaced-b")).expect("created");
        fs::create_dir(folder.path().join(".replaced-a")).expect("created");
        assert!(remove_leftovers(folder.path()).is_empty());
        assert!(
            folder.path().join("b").exists(),
            "`b` was moved aside and not replaced, so it is moved back"
        );
        assert!(variant.exists() && !folder.path().join(".replaced-a").exists());
        let remaining: Vec<_> = fs::read_dir(&variant)
            .expect("a folder")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert_eq!(remaining, ["prune.parquet"]);
    }
}
