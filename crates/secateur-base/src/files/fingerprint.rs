//! Length and hash of a file's content.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Size of the read buffer. The file is read, not mapped into memory: mapped pages count as
/// resident memory of this process and would appear in the reported peak.
const READ_BUFFER_BYTES: usize = 16 << 20;

/// From this many bytes on, hashing on all threads is faster than on one (blake3 recommends 128
/// KiB).
const PARALLEL_HASH_BYTES: usize = 1 << 17;

/// The length and the BLAKE3 hash of a file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub bytes: u64,
    /// The hash in hexadecimal.
    pub blake3: String,
}

impl Fingerprint {
    /// Hashes a file on all threads.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn from_file(path: &Path) -> std::io::Result<Self> {
        let mut file = fs::File::open(path)?;
        let file_bytes = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let mut buffer = vec![0; file_bytes.clamp(1, READ_BUFFER_BYTES)];
        let mut hasher = blake3::Hasher::new();
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            if count < PARALLEL_HASH_BYTES {
                hasher.update(&buffer[..count]);
            } else {
                hasher.update_rayon(&buffer[..count]);
            }
        }
        Ok(Self {
            bytes: hasher.count(),
            blake3: hasher.finalize().to_hex().to_string(),
        })
    }

    /// Hashes content that is in memory.
    pub fn from_bytes(content: &[u8]) -> Self {
        Self {
            bytes: content.len() as u64,
            blake3: blake3::hash(content).to_hex().to_string(),
        }
    }

    /// Whether `path` is a file of this length. Reads only the file's metadata.
    pub fn has_length(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == self.bytes)
    }

    /// Whether `path` is a file with exactly this content. Reads the whole file if the length fits.
    pub fn matches_file(&self, path: &Path) -> bool {
        self.has_length(path) && Self::from_file(path).is_ok_and(|found| found == *self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_changes_the_fingerprint() {
        let folder = tempfile::tempdir().expect("a temporary folder");
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
}
