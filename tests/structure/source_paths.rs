//! The paths in a source file, such as `crate::stages::prune`, in `use` declarations and in
//! expressions.

/// A path in the code with its braces expanded: `use a::{b, c as d}` is `a::b` and `a::c as d`.
#[derive(Debug)]
pub(crate) struct UsedPath {
    pub segments: Vec<String>,
    /// The name that a `use` declaration binds: the last segment, or what follows `as`.
    pub bound_name: Option<String>,
    pub is_public_use: bool,
}

/// Identifiers, `::` and single characters; comments, texts and lifetimes are left out.
pub(crate) fn tokenize(text: &str) -> Vec<String> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut position = 0;
    while position < bytes.len() {
        let rest = &bytes[position..];
        let length = match rest[0] {
            b'/' if rest.starts_with(b"//") => length_until(rest, b"\n"),
            b'/' if rest.starts_with(b"/*") => length_until(rest, b"*/"),
            b'"' => string_length(rest),
            b'r' | b'b' | b'c' if raw_string_length(rest).is_some() => {
                raw_string_length(rest).unwrap()
            }
            b'\'' => quote_length(rest),
            first if first.is_ascii_alphabetic() || first == b'_' => {
                let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
                let length = rest.iter().take_while(|byte| is_part(byte)).count();
                tokens.push(text[position..position + length].to_owned());
                length
            }
            b':' if rest.starts_with(b"::") => {
                tokens.push("::".to_owned());
                2
            }
            first if first.is_ascii_whitespace() || !first.is_ascii() => 1,
            first => {
                tokens.push(char::from(first).to_string());
                1
            }
        };
        position += length;
    }
    tokens
}

fn length_until(rest: &[u8], end: &[u8]) -> usize {
    rest.windows(end.len())
        .position(|window| window == end)
        .map_or(rest.len(), |start| start + end.len())
}

/// The length of `"…"`, where a backslash escapes the next character.
fn string_length(rest: &[u8]) -> usize {
    let mut position = 1;
    while position < rest.len() && rest[position] != b'"' {
        position += if rest[position] == b'\\' { 2 } else { 1 };
    }
    position + 1
}

/// The length of `r"…"`, `r#"…"#`, `br"…"` and the like.
fn raw_string_length(rest: &[u8]) -> Option<usize> {
    let prefix = rest.iter().take_while(|byte| b"rbc".contains(byte)).count();
    if !rest[..prefix].contains(&b'r') {
        return None;
    }
    let hashes = rest[prefix..]
        .iter()
        .take_while(|&&byte| byte == b'#')
        .count();
    let start = prefix + hashes;
    if rest.get(start) != Some(&b'"') {
        return None;
    }
    let end = [&b"\""[..], &vec![b'#'; hashes]].concat();
    Some(start + 1 + length_until(&rest[start + 1..], &end))
}

/// The length of a character such as `'a'` or `'\n'`; of the quote alone where a lifetime follows.
fn quote_length(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        return 2 + length_until(&rest[2..], b"'").max(2);
    }
    // A character of up to four bytes and its closing quote.
    let end = rest.iter().skip(2).take(4).position(|&byte| byte == b'\'');
    match end {
        Some(0) => 3,
        Some(more) if !rest[1].is_ascii() => 3 + more,
        _ => 1,
    }
}

/// Leaves out what follows `#[cfg(test)]`, up to the end of that item.
pub(crate) fn without_tests(tokens: Vec<String>) -> Vec<String> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut position = 0;
    while position < tokens.len() {
        let is_mark = tokens[position..].iter().take(MARK.len()).eq(MARK.iter());
        if !is_mark {
            kept.push(tokens[position].clone());
            position += 1;
            continue;
        }
        let mut depth = 0;
        position += MARK.len();
        while position < tokens.len() {
            match tokens[position].as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            let token = &tokens[position];
            position += 1;
            if depth == 0 && (token == "}" || token == ";") {
                break;
            }
        }
    }
    kept
}

/// All paths of at least two segments, and the bound names of `use` declarations.
pub(crate) fn used_paths(tokens: &[String]) -> Vec<UsedPath> {
    let mut paths = Vec::new();
    let mut position = 0;
    while position < tokens.len() {
        let token = tokens[position].as_str();
        let before = position.checked_sub(1).map_or("", |index| &tokens[index]);
        if token == "use" {
            let is_public_use = before == "pub" || before == ")";
            position += 1;
            let start = paths.len();
            read_tree(tokens, &mut position, &[], &mut paths);
            for path in &mut paths[start..] {
                path.is_public_use = is_public_use;
            }
        } else if is_identifier(token)
            && before != "::"
            && tokens.get(position + 1).is_some_and(|next| next == "::")
        {
            // `$crate::…` in a macro belongs to the place that calls the macro.
            let is_macro_path = before == "$";
            let mut segments = Vec::new();
            while tokens.get(position).is_some_and(|next| is_identifier(next)) {
                segments.push(tokens[position].clone());
                position += 1;
                if tokens.get(position).is_none_or(|next| next != "::") {
                    break;
                }
                position += 1;
            }
            if !is_macro_path {
                paths.push(UsedPath {
                    segments,
                    bound_name: None,
                    is_public_use: false,
                });
            }
        } else {
            position += 1;
        }
    }
    paths
}

/// Reads the tree of a `use` declaration: `a::{b, c::*}`.
fn read_tree(
    tokens: &[String],
    position: &mut usize,
    prefix: &[String],
    paths: &mut Vec<UsedPath>,
) {
    let mut segments = prefix.to_vec();
    while let Some(token) = tokens.get(*position) {
        match token.as_str() {
            "::" => *position += 1,
            "{" => {
                *position += 1;
                while tokens.get(*position).is_some_and(|token| token != "}") {
                    read_tree(tokens, position, &segments, paths);
                    if tokens.get(*position).is_some_and(|token| token == ",") {
                        *position += 1;
                    }
                }
                *position += 1;
                return;
            }
            "as" => {
                let name = tokens.get(*position + 1).cloned();
                *position += 2;
                paths.push(UsedPath {
                    segments,
                    bound_name: name,
                    is_public_use: false,
                });
                return;
            }
            // `a::{self}` is `a`
            "self" if segments.len() == prefix.len() && !prefix.is_empty() => *position += 1,
            token if token == "*" || is_identifier(token) => {
                segments.push(token.to_owned());
                *position += 1;
            }
            _ => break,
        }
    }
    if !segments.is_empty() {
        let bound_name = segments.last().cloned();
        paths.push(UsedPath {
            segments,
            bound_name,
            is_public_use: false,
        });
    }
}

fn is_identifier(token: &str) -> bool {
    token.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
}
