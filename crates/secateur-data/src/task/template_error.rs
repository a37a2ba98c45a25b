//! What can be wrong with a template, and how an error of the template engine is explained.
//!
//! minijinja reports what failed inside a template (`undefined has no method named strip`). The
//! user needs to know which of two files to change. An error that no row could avoid, such as an
//! unknown filter, is a mistake of the task file. Any other is a mismatch of the template and one
//! row; if the row lacks a field that the template reads, the message names that field.

use std::error::Error as _;
use std::ops::Range;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// A template or expression that cannot be used, or does not fit a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TemplateError {
    pub(crate) message: String,
    /// The bytes of the task file that are wrong.
    pub(crate) span: Range<usize>,
    /// Whether the task file is wrong, whatever the row.
    pub(crate) is_row_independent: bool,
}

/// Whether no row could avoid this error.
pub(crate) fn is_row_independent(error: &Error) -> bool {
    use ErrorKind::{SyntaxError, UnknownFilter, UnknownFunction, UnknownTest};
    let is_template_mistake = matches!(
        error.kind(),
        SyntaxError | UnknownFilter | UnknownFunction | UnknownTest
    );
    let is_invalid_regex = error
        .source()
        .is_some_and(|source| source.is::<regex::Error>());
    is_template_mistake || is_invalid_regex
}

/// If `error` comes from a field that the row lacks, returns the field. `variables` are the names
/// that the template reads, with their attributes (`choices.text`).
pub(crate) fn field_behind_error(
    error: &Error,
    variables: impl IntoIterator<Item = String>,
    row: &Value,
) -> Option<String> {
    let detail = error.detail().unwrap_or_default();
    // `undefined has no method named strip` is an error of another kind than UndefinedError.
    let is_undefined = error.kind() == ErrorKind::UndefinedError || detail.contains("undefined");
    if !is_undefined {
        return None;
    }
    let missing_fields: Vec<String> = variables
        .into_iter()
        .filter_map(|variable| missing_field(&variable, row))
        .collect();
    // A template may read an optional field on condition that it is defined. Such a field is
    // missing as well, so the field that the error names comes first.
    let named_in_error = |field: &&String| detail.contains(&format!("`{field}` is undefined"));
    missing_fields
        .iter()
        .find(named_in_error)
        .or(missing_fields.first())
        .cloned()
}

/// The part of the path `variable` that the row does not have: of `choices.text`, `choices` if
/// there is no such field, or `choices.text` if `choices` has no field `text`.
fn missing_field(variable: &str, row: &Value) -> Option<String> {
    let mut value = row.clone();
    let mut path = String::new();
    for name in variable.split('.') {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(name);
        // `sentence.split` is a method of a string, not a field.
        if value.kind() != ValueKind::Map {
            return None;
        }
        match value.get_attr(name) {
            Ok(field) if !field.is_undefined() => value = field,
            _ => return Some(path),
        }
    }
    None
}

/// The error in one sentence. minijinja's own text also has a line number inside the template,
/// which is left out: the message is shown with the place in the task file.
pub(crate) fn error_sentence(error: &Error) -> String {
    let mut sentence = match error.detail() {
        Some(detail) if error.kind() == ErrorKind::BadSerialization => detail.to_owned(),
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    if let Some(source) = error.source() {
        sentence.push_str(&format!(": {source}"));
    }
    sentence
}
