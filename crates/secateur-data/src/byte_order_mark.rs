//! Removal of a byte-order mark.

/// Removes the byte-order mark (U+FEFF) that some editors write at the beginning of a file.
pub(crate) fn strip_byte_order_mark(text: String) -> String {
    match text.strip_prefix('\u{feff}') {
        Some(stripped) => stripped.to_owned(),
        None => text,
    }
}
