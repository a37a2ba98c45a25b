//! Files of text.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use super::error::DataFileError;

/// The byte-order mark (U+FEFF) that some editors write at the beginning of a file, in UTF-8.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Skips a byte-order mark at the beginning.
pub(super) fn without_byte_order_mark(
    bytes: impl Read + 'static,
    path: &Path,
) -> Result<Box<dyn BufRead>, DataFileError> {
    let mut reader = BufReader::new(bytes);
    let buffered = reader
        .fill_buf()
        .map_err(|error| DataFileError::cannot_read(path, &error))?;
    if buffered.starts_with(BYTE_ORDER_MARK) {
        reader.consume(BYTE_ORDER_MARK.len());
    }
    Ok(Box::new(reader))
}

pub(super) fn read_text(mut reader: impl Read, path: &Path) -> Result<String, DataFileError> {
    let mut bytes = Vec::new();
    reader
        .read_to_end(&mut bytes)
        .map_err(|error| DataFileError::cannot_read(path, &error))?;
    String::from_utf8(bytes).map_err(|error| not_utf8(path, error.utf8_error().valid_up_to()))
}

/// The error for a byte that is not UTF-8. `offset`: its place after decompression.
pub(super) fn not_utf8(path: &Path, offset: usize) -> DataFileError {
    let path = path.display();
    DataFileError::new(format!("`{path}` is not UTF-8 text from byte {offset} on"))
        .with_help("convert it to UTF-8, for example with `iconv -f ISO-8859-1 -t UTF-8`")
}
