//! A row of a data file.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::error::DataFileError;
use crate::python::print::float_text;

/// A row, and where it was read.
#[derive(Clone, Debug)]
pub(crate) struct DataRow {
    /// The fields in the order of the file. Names differ from each other.
    pub(crate) fields: Vec<(String, FieldValue)>,
    pub(crate) location: RowLocation,
}

impl DataRow {
    pub(crate) fn field(&self, name: &str) -> Option<&FieldValue> {
        let field = self.fields.iter().find(|(field, _)| field == name);
        field.map(|(_, value)| value)
    }

    /// Whether the rows have equal fields, in any order.
    pub(crate) fn has_same_fields(&self, other: &Self) -> bool {
        let is_in_other =
            |(name, value): &(String, FieldValue)| other.field(name).is_some_and(|v| v == value);
        self.fields.len() == other.fields.len() && self.fields.iter().all(is_in_other)
    }
}

/// A value of a row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum FieldValue {
    Null,
    Bool(bool),
    Integer(i128),
    /// The digits of an integer beyond [`FieldValue::Integer`], with its sign.
    LargeInteger(String),
    Float(f64),
    Text(String),
    List(Vec<FieldValue>),
    /// Names differ from each other.
    Object(Vec<(String, FieldValue)>),
    /// A value of a column type that has no counterpart in JSON, such as an image or a date.
    Other {
        /// "date", "binary value".
        type_name: &'static str,
        text: String,
    },
}

impl FieldValue {
    /// What the value is, for messages: "a text", "a whole number".
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(true) => "true".to_owned(),
            Self::Bool(false) => "false".to_owned(),
            Self::Integer(number) => number.to_string(),
            Self::LargeInteger(digits) => digits.clone(),
            Self::Float(number) => float_text(*number),
            Self::Text(_) => "a text".to_owned(),
            Self::List(_) => "a list".to_owned(),
            Self::Object(_) => "an object".to_owned(),
            Self::Other { type_name, .. } => format!("a {type_name}"),
        }
    }
}

/// Adds a field. Of two fields with one name the last value counts, as in Python.
pub(super) fn insert_field(
    fields: &mut Vec<(String, FieldValue)>,
    name: String,
    value: FieldValue,
) {
    match fields.iter_mut().find(|(field, _)| *field == name) {
        Some((_, earlier)) => *earlier = value,
        None => fields.push((name, value)),
    }
}

/// Where a row was read. Displayed as "`rows.jsonl`, line 3".
#[derive(Clone, Debug)]
pub(crate) struct RowLocation {
    pub(crate) path: Arc<Path>,
    /// What `number` counts: `line` or `row`.
    pub(crate) unit: &'static str,
    /// The number in the file, from 1.
    pub(crate) number: usize,
}

impl fmt::Display for RowLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}`, {} {}",
            self.path.display(),
            self.unit,
            self.number
        )
    }
}

impl RowLocation {
    pub(crate) fn to_error(&self, message: impl fmt::Display) -> DataFileError {
        DataFileError::new(format!("{self}: {message}"))
    }
}
