//! `NaN`, `Infinity` and `-Infinity`: Python's json module writes and reads them as numbers, and JSON
//! has none of them.

use std::borrow::Cow;

/// Stands for `NaN` in a text for serde_json: a number that no program writes.
pub(super) const NAN: &str = "0e-2147483647";
/// Stands for `Infinity`. Its value as an f64 is infinity.
const INFINITY: &str = "1e2147483647";

/// The text with these three as numbers of JSON, for a parser that takes numbers by their digits.
pub(super) fn to_json(text: &str) -> Cow<'_, str> {
    const NAMES: [(&str, &str); 2] = [("NaN", NAN), ("Infinity", INFINITY)];
    if NAMES.iter().all(|(name, _)| !text.contains(name)) {
        return Cow::Borrowed(text);
    }
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    let mut is_in_string = false;
    while let Some(c) = rest.chars().next() {
        let name = NAMES.iter().find(|(name, _)| rest.starts_with(name));
        // a backslash and the character that it escapes are copied together
        let (length, replacement) = match (is_in_string, c, name) {
            (true, '\\', _) => (1 + rest[1..].chars().next().map_or(0, char::len_utf8), None),
            (false, _, Some((name, number))) => (name.len(), Some(*number)),
            _ => (c.len_utf8(), None),
        };
        is_in_string ^= c == '"';
        result.push_str(replacement.unwrap_or(&rest[..length]));
        rest = &rest[length..];
    }
    Cow::Owned(result)
}

#[cfg(test)]
mod tests {
    use super::to_json;

    #[test]
    fn names_in_strings_stay() {
        let text = r#"{"NaN": [NaN, -Infinity], "a\"NaN": "Infinity\\", "b": NaN}"#;
        assert_eq!(
            to_json(text),
            r#"{"NaN": [0e-2147483647, -1e2147483647], "a\"NaN": "Infinity\\", "b": 0e-2147483647}"#
        );
    }
}
