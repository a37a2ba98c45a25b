//! Values as Python prints them.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use minijinja::value::{DynObject, Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use crate::data_file::{DataRow, FieldValue};
use crate::python::print::{float_text, text_repr};

/// An integer beyond minijinja's 128 bits: its digits.
#[derive(Debug)]
pub(crate) struct LargeInteger(String);

impl Object for LargeInteger {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }

    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<Ordering> {
        let other = other.downcast_ref::<Self>()?;
        // Only equality is meant: the digits of equal integers are equal.
        Some(self.0.cmp(&other.0))
    }
}

/// A row as templates see it: its fields are their variables.
pub(crate) fn row_variables(row: &DataRow) -> Value {
    let fields = row.fields.iter();
    Value::from_pairs(fields.map(|(name, value)| (name.as_str(), to_template_value(value))))
}

fn to_template_value(value: &FieldValue) -> Value {
    match value {
        FieldValue::Null => Value::from(()),
        FieldValue::Bool(value) => Value::from(*value),
        FieldValue::Integer(number) => match i64::try_from(*number) {
            Ok(number) => Value::from(number),
            Err(_) => Value::from(*number),
        },
        FieldValue::LargeInteger(digits) => large_integer(digits.clone()),
        FieldValue::Float(number) => Value::from(*number),
        FieldValue::Text(text) => Value::from(text.as_str()),
        FieldValue::List(items) => items.iter().map(to_template_value).collect(),
        FieldValue::Object(fields) => {
            let pairs = fields.iter();
            Value::from_pairs(pairs.map(|(name, value)| (name.as_str(), to_template_value(value))))
        }
        FieldValue::Other { type_name, .. } => Value::from(Error::new(
            ErrorKind::BadSerialization,
            format!("a template cannot print a {type_name}: store the column as text"),
        )),
    }
}

pub(crate) fn large_integer(digits: String) -> Value {
    Value::from_object(LargeInteger(digits))
}

/// The error that an invalid value holds.
pub(crate) fn error_of_invalid(value: &Value) -> Error {
    let list = Value::from(vec![value.clone()]);
    let first = list.try_iter().map(|items| items.checked().next());
    match first {
        Ok(Some(Err(error))) | Err(error) => error,
        Ok(_) => ErrorKind::InvalidOperation.into(),
    }
}

/// `str(value)`.
pub(crate) fn python_str(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => python_repr(value),
    }
}

/// `repr(value)`.
pub(crate) fn python_repr(value: &Value) -> Result<String, Error> {
    let mut text = String::new();
    push_repr(value, &mut text)?;
    Ok(text)
}

fn push_repr(value: &Value, out: &mut String) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined => return Err(ErrorKind::UndefinedError.into()),
        ValueKind::Invalid => return Err(error_of_invalid(value)),
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&float_text(f64::try_from(value.clone())?));
        }
        ValueKind::String => out.push_str(&text_repr(value.as_str().unwrap_or_default())),
        ValueKind::Seq | ValueKind::Iterable => {
            let is_tuple = value.is_tuple();
            out.push(if is_tuple { '(' } else { '[' });
            let mut count = 0;
            for item in value.try_iter()? {
                if count > 0 {
                    out.push_str(", ");
                }
                push_repr(&item, out)?;
                count += 1;
            }
            if is_tuple && count == 1 {
                out.push(',');
            }
            out.push(if is_tuple { ')' } else { ']' });
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                push_repr(&key, out)?;
                out.push_str(": ");
                push_repr(&value.get_item(&key)?, out)?;
            }
            out.push('}');
        }
        // `None`, `True`, an integer.
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}
