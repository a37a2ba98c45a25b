//! The methods of Python's strings, and `index` of lists. The other methods of lists and objects are
//! minijinja-contrib's.

use minijinja::value::{FunctionArgs, Kwargs, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::printing::{python_repr, python_str};
use crate::python::{self, case, character, print, split};

/// Calls a method that minijinja does not know.
pub(super) fn call_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let result = match value.as_str() {
        Some(text) => string_method(text, method, args)?,
        None if method == "index" && value.kind() == ValueKind::Seq => {
            Some(index_in_list(value, args)?)
        }
        None => None,
    };
    match result {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// `list.index(item)`.
fn index_in_list(list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (item,): (&Value,) = from_args(args)?;
    let found = list.try_iter()?.position(|other| other == *item);
    found.map(Value::from).ok_or_else(|| {
        let message = match python_repr(item) {
            Ok(item) => format!("the list has no item {item}"),
            Err(error) => return error,
        };
        Error::new(ErrorKind::InvalidOperation, message)
    })
}

/// Calls a method of `text`. `None`: there is no such method here.
fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "strip" | "lstrip" | "rstrip" => strip(text, method, args)?,
        "split" | "rsplit" => split_method(text, method == "rsplit", args)?,
        "splitlines" => {
            let (keep_ends, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
            let keep_ends = keyword(keep_ends, &kwargs, "keepends")?.unwrap_or(false);
            kwargs.assert_all_used()?;
            to_list(split::split_lines(text, keep_ends))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            partition(text, non_empty(separator)?, method == "rpartition")
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "replace" => {
            let (old, new, count, kwargs): (&str, &str, Option<i64>, Kwargs) = from_args(args)?;
            let count = keyword(count, &kwargs, "count")?;
            kwargs.assert_all_used()?;
            replace(text, old, new, count).into()
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            let texts: Result<Vec<String>, Error> =
                items.try_iter()?.map(|i| python_str(&i)).collect();
            texts?.join(text).into()
        }
        "count" | "find" | "rfind" | "index" | "rindex" => search(text, method, args)?,
        "startswith" | "endswith" => {
            let (affixes, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
            let (_, part) = slice(text, start, end);
            has_affix(part, affixes, method)?.into()
        }
        "center" | "ljust" | "rjust" | "zfill" => pad(text, method, args)?,
        _ => return no_argument_method(text, method, args),
    }))
}

fn no_argument_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let all = |is: fn(char) -> bool| !text.is_empty() && text.chars().all(is);
    let result: Value = match method {
        "upper" => text.to_uppercase().into(),
        "lower" => text.to_lowercase().into(),
        "title" => case::title(text).into(),
        "capitalize" => case::capitalize(text).into(),
        "swapcase" => case::swap_case(text).into(),
        "isspace" => all(python::is_white_space).into(),
        "isalpha" => all(character::is_letter).into(),
        "isdecimal" => all(character::is_decimal).into(),
        "isdigit" => all(character::is_digit).into(),
        "isnumeric" => all(character::is_numeric).into(),
        "isalnum" => all(character::is_alphanumeric).into(),
        "isascii" => text.is_ascii().into(),
        "isprintable" => text.chars().all(print::is_printable).into(),
        "islower" => character::is_lower_case(text).into(),
        "isupper" => character::is_upper_case(text).into(),
        "istitle" => character::is_title(text).into(),
        _ => return Ok(None),
    };
    no_arguments(args)?;
    Ok(Some(result))
}

fn no_arguments(args: &[Value]) -> Result<(), Error> {
    <() as FunctionArgs<'_>>::from_values(None, args).map(drop)
}

/// An argument that may be given by its name.
fn keyword<'k, T>(
    positional: Option<T>,
    kwargs: &'k Kwargs,
    name: &'k str,
) -> Result<Option<T>, Error>
where
    Option<T>: minijinja::value::ArgType<'k, Output = Option<T>>,
{
    match positional {
        Some(value) => Ok(Some(value)),
        None => kwargs.get::<Option<T>>(name),
    }
}

fn to_list(parts: Vec<&str>) -> Value {
    parts.into_iter().map(Value::from).collect()
}

fn non_empty(separator: &str) -> Result<&str, Error> {
    if separator.is_empty() {
        let message = "the separator is empty";
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    Ok(separator)
}

fn strip(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (chars,): (Option<&str>,) = from_args(args)?;
    let is_stripped = |c: char| match chars {
        Some(chars) => chars.contains(c),
        None => python::is_white_space(c),
    };
    Ok(match method {
        "lstrip" => text.trim_start_matches(is_stripped),
        "rstrip" => text.trim_end_matches(is_stripped),
        _ => text.trim_matches(is_stripped),
    }
    .into())
}

fn split_method(text: &str, from_end: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, max_splits, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = keyword(separator, &kwargs, "sep")?;
    let max_splits = keyword(max_splits, &kwargs, "maxsplit")?;
    kwargs.assert_all_used()?;
    // A negative number is no limit.
    let max_splits = max_splits.and_then(|count| usize::try_from(count).ok());
    Ok(to_list(match (separator, from_end) {
        (Some(separator), false) => split::split_at(text, non_empty(separator)?, max_splits),
        (Some(separator), true) => {
            split::split_at_from_end(text, non_empty(separator)?, max_splits)
        }
        (None, false) => split::split_words(text, max_splits),
        (None, true) => split::split_words_from_end(text, max_splits),
    }))
}

fn partition(text: &str, separator: &str, from_end: bool) -> Value {
    let found = match from_end {
        true => text.rsplit_once(separator),
        false => text.split_once(separator),
    };
    let parts = match (found, from_end) {
        (Some((before, after)), _) => (before, separator, after),
        (None, false) => (text, "", ""),
        (None, true) => ("", "", text),
    };
    Value::from(parts)
}

/// `str.replace`. A negative count is no limit.
pub(super) fn replace(text: &str, old: &str, new: &str, count: Option<i64>) -> String {
    match count.and_then(|count| usize::try_from(count).ok()) {
        Some(count) => text.replacen(old, new, count),
        None => text.replace(old, new),
    }
}

/// `text[start:end]` and the number of characters before it. Both count characters, from the end if
/// they are negative.
fn slice(text: &str, start: Option<i64>, end: Option<i64>) -> (usize, &str) {
    let length = text.chars().count();
    let to_index = |position: i64| match usize::try_from(position) {
        Ok(index) => index.min(length),
        Err(_) => length.saturating_sub(position.unsigned_abs() as usize),
    };
    let start = start.map_or(0, to_index);
    let end = end.map_or(length, to_index).max(start);
    let offset = |index| {
        text.char_indices()
            .nth(index)
            .map_or(text.len(), |(byte, _)| byte)
    };
    (start, &text[offset(start)..offset(end)])
}

fn search(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let (chars_before, part) = slice(text, start, end);
    if method == "count" {
        return Ok(part.matches(what).count().into());
    }
    let found = match method {
        "rfind" | "rindex" => part.rfind(what),
        _ => part.find(what),
    };
    match found {
        Some(byte) => Ok((chars_before + part[..byte].chars().count()).into()),
        None if method.ends_with("index") => {
            let message = format!("the text has no `{what}`");
            Err(Error::new(ErrorKind::InvalidOperation, message))
        }
        None => Ok(Value::from(-1)),
    }
}

/// Whether the text begins or ends with a text, or one of several.
fn has_affix(text: &str, affixes: &Value, method: &str) -> Result<bool, Error> {
    let has_one = |affix: &str| match method {
        "startswith" => text.starts_with(affix),
        _ => text.ends_with(affix),
    };
    if let Some(affix) = affixes.as_str() {
        return Ok(has_one(affix));
    }
    if !matches!(affixes.kind(), ValueKind::Seq | ValueKind::Iterable) {
        let message = format!("{method} needs a text or several, not {}", affixes.kind());
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    Ok(affixes
        .try_iter()?
        .any(|affix| affix.as_str().is_some_and(has_one)))
}

fn pad(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (usize, Option<&str>) = from_args(args)?;
    let fill = match method {
        "zfill" => "0",
        _ => fill.unwrap_or(" "),
    };
    let missing = width.saturating_sub(text.chars().count());
    let padding = |count: usize| fill.repeat(count);
    Ok(match method {
        "ljust" => format!("{text}{}", padding(missing)),
        "rjust" => format!("{}{text}", padding(missing)),
        // Python puts the odd character to the left if the width is odd.
        "center" => {
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", padding(left), padding(missing - left))
        }
        _ => match text.strip_prefix(['+', '-']) {
            Some(digits) => format!("{}{}{digits}", &text[..1], padding(missing)),
            None => format!("{}{text}", padding(missing)),
        },
    }
    .into())
}
