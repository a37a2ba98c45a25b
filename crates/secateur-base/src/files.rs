//! Files that appear whole or not at all: written beside their place under another name, flushed, then renamed.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Begins the name of whatever is not whole yet.
const PARTIAL_PREFIX: &str = ".partial-";

/// Begins the name of what stands aside until something new is in its place.
const REPLACED_PREFIX: &str = ".replaced-";

/// A file or folder could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write `{}`: {source}", .path.display())]
pub struct FileError {
    pub path: PathBuf,
    pub source: std::io::Error,
}

impl FileError {
    fn with_path(path: &Path) -> impl Fn(std::io::Error) -> Self + '_ {
        move |source| Self {
            path: path.to_owned(),
            source,
        }
    }
}

/// What a file holds, as it was when it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub bytes: u64,
    /// In hexadecimal.
    pub blake3: String,
}

impl Fingerprint {
    /// Of a file that is there, on all threads.
    pub fn from_file(path: &Path) -> std::io::Result<Self> {
        // not mapped: pages of a map count as memory of this process
        const READ_BUFFER_BYTES: usize = 16 << 20;
        let mut file = fs::File::open(path)?;
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let mut buffer = vec![0; length.clamp(1, READ_BUFFER_BYTES)];
        let mut hasher = blake3::Hasher::new();
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read if read < 1 << 17 => hasher.update(&buffer[..read]),
                read => hasher.update_rayon(&buffer[..read]),
            };
        }
        Ok(Self {
            bytes: hasher.count(),
            blake3: hasher.finalize().to_hex().to_string(),
        })
    }

    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.len() as u64,
            blake3: blake3::hash(bytes).to_hex().to_string(),
        }
    }

    /// Whether a file has this length; the look is quick.
    pub fn has_length(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == self.bytes)
    }

    /// Whether a file holds exactly this.
    pub fn matches_file(&self, path: &Path) -> bool {
        self.has_length(path) && Self::from_file(path).is_ok_and(|found| found == *self)
    }
}

/// The files in a folder and those below it, relative to it, in order.
pub fn list_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    fn collect_files(folder: &Path, below: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
        for entry in fs::read_dir(folder.join(below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                collect_files(folder, &path, found)?
            } else {
                found.push(path)
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    collect_files(folder, Path::new(""), &mut found)?;
    found.sort();
    Ok(found)
}

/// Copies what lies in a folder; files are linked where the file system allows.
pub fn link_or_copy_tree(from: &Path, to: &Path) -> Result<(), FileError> {
    let files = list_files(from).map_err(FileError::with_path(from))?;
    link_or_copy_files(from, files.iter().map(PathBuf::as_path), to)
}

/// Copies files of a folder, named relative to it, into another; they are linked where the file system allows.
pub fn link_or_copy_files<'a>(
    from: &Path,
    files: impl IntoIterator<Item = &'a Path>,
    to: &Path,
) -> Result<(), FileError> {
    for file in files {
        let target = to.join(file);
        create_folder(target.parent().unwrap_or(to))?;
        let source = from.join(file);
        if fs::hard_link(&source, &target).is_err() {
            fs::copy(&source, &target).map_err(FileError::with_path(&target))?;
        }
    }
    Ok(())
}

/// Writes a file whole: after a crash, a full disk or a kill there is the old one, or none, or the new one.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As [`write_whole`]; whether it is on the disk is left to the system. For what is checked when it is used.
pub fn write_atomic_unsynced(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_and_rename(path, |file| file.write_all(bytes), false)
}

/// As [`write_whole`], the content coming from `content`.
pub fn write_atomic_with(
    path: &Path,
    content: impl FnOnce(&mut fs::File) -> std::io::Result<()>,
) -> Result<(), FileError> {
    write_and_rename(path, content, true)
}

fn write_and_rename(
    path: &Path,
    content: impl FnOnce(&mut fs::File) -> std::io::Result<()>,
    sync: bool,
) -> Result<(), FileError> {
    let failed = FileError::with_path(path);
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut partial = tempfile::Builder::new()
        .prefix(PARTIAL_PREFIX)
        .tempfile_in(folder)
        .map_err(&failed)?;
    content(partial.as_file_mut()).map_err(&failed)?;
    make_readable_by_all(partial.path()).map_err(&failed)?;
    if sync {
        partial.as_file().sync_all().map_err(&failed)?;
    }
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
        let folder = tempfile::Builder::new()
            .prefix(PARTIAL_PREFIX)
            .tempdir_in(parent)
            .map_err(FileError::with_path(parent))?;
        Ok(Self { folder })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Puts everything on the disk, then takes the place of `target`, which goes, or where nothing stood.
    pub fn replace(self, target: &Path) -> Result<(), FileError> {
        let failed = FileError::with_path(target);
        sync_and_make_readable(self.path()).map_err(&failed)?;
        self.replace_unsynced(target)
    }

    /// As [`PartialFolder::replace`]; whether it is on the disk is left to the system. For what is checked when it is used.
    pub fn replace_unsynced(self, target: &Path) -> Result<(), FileError> {
        let failed = FileError::with_path(target);
        make_readable_by_all(self.path()).map_err(&failed)?;
        if target.symlink_metadata().is_err() {
            fs::rename(self.path(), target).map_err(&failed)?;
            // it has another name now, so there is nothing to clean up
            drop(self.folder.keep());
            return Ok(());
        }
        swap_folders(self.path(), target).map_err(failed)
    }

    /// Moves every entry to `target`, in place of what had its name.
    pub fn move_into(self, target: &Path) -> Result<(), FileError> {
        for entry in fs::read_dir(self.path()).map_err(FileError::with_path(self.path()))? {
            let entry = entry.map_err(FileError::with_path(self.path()))?;
            let to = target.join(entry.file_name());
            sync_and_make_readable(&entry.path()).map_err(FileError::with_path(&to))?;
            if to.is_dir() {
                remove_folder(&to)?;
            }
            fs::rename(entry.path(), &to).map_err(FileError::with_path(&to))?;
        }
        Ok(())
    }
}

/// Two folders trade places at once; the old one is then under the other's name.
#[cfg(target_os = "linux")]
fn swap_folders(new: &Path, target: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE) {
        // a file system that cannot
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            swap_folders_by_renaming(new, target)
        }
        other => other.map_err(Into::into),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(new: &Path, target: &Path) -> std::io::Result<()> {
    swap_folders_by_renaming(new, target)
}

/// The same in three renames, where the system has no better way. The old one's name says where it belongs until the new one
/// stands there.
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

/// Removes a folder: it is gone under its name at once, however long its content takes.
pub fn remove_folder(folder: &Path) -> Result<(), FileError> {
    let old = PartialFolder::new(folder.parent().unwrap_or(Path::new(".")))?;
    fs::rename(folder, old.path().join("old")).map_err(FileError::with_path(folder))
}

/// Removes what an earlier run that was killed left unfinished in `folder` and the folders in it, and puts back what it had
/// moved aside. Folders in which others may be at work, those with a lock of their own, stay as they are. What cannot be removed
/// is no reason not to work.
pub fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (
            entry.path(),
            entry.file_name().to_string_lossy().into_owned(),
        );
        let is_folder = entry.file_type().is_ok_and(|t| t.is_dir());
        if let Some(target) = name
            .strip_prefix(REPLACED_PREFIX)
            .map(|name| folder.join(name))
            .filter(|target| !target.exists())
        {
            drop(fs::rename(&path, target));
        } else if name.starts_with(PARTIAL_PREFIX) || name.starts_with(REPLACED_PREFIX) {
            let removed = if is_folder {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            if let Err(error) = removed
                && path.exists()
            {
                tracing::warn!(
                    "`{}`, left by a run that was killed, cannot be removed: {error}",
                    path.display()
                );
            }
        } else if is_folder && !path.join(".lock").exists() {
            remove_leftovers(&path);
        }
    }
}

/// Makes a folder and those above it.
pub fn create_folder(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(FileError::with_path(path))
}

/// Puts every file on the disk, and lets others read it.
pub fn sync_and_make_readable(path: &Path) -> std::io::Result<()> {
    make_readable_by_all(path)?;
    if path.is_dir() {
        fs::read_dir(path)?.try_for_each(|entry| sync_and_make_readable(&entry?.path()))
    } else {
        fs::File::open(path)?.sync_all()
    }
}

/// Temporary files and folders are private; what is published is as readable as anything new.
#[cfg(unix)]
fn make_readable_by_all(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = if path.is_dir() { 0o755 } else { 0o644 };
    match fs::set_permissions(path, fs::Permissions::from_mode(mode)) {
        // a link to what another user's run made: it is as readable as that run left it
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
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
        write_atomic(&path, b"old").expect("written");
        let full = |file: &mut fs::File| {
            file.write_all(b"half of the ne")
                .and(Err(std::io::Error::other("No space left on device")))
        };
        let error = write_atomic_with(&path, full)
            .expect_err("the disk is full")
            .to_string();
        assert!(
            error.contains("table") && error.contains("No space left on device"),
            "{error}"
        );
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
        fs::create_dir(folder.path().join(".replaced-b")).expect("made");
        fs::create_dir(folder.path().join(".replaced-a")).expect("made");
        remove_leftovers(folder.path());
        assert!(
            folder.path().join("b").exists(),
            "what had been moved aside is back"
        );
        assert!(variant.exists() && !folder.path().join(".replaced-a").exists());
        let left: Vec<_> = fs::read_dir(&variant)
            .expect("a folder")
            .flatten()
            .map(|e| e.file_name())
            .collect();
        assert_eq!(left, ["prune.parquet"]);
    }

    #[test]
    fn a_folder_takes_the_place_of_another() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("a");
        for (i, content) in ["one", "two", "three"].into_iter().enumerate() {
            let partial = PartialFolder::new(folder.path()).expect("made");
            fs::write(partial.path().join("x"), content).expect("written");
            if i == 2 {
                swap_folders_by_renaming(partial.path(), &target).expect("exchanged");
                drop(partial);
            } else {
                partial.replace(&target).expect("replaced");
            }
            assert_eq!(
                fs::read_to_string(target.join("x")).expect("there"),
                content
            );
            assert_eq!(
                fs::read_dir(folder.path()).expect("a folder").count(),
                1,
                "the old one is gone"
            );
        }
    }

    #[test]
    fn a_fingerprint_tells_a_changed_byte() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("weights");
        fs::write(&path, vec![7; 300_000]).expect("written");
        let fingerprint = Fingerprint::from_file(&path).expect("read");
        assert_eq!(fingerprint, Fingerprint::from_bytes(&[7; 300_000]));
        assert!(fingerprint.matches_file(&path));
        let mut changed = vec![7; 300_000];
        changed[299_999] = 8;
        fs::write(&path, changed).expect("written");
        assert!(fingerprint.has_length(&path) && !fingerprint.matches_file(&path));
    }

    #[test]
    fn a_folder_replaces_the_one_that_was_there() {
        let target = tempfile::tempdir().expect("a folder");
        for content in ["one", "two"] {
            let partial = PartialFolder::new(target.path()).expect("made");
            fs::create_dir(partial.path().join("hf")).expect("made");
            fs::write(partial.path().join("hf/config.json"), content).expect("written");
            partial.move_into(target.path()).expect("moved");
            assert_eq!(
                fs::read_to_string(target.path().join("hf/config.json")).expect("there"),
                content
            );
            assert_eq!(fs::read_dir(target.path()).expect("a folder").count(), 1);
        }
    }
}
