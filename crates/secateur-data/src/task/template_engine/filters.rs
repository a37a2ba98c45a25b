//! Filters that are Jinja2's and not minijinja's: those that print values, or cut texts at white
//! space.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Kwargs, StringInput};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use regex::Regex;

use super::json::to_html_safe_json;
use super::methods::replace;
use super::numbers;
use super::printing::python_str;
use super::regular_expression::{python_pattern, python_replacement};
use crate::python::{self, case};

/// Adds the filters to the engine.
pub(super) fn add_filters(engine: &mut Environment<'_>) {
    engine.add_filter("string", text);
    engine.add_filter("upper", |state: &State<'_, '_>, value: &Value| {
        Ok::<_, Error>(text(state, value)?.to_uppercase())
    });
    engine.add_filter("lower", |state: &State<'_, '_>, value: &Value| {
        Ok::<_, Error>(text(state, value)?.to_lowercase())
    });
    engine.add_filter("capitalize", |state: &State<'_, '_>, value: &Value| {
        Ok::<_, Error>(case::capitalize(&text(state, value)?))
    });
    engine.add_filter("title", |state: &State<'_, '_>, value: &Value| {
        Ok::<_, Error>(title(&text(state, value)?))
    });
    engine.add_filter("wordcount", |state: &State<'_, '_>, value: &Value| {
        Ok::<_, Error>(word_count(&text(state, value)?))
    });
    engine.add_filter("trim", trim);
    engine.add_filter("indent", indent);
    for name in ["escape", "e", "forceescape"] {
        engine.add_filter(name, escape);
    }
    // minijinja's prints as Rust does.
    engine.remove_filter("pprint");
    engine.add_filter("join", join);
    engine.add_filter("replace", replace_filter);
    engine.add_filter("int", numbers::int);
    engine.add_filter("float", numbers::float);
    engine.add_filter("round", numbers::round);
    engine.add_filter("abs", numbers::abs);
    engine.add_filter("tojson", to_html_safe_json);
    let compiled_patterns = Arc::new(Mutex::new(BTreeMap::new()));
    engine.add_filter(
        "regex_replace",
        move |state: &State<'_, '_>,
              value: &Value,
              pattern: String,
              replacement: String,
              count: Option<usize>| {
            let text = text(state, value)?;
            regex_replace(
                &compiled_patterns,
                &text,
                pattern,
                &replacement,
                count.unwrap_or(0),
            )
        },
    );
}

/// `str(value)` of an argument. An undefined one is an error that names it.
fn text(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    if value.is_undefined() {
        return StringInput::new(state, value).map(|text| text.as_str().to_owned());
    }
    python_str(value)
}

fn trim(state: &State<'_, '_>, value: &Value, chars: Option<String>) -> Result<String, Error> {
    let text = text(state, value)?;
    Ok(match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
        None => python::trim(&text).to_owned(),
    })
}

/// Indents all lines but the first, with `first` that one too; blank lines only with `blank`.
fn indent(
    value: &Value,
    width: Option<&Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let width = match width {
        Some(width) => Some(width.clone()),
        None => kwargs.get::<Option<Value>>("width")?,
    };
    let flag = |positional: Option<bool>, name: &str| match positional {
        Some(flag) => Ok::<_, Error>(flag),
        None => Ok(kwargs.get::<Option<bool>>(name)?.unwrap_or(false)),
    };
    let (first, blank) = (flag(first, "first")?, flag(blank, "blank")?);
    kwargs.assert_all_used()?;
    let indentation = match width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(width)?),
        },
    };
    // Jinja2 adds a line break, which keeps the last line if it is empty.
    let text = python_str(value)? + "\n";
    let lines = python::split::split_lines(&text, false).into_iter();
    let indented = lines.enumerate().map(|(index, line)| {
        let is_indented = match index {
            0 => first,
            _ => blank || !line.is_empty(),
        };
        match is_indented {
            true => format!("{indentation}{line}"),
            false => line.to_owned(),
        }
    });
    Ok(indented.collect::<Vec<String>>().join("\n"))
}

fn escape(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    let text = text(state, value)?.replace('&', "&amp;");
    let text = text.replace('<', "&lt;").replace('>', "&gt;");
    Ok(text.replace('\'', "&#39;").replace('"', "&#34;"))
}

/// Each part between white space, hyphens and opening brackets begins in upper case and goes on in
/// lower case. (The method `title` is another.)
fn title(text: &str) -> String {
    let ends_word = |c: char| python::is_white_space(c) || "-({[<".contains(c);
    let mut result = String::with_capacity(text.len());
    for part in text.split_inclusive(ends_word) {
        let word = part.trim_end_matches(ends_word);
        let mut chars = word.chars();
        if let Some(first) = chars.next() {
            result.extend(first.to_uppercase());
            result.push_str(&chars.as_str().to_lowercase());
        }
        result.push_str(&part[word.len()..]);
    }
    result
}

/// The number of runs of letters, digits and underscores: `\w+`.
fn word_count(text: &str) -> usize {
    let is_in_word = |c: char| c == '_' || python::character::is_alphanumeric(c);
    text.split(|c| !is_in_word(c))
        .filter(|word| !word.is_empty())
        .count()
}

fn join(
    value: &Value,
    joiner: Option<&Value>,
    attribute: Option<&Value>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let joiner = match joiner {
        Some(joiner) => python_str(joiner)?,
        None => kwargs.get::<Option<String>>("d")?.unwrap_or_default(),
    };
    let attribute = match attribute {
        Some(attribute) => Some(attribute.clone()),
        None => kwargs.get::<Option<Value>>("attribute")?,
    };
    kwargs.assert_all_used()?;
    let to_text = |item: Value| match &attribute {
        Some(attribute) => python_str(&item.get_item(attribute)?),
        None => python_str(&item),
    };
    let texts: Vec<String> = value.try_iter()?.map(to_text).collect::<Result<_, _>>()?;
    Ok(texts.join(&joiner))
}

fn replace_filter(
    state: &State<'_, '_>,
    value: &Value,
    old: &Value,
    new: &Value,
    count: Option<i64>,
) -> Result<String, Error> {
    let (old, new) = (text(state, old)?, text(state, new)?);
    Ok(replace(&text(state, value)?, &old, &new, count))
}

/// The filter `regex_replace(pattern, replacement)`: Python's `re.sub`. A count of 0 is no limit.
/// Compiled patterns are kept, because a filter is called for every row.
fn regex_replace(
    compiled_patterns: &Mutex<BTreeMap<String, Regex>>,
    text: &str,
    pattern: String,
    replacement: &str,
    count: usize,
) -> Result<String, Error> {
    let mut compiled_patterns = compiled_patterns
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let regex = match compiled_patterns.get(&pattern) {
        Some(regex) => regex.clone(),
        None => Regex::new(&python_pattern(&pattern)).map_err(|error| {
            let message = "the pattern is not a regular expression";
            Error::new(ErrorKind::InvalidOperation, message).with_source(error)
        })?,
    };
    let replacement = python_replacement(replacement);
    let replaced = regex.replacen(text, count, &*replacement).into_owned();
    compiled_patterns.insert(pattern, regex);
    Ok(replaced)
}
