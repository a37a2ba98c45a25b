//! Templates and expressions of a task file.
//!
//! A *template* is a text with `{{ … }}` in it and renders to a string. An *expression* is what can
//! stand between such braces; it is evaluated to a value: the list of choices, or the right choice.
//! The fields of a row are the variables of both.

use std::collections::HashSet;
use std::ops::Range;

use minijinja::{Environment, Error, ErrorKind, Value};

use super::template_engine::{python_str, to_json};
use super::template_error::{
    TemplateError, error_sentence, field_behind_error, is_row_independent,
};
use crate::python;

/// A template or an expression as it is written in the task file.
#[derive(Clone, Debug)]
pub(crate) struct TemplateSource {
    /// The key of the task file: `context`, `choices[1]`.
    pub(crate) key: String,
    pub(crate) text: String,
    /// The bytes of the task file that contain it; for an entry of a list, the whole list.
    pub(crate) span: Range<usize>,
}

/// A compiled template.
pub(crate) struct Template<'e> {
    source: &'e TemplateSource,
    template: minijinja::Template<'e, 'e>,
}

/// A compiled expression.
pub(crate) struct Expression<'e> {
    source: &'e TemplateSource,
    expression: minijinja::Expression<'e, 'e>,
}

impl TemplateSource {
    /// A mistake in the task file.
    fn task_file_error(&self, message: impl Into<String>) -> TemplateError {
        TemplateError {
            message: message.into(),
            span: self.span.clone(),
            is_row_independent: true,
        }
    }

    /// A row that the template does not fit.
    fn row_error(&self, message: impl Into<String>) -> TemplateError {
        TemplateError {
            message: message.into(),
            span: self.span.clone(),
            is_row_independent: false,
        }
    }

    pub(crate) fn compile_template<'e>(
        &'e self,
        engine: &'e Environment<'e>,
    ) -> Result<Template<'e>, TemplateError> {
        match engine.template_from_named_str(&self.key, &self.text) {
            Ok(template) => Ok(Template {
                source: self,
                template,
            }),
            Err(error) => Err(self.task_file_error(format!(
                "`{}` is not a template: {}",
                self.key,
                error_sentence(&error)
            ))),
        }
    }

    pub(crate) fn compile_expression<'e>(
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
            Err(error) => Err(self.task_file_error(format!(
                "`{}` is not an expression: {}",
                self.key,
                error_sentence(&error)
            ))),
        }
    }

    /// Explains an error of rendering or evaluating for `row`: as a mistake of the task file, as a
    /// field that the row lacks, or else in minijinja's words.
    fn explain_error(
        &self,
        error: &Error,
        variables: impl IntoIterator<Item = String>,
        row: &Value,
    ) -> TemplateError {
        let sentence = format!("`{}`: {}", self.key, error_sentence(error));
        if is_row_independent(error) {
            return self.task_file_error(sentence);
        }
        match field_behind_error(error, variables, row) {
            Some(field) => self.row_error(format!("it lacks the field `{field}`")),
            None => self.row_error(sentence),
        }
    }
}

impl Template<'_> {
    pub(crate) fn render(&self, row: &Value) -> Result<String, TemplateError> {
        self.template.render(row.clone()).map_err(|error| {
            let variables = self.template.undeclared_variables(true);
            self.source.explain_error(&error, variables, row)
        })
    }

    /// The names of the fields that the template reads.
    pub(crate) fn fields(&self) -> HashSet<String> {
        self.template.undeclared_variables(false)
    }

    pub(crate) fn row_error(&self, message: impl Into<String>) -> TemplateError {
        self.source.row_error(message)
    }
}

impl Expression<'_> {
    fn evaluate(&self, row: &Value) -> Result<Value, TemplateError> {
        let explain = |error: &Error| {
            let variables = self.expression.undeclared_variables(true);
            self.source.explain_error(error, variables, row)
        };
        let value = self
            .expression
            .eval(row.clone())
            .map_err(|error| explain(&error))?;
        // minijinja evaluates an expression that is a missing field without an error.
        if value.is_undefined() {
            return Err(explain(&ErrorKind::UndefinedError.into()));
        }
        Ok(value)
    }

    /// Evaluates to a list of strings.
    pub(crate) fn evaluate_strings(&self, row: &Value) -> Result<Vec<String>, TemplateError> {
        let value = self.evaluate(row)?;
        // A string can be iterated too, character by character.
        let items = match value.try_iter() {
            Ok(items) if value.as_str().is_none() => items,
            _ => return Err(self.type_error(&value, "not a list")),
        };
        let mut strings = Vec::new();
        for item in items {
            match item.as_str() {
                Some(text) => strings.push(text.to_owned()),
                // The harness prints numbers as well.
                None if item.is_number() => strings.push(self.print(&item)?),
                None => {
                    return Err(self.row_error(format!(
                        "`{}` holds {}, not a text",
                        self.source.text,
                        to_json(&item)
                    )));
                }
            }
        }
        Ok(strings)
    }

    /// Evaluates to an index, which the row has as a number or as a string of digits.
    pub(crate) fn evaluate_index(&self, row: &Value) -> Result<usize, TemplateError> {
        let value = self.evaluate(row)?;
        let index = match value.as_str() {
            Some(digits) => python::trim(digits).parse().ok(),
            // `as_usize` alone would accept `true`.
            None if value.is_number() => value.as_usize(),
            None => None,
        };
        index.ok_or_else(|| self.type_error(&value, "not the number of a choice"))
    }

    /// Evaluates to a label: a string, or a number as a string.
    pub(crate) fn evaluate_label(&self, row: &Value) -> Result<String, TemplateError> {
        let value = self.evaluate(row)?;
        match value.as_str() {
            Some(text) => Ok(text.to_owned()),
            None if value.is_number() => self.print(&value),
            None => Err(self.type_error(&value, "not a label")),
        }
    }

    fn print(&self, value: &Value) -> Result<String, TemplateError> {
        python_str(value).map_err(|error| self.row_error(error_sentence(&error)))
    }

    /// The names of the fields that the expression reads.
    pub(crate) fn fields(&self) -> HashSet<String> {
        self.expression.undeclared_variables(false)
    }

    /// "`gold` is true, not the number of a choice".
    fn type_error(&self, value: &Value, expectation: &str) -> TemplateError {
        self.row_error(format!(
            "`{}` is {}, {expectation}",
            self.source.text,
            to_json(value)
        ))
    }

    pub(crate) fn row_error(&self, message: impl Into<String>) -> TemplateError {
        self.source.row_error(message)
    }
}
