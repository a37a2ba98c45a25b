//! `str` and `repr` of floats and texts.

use std::fmt::Write;

/// `str(number)`, which is also its `repr`: the shortest digits that give the number back, in
/// scientific notation below 1e-4 and from 1e16 on.
pub(crate) fn float_text(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let decimal = number.to_string();
        return match decimal.contains('.') {
            true => decimal,
            false => format!("{decimal}.0"),
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// `repr(text)`: in quotes, with escapes.
pub(crate) fn text_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut result = String::with_capacity(text.len() + 2);
    result.push(quote);
    for c in text.chars() {
        push_escaped(c, quote, &mut result);
    }
    result.push(quote);
    result
}

fn push_escaped(c: char, quote: char, result: &mut String) {
    match c {
        '\\' => result.push_str("\\\\"),
        '\n' => result.push_str("\\n"),
        '\r' => result.push_str("\\r"),
        '\t' => result.push_str("\\t"),
        _ if c == quote => {
            result.push('\\');
            result.push(c);
        }
        _ if is_printable(c) => result.push(c),
        _ => {
            let code = u32::from(c);
            // Writing to a string does not fail.
            let _ = match code {
                0..=0xff => write!(result, "\\x{code:02x}"),
                0x100..=0xffff => write!(result, "\\u{code:04x}"),
                _ => write!(result, "\\U{code:08x}"),
            };
        }
    }
}

/// `str.isprintable` of one character: neither a control, format, surrogate, private or unassigned
/// character, nor a separator other than the space.
pub(crate) fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    // Behind another character, `escape_debug` escapes exactly those that are not printable.
    let behind_letter = format!("a{c}");
    behind_letter.escape_debug().nth(1) == Some(c)
}
