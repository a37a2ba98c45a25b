//! Reading a text file.

use std::path::Path;

use super::error::CorpusError;
use crate::byte_order_mark::strip_byte_order_mark;

/// Reads a whole file of UTF-8 text, without a byte-order mark.
///
/// # Errors
/// If the file cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, CorpusError> {
    let bytes = std::fs::read(path).map_err(|source| CorpusError::Read {
        path: path.to_owned(),
        source,
    })?;
    let text = String::from_utf8(bytes).map_err(|error| CorpusError::NotUtf8 {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })?;
    Ok(strip_byte_order_mark(text))
}
