//! Opens files of a model's folder. What is not a file is refused by what it is: opening a named
//! pipe would wait for ever.

use std::fs::{self, File};
use std::io::{self, Error, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Opens a file for reading, through links.
///
/// # Errors
/// If it does not exist, cannot be read, or is not a file; the message says which.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    check(path)?;
    File::open(path)
}

/// The content of a file, read through links.
///
/// # Errors
/// As [`open`].
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open(path)?.read_to_end(&mut content)?;
    Ok(content)
}

/// An error unless the path is a file, or a link to one.
pub(crate) fn check(path: &Path) -> io::Result<()> {
    let kind = match fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(match fs::read_link(path) {
                Ok(target) => {
                    let target = target.display();
                    Error::other(format!("it is a link to `{target}`, which does not exist"))
                }
                Err(_) => error,
            });
        }
        Err(error) => return Err(error),
    };
    if kind.is_file() {
        return Ok(());
    }
    Err(Error::other(if kind.is_dir() {
        "it is a folder, not a file"
    } else if kind.is_fifo() {
        "it is a named pipe, not a file"
    } else if kind.is_socket() {
        "it is a socket, not a file"
    } else {
        "it is a device, not a file"
    }))
}
