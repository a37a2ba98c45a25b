//! The template engine of task files: minijinja, with Python's string methods, because the
//! templates of lm-evaluation-harness use them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value};
use regex::Regex;

/// The engine that compiles and renders the templates and expressions of a task file.
pub(crate) fn template_engine<'source>() -> Environment<'source> {
    let mut engine = Environment::new();
    // In debug mode an error names the variable that is undefined.
    engine.set_debug(true);
    // A field that a row lacks is an error, not an empty string in the prompt.
    engine.set_undefined_behavior(UndefinedBehavior::Strict);
    // Prompts are plain text: `<` stays `<`.
    engine.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    // A newline at the end of a template belongs to the prompt. Building fails only for unusable
    // delimiters, and these are the defaults.
    engine.set_syntax(
        SyntaxConfig::builder()
            .keep_trailing_newline(true)
            .build()
            .unwrap_or_default(),
    );
    engine.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    engine.set_formatter(format_value);
    let compiled_patterns = Arc::new(Mutex::new(BTreeMap::new()));
    engine.add_filter(
        "regex_replace",
        move |text: String, pattern: String, replacement: String| {
            regex_replace(&compiled_patterns, &text, pattern, &replacement)
        },
    );
    engine
}

/// Writes `{{ value }}` into a prompt. Only strings and numbers are accepted: a null or nested
/// field would become a prompt with `none` or `[…]` in it.
fn format_value(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    // An undefined value passes to minijinja, which reports it with its name.
    if value.is_undefined() || value.is_number() || value.as_str().is_some() {
        return minijinja::escape_formatter(out, state, value);
    }
    Err(Error::new(
        ErrorKind::BadSerialization,
        format!("{} is not a text", to_json(value)),
    ))
}

/// The filter `regex_replace(pattern, replacement)`. Compiled patterns are kept, because a filter
/// is called for every row.
fn regex_replace(
    compiled_patterns: &Mutex<BTreeMap<String, Regex>>,
    text: &str,
    pattern: String,
    replacement: &str,
) -> Result<String, Error> {
    let mut compiled_patterns = compiled_patterns
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let regex = match compiled_patterns.get(&pattern) {
        Some(regex) => regex.clone(),
        None => Regex::new(&pattern).map_err(|error| {
            let message = "the pattern is not a regular expression";
            Error::new(ErrorKind::InvalidOperation, message).with_source(error)
        })?,
    };
    let replaced = regex.replace_all(text, replacement).into_owned();
    compiled_patterns.insert(pattern, regex);
    Ok(replaced)
}

/// A value as JSON, for messages.
pub(crate) fn to_json(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| value.to_string())
}
