//! The filter `tojson`: Python's `json.dumps` with sorted keys, and the characters of HTML's
//! syntax escaped, as in Jinja2.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::printing::{LargeInteger, error_of_invalid, python_str};
use crate::python::print::float_text;

/// `indent`: spaces of a level. Without it everything is on one line.
pub(super) fn to_html_safe_json(
    value: &Value,
    indent: Option<usize>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => kwargs.get::<Option<usize>>("indent")?,
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    push_json(value, indent, 0, &mut out)?;
    Ok(out)
}

fn push_json(
    value: &Value,
    indent: Option<usize>,
    level: usize,
    out: &mut String,
) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
        ValueKind::Number => out.push_str(&match float_text(f64::try_from(value.clone())?) {
            text if text == "nan" => "NaN".to_owned(),
            text => text.replace("inf", "Infinity"),
        }),
        ValueKind::String => push_json_text(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            push_items(&items, ['[', ']'], indent, level, out, |item, out| {
                push_json(item, indent, level + 1, out)
            })?;
        }
        ValueKind::Map => {
            let mut keys = Vec::new();
            for key in value.try_iter()? {
                keys.push((python_str(&key)?, key));
            }
            keys.sort_by(|left, right| left.0.cmp(&right.0));
            push_items(&keys, ['{', '}'], indent, level, out, |(name, key), out| {
                push_json_text(name, out);
                out.push_str(": ");
                push_json(&value.get_item(key)?, indent, level + 1, out)
            })?;
        }
        _ if value.downcast_object_ref::<LargeInteger>().is_some() => {
            out.push_str(&value.to_string());
        }
        ValueKind::Invalid => return Err(error_of_invalid(value)),
        kind => {
            let message = format!("{kind} has no form in JSON");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    }
    Ok(())
}

/// Writes the items of a list or an object between its brackets.
fn push_items<T>(
    items: &[T],
    [open, close]: [char; 2],
    indent: Option<usize>,
    level: usize,
    out: &mut String,
    push_item: impl Fn(&T, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    let new_line = |level: usize, out: &mut String| {
        if let Some(indent) = indent {
            out.push('\n');
            out.push_str(&" ".repeat(indent * level));
        }
    };
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        new_line(level + 1, out);
        push_item(item, out)?;
    }
    if !items.is_empty() {
        new_line(level, out);
    }
    out.push(close);
    Ok(())
}

/// A text in quotes, in ASCII.
fn push_json_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '<' | '>' | '&' | '\'' => push_unicode_escape(c, out),
            ' '..='~' => out.push(c),
            _ => push_unicode_escape(c, out),
        }
    }
    out.push('"');
}

fn push_unicode_escape(c: char, out: &mut String) {
    let mut units = [0; 2];
    for unit in c.encode_utf16(&mut units) {
        // Writing to a string does not fail.
        let _ = write!(out, "\\u{unit:04x}");
    }
}
