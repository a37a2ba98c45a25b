//! How a stage's small values are written into its product and read back: one file, in postcard's
//! encoding.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{RestoreError, StageError};
use secateur_base::files::{self, FileError};
use secateur_store::cache::{ProductDraft, StoredProduct};

/// The file of a product that holds one value.
const VALUE_FILE: &str = "product";

/// Writes a value into a product.
pub(crate) fn write_value(draft: &ProductDraft, value: &impl Serialize) -> Result<(), StageError> {
    let path = draft.path().join(VALUE_FILE);
    let bytes = postcard::to_stdvec(value).map_err(|error| {
        let source = std::io::Error::other(error);
        StageError::store(FileError::write(&path, source))
    })?;
    files::write_atomic_unsynced(&path, &bytes).map_err(StageError::store)
}

/// Reads what [`write_value`] wrote.
///
/// # Errors
/// [`RestoreError::Damaged`] if the file is missing or does not decode.
pub(crate) fn read_value<T: DeserializeOwned>(stored: &StoredProduct) -> Result<T, RestoreError> {
    let damaged = || RestoreError::Damaged(VALUE_FILE.to_owned());
    let bytes = std::fs::read(stored.file_path(VALUE_FILE)).map_err(|_| damaged())?;
    postcard::from_bytes(&bytes).map_err(|_| damaged())
}
