//! Opening a file that must be a regular file: a FIFO, a device or a socket would block, or never
//! end.

use std::fs::{File, Metadata};
use std::path::Path;

use secateur_base::spelling::closest_entry;

use super::error::DataFileError;

/// Opens a regular file for reading.
///
/// # Errors
/// If there is no such file, it is a folder, a FIFO, a device or a socket, or it cannot be opened.
pub fn open_regular_file(path: &Path) -> Result<File, DataFileError> {
    let metadata = std::fs::metadata(path).map_err(|error| missing_file(path, &error))?;
    if !metadata.is_file() {
        return Err(DataFileError::new(format!(
            "`{}` is {}, not a file",
            path.display(),
            file_kind(&metadata)
        )));
    }
    File::open(path).map_err(|error| DataFileError::cannot_read(path, &error))
}

/// Names the target of a link that leads nowhere.
fn missing_file(path: &Path, error: &std::io::Error) -> DataFileError {
    match std::fs::read_link(path) {
        Ok(target) if error.kind() == std::io::ErrorKind::NotFound => {
            let target = target.display();
            let cause = format!("it is a link to `{target}`, which does not exist");
            DataFileError::cannot_read(path, &cause)
        }
        _ if error.kind() == std::io::ErrorKind::NotFound => {
            DataFileError::cannot_read(path, &"the file does not exist")
                .with_help(missing_file_help(path))
        }
        _ => DataFileError::cannot_read(path, error),
    }
}

/// Names the file of the same folder that may be meant.
fn missing_file_help(path: &Path) -> String {
    let folder = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match closest_entry(folder, &name, |_| true) {
        Some(similar) => format!("did you mean `{}`?", similar.display()),
        None if !folder.is_dir() => "paths are relative to the working directory".to_owned(),
        None => String::new(),
    }
}

/// "a folder", "a FIFO", "a device", "a socket".
fn file_kind(metadata: &Metadata) -> &'static str {
    if metadata.is_dir() {
        return "a folder";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let file_type = metadata.file_type();
        if file_type.is_fifo() {
            return "a FIFO";
        }
        if file_type.is_socket() {
            return "a socket";
        }
    }
    "a device"
}
