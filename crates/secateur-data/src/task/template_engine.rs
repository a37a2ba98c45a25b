//! The template engine of task files: minijinja, with Python's texts, because the templates of
//! lm-evaluation-harness are those of Jinja2.
//!
//! | file | content |
//! |---|---|
//! | `printing` | values as Python prints them |
//! | `methods` | the methods of Python's strings |
//! | `filters` | filters that are Jinja2's and not minijinja's |
//! | `numbers` | the filters `int`, `float`, `round` and `abs` |
//! | `regular_expression` | patterns of Python in the regex crate's language |
//! | `json` | the filter `tojson` |

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, Output, State, UndefinedBehavior, Value};

mod filters;
mod json;
mod methods;
mod numbers;
mod printing;
mod regular_expression;
#[cfg(test)]
mod tests;

pub(crate) use printing::{python_str, row_variables};
pub(crate) use regular_expression::python_pattern;

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
    engine.set_unknown_method_callback(methods::call_method);
    engine.set_formatter(format_value);
    filters::add_filters(&mut engine);
    engine.add_test("sequence", |value: &Value| {
        use minijinja::value::ValueKind;
        // In Python all that has a length and items.
        matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::Map | ValueKind::String
        )
    });
    engine
}

/// Writes `{{ value }}` into a prompt as Python prints it.
fn format_value(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    // An undefined value passes to minijinja, which reports it with its name.
    if value.is_undefined() || value.as_str().is_some() {
        return minijinja::escape_formatter(out, state, value);
    }
    out.write_str(&python_str(value)?).map_err(Error::from)
}

/// A value as JSON, for messages.
pub(crate) fn to_json(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| value.to_string())
}
