//! Regular expressions of Python in the regex crate's language.

/// A pattern in which `\s` and `\S` are Python's white space: the regex crate's lacks the four
/// separators U+001C to U+001F.
pub(crate) fn python_pattern(pattern: &str) -> String {
    let mut result = String::with_capacity(pattern.len());
    let mut class_depth = 0_usize;
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match (chars.next(), class_depth > 0) {
                (Some('s'), true) => result.push_str(r"\s\x1c-\x1f"),
                (Some('s'), false) => result.push_str(r"[\s\x1c-\x1f]"),
                (Some('S'), _) => result.push_str(r"[^\s\x1c-\x1f]"),
                (Some(escaped), _) => result.extend(['\\', escaped]),
                (None, _) => result.push('\\'),
            },
            '[' => {
                class_depth += 1;
                result.push(c);
            }
            ']' => {
                class_depth = class_depth.saturating_sub(1);
                result.push(c);
            }
            _ => result.push(c),
        }
    }
    result
}

/// A replacement in which groups may also be written as Python writes them: `\1`, `\g<1>`,
/// `\g<name>`.
pub(crate) fn python_replacement(replacement: &str) -> String {
    let mut result = String::with_capacity(replacement.len());
    let mut rest = replacement;
    while let Some(backslash) = rest.find('\\') {
        result.push_str(&rest[..backslash]);
        let escape = &rest[backslash + 1..];
        let digits = escape.len()
            - escape
                .trim_start_matches(|c: char| c.is_ascii_digit())
                .len();
        let named_group = escape
            .strip_prefix("g<")
            .and_then(|name| name.split_once('>'));
        if digits > 0 {
            result.push_str(&format!("${{{}}}", &escape[..digits]));
            rest = &escape[digits..];
        } else if let Some((name, after)) = named_group {
            result.push_str(&format!("${{{name}}}"));
            rest = after;
        } else if let Some(after) = escape.strip_prefix('n') {
            result.push('\n');
            rest = after;
        } else if let Some(after) = escape.strip_prefix('\\') {
            result.push('\\');
            rest = after;
        } else {
            result.push('\\');
            rest = escape;
        }
    }
    result.push_str(rest);
    result
}
