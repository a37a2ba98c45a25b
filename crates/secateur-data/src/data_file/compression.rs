//! Compressed data files.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::error::DataFileError;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstandard,
}

/// The extensions of compressed files.
const EXTENSIONS: [&str; 4] = ["gz", "gzip", "zst", "zstd"];

/// The first bytes of compressed files and archives that are not read.
const UNSUPPORTED: [(&[u8], &str); 6] = [
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"PK\x03\x04", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"Rar!", "RAR"),
];

pub(super) fn is_compression_extension(extension: &OsStr) -> bool {
    EXTENSIONS
        .iter()
        .any(|name| extension.eq_ignore_ascii_case(name))
}

impl Compression {
    /// Decides by the first bytes, whatever the name is.
    pub(super) fn detect(bytes: &[u8], path: &Path) -> Result<Self, DataFileError> {
        if bytes.starts_with(b"\x1f\x8b") {
            return Ok(Self::Gzip);
        }
        if bytes.starts_with(b"\x28\xb5\x2f\xfd") {
            return Ok(Self::Zstandard);
        }
        match UNSUPPORTED
            .iter()
            .find(|(magic, _)| bytes.starts_with(magic))
        {
            None => Ok(Self::None),
            Some((_, name)) => Err(DataFileError::new(format!(
                "`{}` is compressed with {name}, which is not supported",
                path.display()
            ))
            .with_help("decompress it, or compress it with gzip or Zstandard")),
        }
    }

    /// The extension of the file in lower case, without that of the compression: `json` of
    /// `train.json.gz`.
    pub(super) fn inner_extension(self, path: &Path) -> String {
        let to_text = |extension: &OsStr| extension.to_string_lossy().to_lowercase();
        match path.extension() {
            Some(extension) if is_compression_extension(extension) => {
                let inner_path = Path::new(path.file_stem().unwrap_or_default());
                inner_path.extension().map(to_text).unwrap_or_default()
            }
            extension => extension.map(to_text).unwrap_or_default(),
        }
    }

    pub(super) fn decompress(
        self,
        file: File,
        path: &Path,
    ) -> Result<Box<dyn Read>, DataFileError> {
        Ok(match self {
            Self::None => Box::new(file),
            // A gzip file may have several members, one after the other.
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(file)),
            Self::Zstandard => Box::new(
                zstd::Decoder::new(file)
                    .map_err(|error| DataFileError::cannot_read(path, &error))?,
            ),
        })
    }
}
