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
pub struct Written {
    /// `context`, `choices[1]`.
    pub key: String,
    pub text: String,
    /// Where it stands; of one in a list, where the list stands.
    pub span: Range<usize>,
}

/// A template or expression that cannot be used, or not with a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    pub message: String,
    pub span: Range<usize>,
    /// The task file is wrong, whatever the row.
    pub always: bool,
}

/// What compiles templates and expressions.
pub fn engine<'source>() -> Environment<'source> {
    let mut engine = Environment::new();
    // Errors name what is undefined.
    engine.set_debug(true);
    engine.set_undefined_behavior(UndefinedBehavior::Strict);
    engine.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    // Only delimiters could be refused, and they are the usual ones.
    engine.set_syntax(SyntaxConfig::builder().keep_trailing_newline(true).build().unwrap_or_default());
    engine.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    engine.set_formatter(|out, state, value| {
        // An empty or nested field would become a prompt of `none` or `[…]`.
        if value.is_undefined() || value.is_number() || value.as_str().is_some() {
            return minijinja::escape_formatter(out, state, value);
        }
        Err(Error::new(ErrorKind::BadSerialization, format!("{} is not a text", shown(value))))
    });
    let compiled: Arc<Mutex<BTreeMap<String, Regex>>> = Arc::default();
    engine.add_filter("regex_replace", move |text: String, pattern: String, with: String| {
        let mut compiled = compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let regex = match compiled.get(&pattern) {
            Some(regex) => regex.clone(),
            None => Regex::new(&pattern)
                .map_err(|e| Error::new(ErrorKind::InvalidOperation, "the pattern is not a regular expression").with_source(e))?,
        };
        let replaced = regex.replace_all(&text, with).into_owned();
        compiled.insert(pattern, regex);
        Ok(replaced)
    });
    engine
}

/// A value as a message shows it: as JSON.
fn shown(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| value.to_string())
}

/// A compiled template.
pub struct Template<'e> {
    written: &'e Written,
    template: minijinja::Template<'e, 'e>,
}

/// A compiled expression.
pub struct Expression<'e> {
    written: &'e Written,
    expression: minijinja::Expression<'e, 'e>,
}

impl Written {
    /// A mistake of what is written.
    pub fn wrong(&self, message: impl Into<String>) -> Unfit {
        Unfit { message: message.into(), span: self.span.clone(), always: true }
    }

    /// What is written does not fit a row.
    pub fn unfit(&self, message: impl Into<String>) -> Unfit {
        Unfit { message: message.into(), span: self.span.clone(), always: false }
    }

    pub fn template<'e>(&'e self, engine: &'e Environment<'e>) -> Result<Template<'e>, Unfit> {
        match engine.template_from_named_str(&self.key, &self.text) {
            Ok(template) => Ok(Template { written: self, template }),
            Err(e) => Err(self.wrong(format!("`{}` is not a template: {}", self.key, said(&e)))),
        }
    }

    pub fn expression<'e>(&'e self, engine: &'e Environment<'e>) -> Result<Expression<'e>, Unfit> {
        match engine.compile_expression(&self.text) {
            Ok(expression) => Ok(Expression { written: self, expression }),
            Err(_) if self.text.trim_start().starts_with("{{") => {
                Err(self.wrong(format!("`{}` is an expression, which is written without braces", self.key)))
            }
            Err(e) => Err(self.wrong(format!("`{}` is not an expression: {}", self.key, said(&e)))),
        }
    }

    /// What an error says of the template or of the row: a filter that does not exist is no row's fault.
    fn refused(&self, error: &Error, variables: impl IntoIterator<Item = String>, row: &Value) -> Unfit {
        use ErrorKind::{SyntaxError, UndefinedError, UnknownFilter, UnknownFunction, UnknownTest};
        let always = matches!(error.kind(), SyntaxError | UnknownFilter | UnknownFunction | UnknownTest)
            || error.source().is_some_and(|source| source.is::<regex::Error>());
        if always {
            return self.wrong(format!("`{}`: {}", self.key, said(error)));
        }
        let detail = error.detail().unwrap_or_default();
        let mut lacking: Vec<String> = variables.into_iter().filter_map(|path| missing(&path, row)).collect();
        // The one that the error names; another may be asked for on condition that it is there.
        lacking.sort_by_key(|field| !detail.contains(&format!("`{field}` is undefined")));
        match lacking.first() {
            // `undefined has no method named strip` is of another kind.
            Some(field) if error.kind() == UndefinedError || detail.contains("undefined") => {
                self.unfit(format!("it lacks the field `{field}`"))
            }
            _ => self.unfit(format!("`{}`: {}", self.key, said(error))),
        }
    }
}

/// How much of a path (`choices.text`) a row does not have.
fn missing(path: &str, row: &Value) -> Option<String> {
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
fn said(error: &Error) -> String {
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
    pub fn render(&self, row: &Value) -> Result<String, Unfit> {
        let refused = |e: Error| self.written.refused(&e, self.template.undeclared_variables(true), row);
        self.template.render(row.clone()).map_err(refused)
    }

    pub fn unfit(&self, message: impl Into<String>) -> Unfit {
        self.written.unfit(message)
    }
}

impl Expression<'_> {
    fn value(&self, row: &Value) -> Result<Value, Unfit> {
        let variables = || self.expression.undeclared_variables(true);
        let value = self.expression.eval(row.clone()).map_err(|e| self.written.refused(&e, variables(), row))?;
        if value.is_undefined() {
            return Err(self.written.refused(&ErrorKind::UndefinedError.into(), variables(), row));
        }
        Ok(value)
    }

    /// A list of texts.
    pub fn texts(&self, row: &Value) -> Result<Vec<String>, Unfit> {
        let value = self.value(row)?;
        let text = |item: Value| match item.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => Err(self.unfit(format!("`{}` holds {}, not a text", self.written.text, shown(&item)))),
        };
        match value.try_iter() {
            Ok(items) if value.as_str().is_none() => items.map(text).collect(),
            _ => Err(self.unfit(format!("`{}` is {}, not a list", self.written.text, shown(&value)))),
        }
    }

    /// An index, written as a number or as a text of digits.
    pub fn index(&self, row: &Value) -> Result<usize, Unfit> {
        let value = self.value(row)?;
        let number = match value.as_str() {
            Some(text) => text.parse().ok(),
            None if value.is_number() => value.as_usize(),
            None => None,
        };
        number.ok_or_else(|| self.unfit(format!("`{}` is {}, not the number of a choice", self.written.text, shown(&value))))
    }

    /// A label: a text, or a number taken as one.
    pub fn label(&self, row: &Value) -> Result<String, Unfit> {
        let value = self.value(row)?;
        match value.as_str() {
            Some(text) => Ok(text.to_owned()),
            None if value.is_number() => Ok(value.to_string()),
            None => Err(self.unfit(format!("`{}` is {}, not a label", self.written.text, shown(&value)))),
        }
    }

    pub fn unfit(&self, message: impl Into<String>) -> Unfit {
        self.written.unfit(message)
    }
}
