//! How far a long stage came: left on disk while it works, so that an interrupted run goes on where it stopped.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use secateur_base::files;

/// At least so long between two writes.
const MIN_WRITE_INTERVAL: Duration = Duration::from_secs(5);

/// Between two writes passes so many times what a write takes: at most two percent of the time go into writing.
const INTERVAL_PER_WRITE_TIME: u32 = 50;

/// The place of one stage's state. Clones are the same place. The default keeps nothing.
#[derive(Clone, Debug, Default)]
pub struct StageCheckpoint {
    file: Option<PathBuf>,
    next_write: Arc<Mutex<Option<Instant>>>,
}

impl StageCheckpoint {
    /// State in a file, which may be there from an earlier run.
    pub fn new(file: PathBuf) -> Self {
        Self {
            file: Some(file),
            next_write: Arc::new(Mutex::new(Some(Instant::now() + MIN_WRITE_INTERVAL))),
        }
    }

    /// What an earlier run left. A file that is not whole counts as none.
    pub fn read<S: DeserializeOwned>(&self) -> Option<S> {
        let bytes = std::fs::read(self.file.as_ref()?).ok()?;
        let (state, hash) = bytes.split_at_checked(bytes.len().checked_sub(blake3::OUT_LEN)?)?;
        let whole = (blake3::hash(state).as_bytes() == hash)
            .then(|| postcard::from_bytes(state).ok())
            .flatten();
        if whole.is_none() {
            tracing::warn!("what an interrupted run left is damaged; the stage begins anew");
        }
        whole
    }

    /// Drops what an earlier run left.
    pub fn delete(&self) {
        if let Some(file) = &self.file {
            drop(std::fs::remove_file(file));
        }
    }

    /// Whether it is time for a write.
    pub fn is_due(&self) -> bool {
        self.next_write
            .lock()
            .is_ok_and(|next| next.is_some_and(|next| next <= Instant::now()))
    }

    /// Leaves the state. That it cannot be written is no reason to stop work.
    pub fn write<S: Serialize>(&self, state: &S) {
        let Some(file) = &self.file else { return };
        let began = Instant::now();
        let written = files::write_atomic_with(file, |file| {
            let hashing = HashingWriter {
                inner: std::io::BufWriter::new(file),
                hasher: blake3::Hasher::new(),
            };
            let mut hashing = postcard::to_io(state, hashing).map_err(std::io::Error::other)?;
            hashing
                .inner
                .write_all(hashing.hasher.finalize().as_bytes())?;
            hashing.inner.flush()
        });
        if let Err(error) = written {
            tracing::warn!("how far the stage is cannot be kept: {error}");
        }
        if let Ok(mut next) = self.next_write.lock() {
            *next = Some(
                Instant::now() + MIN_WRITE_INTERVAL.max(began.elapsed() * INTERVAL_PER_WRITE_TIME),
            );
        }
    }
}

/// Hashes what goes through it.
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
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.state");
        let state = StageCheckpoint::new(file.clone());
        assert_eq!(state.read::<Vec<f32>>(), None);
        let values = vec![0.1f32, f32::MIN_POSITIVE, -3.0e38];
        state.write(&values);
        assert_eq!(
            StageCheckpoint::new(file.clone()).read::<Vec<f32>>(),
            Some(values)
        );
        let mut bytes = std::fs::read(&file).expect("there");
        *bytes.last_mut().expect("some") ^= 1;
        std::fs::write(&file, &bytes).expect("written");
        assert_eq!(state.read::<Vec<f32>>(), None);
        std::fs::write(&file, &bytes[..10]).expect("written");
        assert_eq!(state.read::<Vec<f32>>(), None);
    }
}
