//! `str.split`, `str.rsplit` and `str.splitlines`.

use super::white_space::{is_white_space, trim_end, trim_start};

/// `text.split(None, max_splits)`: the words between white space. `None`: all of them.
pub(crate) fn split_words(text: &str, max_splits: Option<usize>) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = trim_start(text);
    while !rest.is_empty() {
        if max_splits == Some(words.len()) {
            words.push(rest);
            break;
        }
        let end = rest.find(is_white_space).unwrap_or(rest.len());
        words.push(&rest[..end]);
        rest = trim_start(&rest[end..]);
    }
    words
}

/// `text.rsplit(None, max_splits)`: as [`split_words`], from the end.
pub(crate) fn split_words_from_end(text: &str, max_splits: Option<usize>) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = trim_end(text);
    while !rest.is_empty() {
        if max_splits == Some(words.len()) {
            words.push(rest);
            break;
        }
        let before = rest.trim_end_matches(|c| !is_white_space(c));
        words.push(&rest[before.len()..]);
        rest = trim_end(before);
    }
    words.reverse();
    words
}

/// `text.split(separator, max_splits)`. The separator is not empty.
pub(crate) fn split_at<'t>(
    text: &'t str,
    separator: &str,
    max_splits: Option<usize>,
) -> Vec<&'t str> {
    match max_splits {
        Some(count) => text.splitn(count.saturating_add(1), separator).collect(),
        None => text.split(separator).collect(),
    }
}

/// `text.rsplit(separator, max_splits)`. The separator is not empty.
pub(crate) fn split_at_from_end<'t>(
    text: &'t str,
    separator: &str,
    max_splits: Option<usize>,
) -> Vec<&'t str> {
    let mut parts: Vec<&str> = match max_splits {
        Some(count) => text.rsplitn(count.saturating_add(1), separator).collect(),
        None => text.rsplit(separator).collect(),
    };
    parts.reverse();
    parts
}

/// `text.splitlines(keep_ends)`. A line ends at more characters than the newline.
pub(crate) fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let is_line_end = |c: char| {
        matches!(
            c,
            '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let line_length = rest.find(is_line_end).unwrap_or(rest.len());
        let (line, after) = rest.split_at(line_length);
        let end_length = match after.strip_prefix("\r\n") {
            Some(_) => 2,
            None => after.chars().next().map_or(0, char::len_utf8),
        };
        lines.push(match keep_ends {
            true => &rest[..line_length + end_length],
            false => line,
        });
        rest = &after[end_length..];
    }
    lines
}
