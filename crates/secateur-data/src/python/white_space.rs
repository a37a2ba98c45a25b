//! White space as `str.isspace` and `str.strip` define it.

/// Whether a character is white space. Unlike [`char::is_whitespace`] this includes the four
/// separators U+001C to U+001F.
pub fn is_white_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Whether a text is empty or has only white space.
pub fn is_blank(text: &str) -> bool {
    text.chars().all(is_white_space)
}

/// `str.strip()`.
pub fn trim(text: &str) -> &str {
    text.trim_matches(is_white_space)
}

/// `str.lstrip()`.
pub fn trim_start(text: &str) -> &str {
    text.trim_start_matches(is_white_space)
}

/// `str.rstrip()`.
pub fn trim_end(text: &str) -> &str {
    text.trim_end_matches(is_white_space)
}
