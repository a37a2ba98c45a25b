//! Templates and expressions of a task file (minijinja, with Python's methods of texts), as the field's own are written.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};
use regex::Regex;

/// A template or an expression as it stands in the task file.
#[derive(Clone, Debug)]
pub struct TemplateSource {
    /// `context`, `choices[1]`.
    pub key: String,
    pub text: String,
    /// Where it stands; of one in a list, where the list stands.
    pub span: Range<usize>,
}

/// A template or expression that cannot be used, or not with a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateError {
    pub message: String,
    pub span: Range<usize>,
    /// The task file is wrong, whatever the row.
    pub is_row_independent: bool,
}

/// What compiles templates and expressions.
pub fn template_engine<'source>() -> Environment<'source> {
    let mut engine = Environment::new();
    // Errors name what is undefined.
    engine.set_debug(true);
    engine.set_undefined_behavior(UndefinedBehavior::Strict);
    engine.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    // Only delimiters could be refused, and they are the usual ones.
    engine.set_syntax(
        SyntaxConfig::builder()
            .keep_trailing_newline(true)
            .build()
            .unwrap_or_default(),
    );
    engine.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    engine.set_formatter(|out, state, value| {
        // An empty or nested field would become a prompt of `none` or `[…]`.
        if value.is_undefined() || value.is_number() || value.as_str().is_some() {
            return minijinja::escape_formatter(out, state, value);
        }
        Err(Error::new(
            ErrorKind::BadSerialization,
            format!("{} is not a text", to_json(value)),
        ))
    });
    let compiled: Arc<Mutex<BTreeMap<String, Regex>>> = Arc::default();
    engine.add_filter(
        "regex_replace",
        move |text: String, pattern: String, with: String| {
            let mut compiled = compiled.lock().unwrap_or_else(PoisonError::into_inner);
            let regex = match compiled.get(&pattern) {
                Some(regex) => regex.clone(),
                None => Regex::new(&pattern).map_err(|e| {
                    Error::new(
                        ErrorKind::InvalidOperation,
                        "the pattern is not a regular expression",
                    )
                    .with_source(e)
                })?,
            };
            let replaced = regex.replace_all(&text, with).into_owned();
            compiled.insert(pattern, regex);
            Ok(replaced)
        },
    );
    engine
}

/// A value as a message shows it: as JSON.
fn to_json(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| value.to_string())
}

/// A compiled template.
pub struct Template<'e> {
    source: &'e TemplateSource,
    template: minijinja::Template<'e, 'e>,
}

/// A compiled expression.
pub struct Expression<'e> {
    source: &'e TemplateSource,
    expression: minijinja::Expression<'e, 'e>,
}

impl TemplateSource {
    /// A mistake of what is written.
    pub fn task_file_error(&self, message: impl Into<String>) -> TemplateError {
        TemplateError {
            message: message.into(),
            span: self.span.clone(),
            is_row_independent: true,
        }
    }

    /// What is written does not fit a row.
    pub fn row_error(&self, message: impl Into<String>) -> TemplateError {
        TemplateError {
            message: message.into(),
            span: self.span.clone(),
            is_row_independent: false,
        }
    }

    pub fn compile_template<'e>(
        &'e self,
        engine: &'e Environment<'e>,
    ) -> Result<Template<'e>, TemplateError> {
        match engine.template_from_named_str(&self.key, &self.text) {
            Ok(template) => Ok(Template {
                source: self,
                template,
            }),
            Err(e) => Err(self.task_file_error(format!(
                "`{}` is not a template: {}",
                self.key,
                error_message(&e)
            ))),
        }
    }

    pub fn compile_expression<'e>(
        &'e self,
        engine: &'e Environment<'e>,
    ) -> Result<Expression<'e>, TemplateError> {
        match engine.compile_expression(&self.text) {
            Ok(expression) => Ok(Expression {
                source: self,
                expression,
            }),
            Err(_) if self.text.trim_start().starts_with("{{") => {
                Err(self.task_file_error(format!(
                    "`{}` is an expression, which is written without braces",
                    self.key
                )))
            }
            Err(e) => Err(self.task_file_error(format!(
                "`{}` is not an expression: {}",
                self.key,
                error_message(&e)
            ))),
        }
    }

    /// What an error says of the template or of the row: a filter that does not exist is no row's fault.
    fn classify_error(
        &self,
        error: &Error,
        variables: impl IntoIterator<Item = String>,
        row: &Value,
    ) -> TemplateError {
        use ErrorKind::{SyntaxError, UndefinedError, UnknownFilter, UnknownFunction, UnknownTest};
        let always = matches!(
            error.kind(),
            SyntaxError | UnknownFilter | UnknownFunction | UnknownTest
        ) || error
            .source()
            .is_some_and(|source| source.is::<regex::Error>());
        if always {
            return self.task_file_error(format!("`{}`: {}", self.key, error_message(error)));
        }
        let detail = error.detail().unwrap_or_default();
        let mut lacking: Vec<String> = variables
            .into_iter()
            .filter_map(|path| missing_field(&path, row))
            .collect();
        // The one that the error names; another may be asked for on condition that it is there.
        lacking.sort_by_key(|field| !detail.contains(&format!("`{field}` is undefined")));
        match lacking.first() {
            // `undefined has no method named strip` is of another kind.
            Some(field) if error.kind() == UndefinedError || detail.contains("undefined") => {
                self.row_error(format!("it lacks the field `{field}`"))
            }
            _ => self.row_error(format!("`{}`: {}", self.key, error_message(error))),
        }
    }
}

/// How much of a path (`choices.text`) a row does not have.
fn missing_field(path: &str, row: &Value) -> Option<String> {
    let mut value = row.clone();
    for (end, _) in path.match_indices('.').chain([(path.len(), "")]) {
        // `sentence.split` is no field: what is asked of a text is a method of it.
        if value.kind() != ValueKind::Map {
            return None;
        }
        let name = path[..end].rsplit('.').next().unwrap_or(path);
        match value.get_attr(name) {
            Ok(found) if !found.is_undefined() => value = found,
            _ => return Some(path[..end].to_owned()),
        }
    }
    None
}

/// An error in one sentence, without the place that minijinja adds: the task file's place stands for it.
fn error_message(error: &Error) -> String {
    let mut said = match error.detail() {
        Some(detail) if error.kind() == ErrorKind::BadSerialization => detail.to_owned(),
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    if let Some(source) = error.source() {
        said.push_str(&format!(": {source}"));
    }
    said
}

impl Template<'_> {
    pub fn render(&self, row: &Value) -> Result<String, TemplateError> {
        let refused = |e: Error| {
            self.source
                .classify_error(&e, self.template.undeclared_variables(true), row)
        };
        self.template.render(row.clone()).map_err(refused)
    }

    pub fn row_error(&self, message: impl Into<String>) -> TemplateError {
        self.source.row_error(message)
    }
}

impl Expression<'_> {
    fn evaluate(&self, row: &Value) -> Result<Value, TemplateError> {
        let variables = || self.expression.undeclared_variables(true);
        let value = self
            .expression
            .eval(row.clone())
            .map_err(|e| self.source.classify_error(&e, variables(), row))?;
        if value.is_undefined() {
            return Err(self.source.classify_error(
                &ErrorKind::UndefinedError.into(),
                variables(),
                row,
            ));
        }
        Ok(value)
    }

    /// A list of texts.
    pub fn evaluate_strings(&self, row: &Value) -> Result<Vec<String>, TemplateError> {
        let value = self.evaluate(row)?;
        let text = |item: Value| match item.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => Err(self.row_error(format!(
                "`{}` holds {}, not a text",
                self.source.text,
                to_json(&item)
            ))),
        };
        match value.try_iter() {
            Ok(items) if value.as_str().is_none() => items.map(text).collect(),
            _ => Err(self.row_error(format!(
                "`{}` is {}, not a list",
                self.source.text,
                to_json(&value)
            ))),
        }
    }

    /// An index, written as a number or as a text of digits.
    pub fn evaluate_index(&self, row: &Value) -> Result<usize, TemplateError> {
        let value = self.evaluate(row)?;
        let number = match value.as_str() {
            Some(text) => text.parse().ok(),
            None if value.is_number() => value.as_usize(),
            None => None,
        };
        number.ok_or_else(|| {
            self.row_error(format!(
                "`{}` is {}, not the number of a choice",
                self.source.text,
                to_json(&value)
            ))
        })
    }

    /// A label: a text, or a number taken as one.
    pub fn evaluate_label(&self, row: &Value) -> Result<String, TemplateError> {
        let value = self.evaluate(row)?;
        match value.as_str() {
            Some(text) => Ok(text.to_owned()),
            None if value.is_number() => Ok(value.to_string()),
            None => Err(self.row_error(format!(
                "`{}` is {}, not a label",
                self.source.text,
                to_json(&value)
            ))),
        }
    }

    pub fn row_error(&self, message: impl Into<String>) -> TemplateError {
        self.source.row_error(message)
    }
}
