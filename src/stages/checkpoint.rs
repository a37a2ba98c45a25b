//! The state of a long stage, written to disk while it runs, so that an interrupted run resumes
//! where it stopped.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use secateur_base::files;

/// The shortest time between two writes.
const MIN_WRITE_INTERVAL: Duration = Duration::from_secs(5);

/// The time between two writes is at least this multiple of the duration of the last write, so that
/// at most two percent of the time is spent on writing.
const INTERVAL_PER_WRITE_TIME: u32 = 50;

/// Where the state of one stage is written. Clones share it. The default has no file and writes
/// nothing.
#[derive(Clone, Debug, Default)]
pub struct StageCheckpoint {
    file: Option<PathBuf>,
    next_write: Arc<Mutex<Option<Instant>>>,
}

impl StageCheckpoint {
    /// The checkpoint in this file, which may exist already from an interrupted run.
    pub fn new(file: PathBuf) -> Self {
        Self {
            file: Some(file),
            next_write: Arc::new(Mutex::new(Some(Instant::now() + MIN_WRITE_INTERVAL))),
        }
    }

    /// The state that an interrupted run has written; None if there is none, or if the file is
    /// damaged (its hash does not match).
    pub fn read<S: DeserializeOwned>(&self) -> Option<S> {
        let bytes = std::fs::read(self.file.as_ref()?).ok()?;
        // The encoded state, then its hash.
        let (state, hash) = bytes.split_at_checked(bytes.len().checked_sub(blake3::OUT_LEN)?)?;
        let is_whole = blake3::hash(state).as_bytes() == hash;
        let decoded = if is_whole {
            postcard::from_bytes(state).ok()
        } else {
            None
        };
        if decoded.is_none() {
            tracing::warn!("the state of an interrupted run is damaged; the stage starts again");
        }
        decoded
    }

    /// Removes the state.
    pub fn delete(&self) {
        if let Some(file) = &self.file {
            drop(std::fs::remove_file(file));
        }
    }

    /// Whether the last write is long enough ago for another one.
    pub fn is_due(&self) -> bool {
        self.next_write
            .lock()
            .is_ok_and(|next| next.is_some_and(|next| next <= Instant::now()))
    }

    /// Writes the state. A failure is only a warning: the stage can still finish.
    pub fn write<S: Serialize>(&self, state: &S) {
        let Some(file) = &self.file else { return };
        let start = Instant::now();
        let written = files::write_atomic_with(file, |file| {
            let writer = HashingWriter {
                inner: std::io::BufWriter::new(file),
                hasher: blake3::Hasher::new(),
            };
            let HashingWriter { mut inner, hasher } =
                postcard::to_io(state, writer).map_err(std::io::Error::other)?;
            inner.write_all(hasher.finalize().as_bytes())?;
            inner.flush()
        });
        if let Err(error) = written {
            tracing::warn!("the state of the stage cannot be written: {error}");
        }
        let interval = MIN_WRITE_INTERVAL.max(start.elapsed() * INTERVAL_PER_WRITE_TIME);
        if let Ok(mut next_write) = self.next_write.lock() {
            *next_write = Some(Instant::now() + interval);
        }
    }
}

/// Passes bytes on to a writer and hashes them.
struct HashingWriter<W> {
    inner: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_checkpoint_reads_as_none() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("a.state");
        let checkpoint = StageCheckpoint::new(file.clone());
        assert_eq!(checkpoint.read::<Vec<f32>>(), None);
        let values = vec![0.1f32, f32::MIN_POSITIVE, -3.0e38];
        checkpoint.write(&values);
        assert_eq!(
            StageCheckpoint::new(file.clone()).read::<Vec<f32>>(),
            Some(values)
        );
        let mut bytes = std::fs::read(&file).expect("checkpoint file");
        *bytes.last_mut().expect("not empty") ^= 1;
        std::fs::write(&file, &bytes).expect("writable");
        assert_eq!(checkpoint.read::<Vec<f32>>(), None);
        std::fs::write(&file, &bytes[..10]).expect("writable");
        assert_eq!(checkpoint.read::<Vec<f32>>(), None);
    }
}
