//! One safetensors file of a checkpoint: its header, read and checked.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use safetensors::tensor::Metadata;
use secateur_base::git_lfs::{GIT_LFS_HELP, is_git_lfs_pointer};

use super::CheckpointError;
use crate::regular_file;

/// One safetensors file of a checkpoint.
pub(super) struct Shard {
    pub path: PathBuf,
    pub file: Arc<File>,
    /// Offset in the file at which the tensors' bytes begin.
    pub data_offset: usize,
    pub metadata: Metadata,
}

/// What a file is that begins with these bytes and is no safetensors file, and what to do about it.
fn other_kind(start: &[u8]) -> Option<(&'static str, &'static str)> {
    const DOWNLOAD: &str = "download the file again";
    const CONVERT: &str =
        "load the folder of the same model as transformers writes it, with safetensors files";
    if is_git_lfs_pointer(start) {
        return Some(("a pointer of Git LFS to the file", GIT_LFS_HELP));
    }
    let kinds: [(&[u8], &str, &str); 6] = [
        (b"GGUF", "GGUF, the format of llama.cpp", CONVERT),
        (b"PK\x03\x04", "a zip archive, as PyTorch writes", CONVERT),
        (b"\x80\x02", "a pickle, as PyTorch writes", CONVERT),
        (b"\x89HDF", "HDF5, TensorFlow's format", CONVERT),
        (b"<!", "a web page", DOWNLOAD),
        (b"<html", "a web page", DOWNLOAD),
    ];
    let kind = kinds.iter().find(|(magic, ..)| start.starts_with(magic));
    kind.map(|&(_, kind, help)| (kind, help))
}

/// The largest header that the safetensors library accepts.
const MAX_HEADER_BYTES: u64 = 100_000_000;

impl Shard {
    /// Reads the header and checks it: the tensors neither overlap nor leave gaps (`Metadata`
    /// checks this as it is deserialised), and the last one ends at the end of the file.
    pub(super) fn open(path: PathBuf) -> Result<Self, CheckpointError> {
        let read = |source| CheckpointError::Read {
            path: path.clone(),
            source,
        };
        let broken = |message: String| CheckpointError::Safetensors {
            path: path.clone(),
            message,
        };
        let file = regular_file::open(&path).map_err(read)?;
        // The file: the header's length as a little-endian u64, the header as JSON, the tensors.
        let file_len = file.metadata().map_err(read)?.len();
        let mut header_len_bytes = [0; size_of::<u64>()];
        let header_start = header_len_bytes.len() as u64;
        if file_len < header_start {
            return Err(broken("it is too short for a header".to_owned()));
        }
        file.read_exact_at(&mut header_len_bytes, 0).map_err(read)?;
        let header_len = u64::from_le_bytes(header_len_bytes);
        if header_len > (file_len - header_start).min(MAX_HEADER_BYTES) {
            let mut start = vec![0; file_len.min(64) as usize];
            file.read_exact_at(&mut start, 0).map_err(read)?;
            if let Some((kind, help)) = other_kind(&start) {
                return Err(CheckpointError::OtherKind { path, kind, help });
            }
            return Err(broken(format!(
                "its header should take {header_len} bytes, and the file has {file_len}"
            )));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact_at(&mut header, header_start)
            .map_err(read)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|e| broken(format!("its header is broken: {e}")))?;
        let data_offset = header_start + header_len;
        let expected_len = data_offset + metadata.data_len() as u64;
        if expected_len != file_len {
            return Err(broken(format!(
                "its header describes {expected_len} bytes, and the file has {file_len}"
            )));
        }
        Ok(Self {
            path,
            file: Arc::new(file),
            data_offset: data_offset as usize,
            metadata,
        })
    }
}
