//! The filters `int`, `float`, `round` and `abs` as Jinja2 has them.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value, filters};

use super::printing::{error_of_invalid, large_integer};
use crate::python;

/// `int(value)`, or the default (0) where that is not possible.
pub(super) fn int(
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let default = match default {
        Some(default) => Some(default),
        None => kwargs.get::<Option<Value>>("default")?,
    };
    let base = match base {
        Some(base) => base,
        None => kwargs.get::<Option<u32>>("base")?.unwrap_or(10),
    };
    kwargs.assert_all_used()?;
    let from_float = |number: f64| {
        number
            .is_finite()
            .then(|| Value::from(number.trunc() as i128))
    };
    let integer = match value.kind() {
        ValueKind::Undefined => return Err(ErrorKind::UndefinedError.into()),
        ValueKind::Invalid => return Err(error_of_invalid(value)),
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        ValueKind::Number => from_float(f64::try_from(value.clone())?),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            parse_integer(text, base).or_else(|| from_float(parse_float(text)?))
        }
        _ => None,
    };
    Ok(integer.or(default).unwrap_or_else(|| Value::from(0)))
}

/// `float(value)`, or the default (0.0) where that is not possible.
pub(super) fn float(value: &Value, default: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = match default {
        Some(default) => Some(default),
        None => kwargs.get::<Option<Value>>("default")?,
    };
    kwargs.assert_all_used()?;
    let number = match value.kind() {
        ValueKind::Undefined => return Err(ErrorKind::UndefinedError.into()),
        ValueKind::Invalid => return Err(error_of_invalid(value)),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => Some(f64::try_from(value.clone())?),
        ValueKind::String => parse_float(value.as_str().unwrap_or_default()),
        _ => None,
    };
    Ok(number
        .map(Value::from)
        .or(default)
        .unwrap_or_else(|| Value::from(0.0)))
}

/// `int(text, base)`: with white space around it, a sign, and single underscores between digits.
fn parse_integer(text: &str, base: u32) -> Option<Value> {
    let text = python::trim(text);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        3..=36 => "",
        _ => return None,
    };
    let digits = match digits.get(..prefix.len()) {
        Some(start) if start.eq_ignore_ascii_case(prefix) => &digits[prefix.len()..],
        _ => digits,
    };
    if digits.split('_').any(str::is_empty) || !digits.chars().all(|c| c == '_' || c.is_digit(base))
    {
        return None;
    }
    let digits = digits.replace('_', "");
    match i128::from_str_radix(&format!("{sign}{digits}"), base) {
        Ok(number) => Some(Value::from(number)),
        Err(_) if base == 10 => Some(large_integer(format!(
            "{sign}{}",
            digits.trim_start_matches('0')
        ))),
        Err(_) => None,
    }
}

/// `float(text)`.
fn parse_float(text: &str) -> Option<f64> {
    let text = python::trim(text);
    if text.starts_with('_') || text.ends_with('_') || text.contains("__") {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// `round(value, precision)`. Rounding up or down gives a float, also of an integer.
pub(super) fn round(
    value: Value,
    precision: Option<i32>,
    method: Option<&str>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let method = match method {
        Some(method) => Some(method),
        None => kwargs.get::<Option<&str>>("method")?,
    };
    let is_directed = matches!(method, Some("ceil" | "floor"));
    let rounded = filters::round(bool_to_integer(value), precision, method, kwargs.clone())?;
    match is_directed && rounded.is_integer() {
        true => Ok(Value::from(f64::try_from(rounded)?)),
        false => Ok(rounded),
    }
}

/// `abs(value)`.
pub(super) fn abs(value: Value) -> Result<Value, Error> {
    filters::abs(bool_to_integer(value))
}

/// In Python `True` is 1.
fn bool_to_integer(value: Value) -> Value {
    match value.kind() {
        ValueKind::Bool => Value::from(i64::from(value.is_true())),
        _ => value,
    }
}
