//! Rows of JSON Lines and of JSON documents.
//!
//! Numbers are read from their digits and not through serde_json, which turns an integer beyond 64
//! bits into a float.

use std::fmt;
use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::error::DataFileError;
use super::row::{DataRow, FieldValue, RowLocation, insert_field};
use super::text::not_utf8;
use super::{Columns, Rows, python_numbers};

/// Values may be nested this deep.
const MAX_DEPTH: usize = 100;

/// The rows of a file with a JSON object in each line. Blank lines are skipped.
pub(super) fn line_rows(reader: Box<dyn BufRead>, path: Arc<Path>, columns: Columns) -> Rows {
    let mut lines = Lines {
        reader,
        path,
        number: 0,
        offset: 0,
    };
    Box::new(std::iter::from_fn(move || {
        loop {
            let line = match lines.next_line()? {
                Ok(line) => line,
                Err(error) => return Some(Err(error)),
            };
            if line.trim().is_empty() {
                continue;
            }
            let location = RowLocation {
                path: lines.path.clone(),
                unit: "line",
                number: lines.number,
            };
            return Some(
                match parse_object(&python_numbers::to_json(&line), &columns) {
                    Ok(fields) => Ok(DataRow { fields, location }),
                    Err(message) => Err(location.to_error(message)),
                },
            );
        }
    }))
}

struct Lines {
    reader: Box<dyn BufRead>,
    path: Arc<Path>,
    /// Of the latest line, from 1.
    number: usize,
    /// Bytes before the next line.
    offset: usize,
}

impl Lines {
    fn next_line(&mut self) -> Option<Result<String, DataFileError>> {
        let mut bytes = Vec::new();
        match self.reader.read_until(b'\n', &mut bytes) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) => return Some(Err(DataFileError::cannot_read(&self.path, &error))),
        }
        self.number += 1;
        let line_offset = self.offset;
        self.offset += bytes.len();
        Some(
            String::from_utf8(bytes).map_err(|error| {
                not_utf8(&self.path, line_offset + error.utf8_error().valid_up_to())
            }),
        )
    }
}

/// The rows of a JSON document: the elements of an array, or of the array `data` of an object, or
/// objects one after the other.
pub(super) fn document_rows(
    text: String,
    path: Arc<Path>,
    columns: &Columns,
) -> Result<Rows, DataFileError> {
    let text = python_numbers::to_json(&text);
    let mut values = Vec::new();
    for value in serde_json::Deserializer::from_str(&text).into_iter::<&RawValue>() {
        values.push(value.map_err(|error| {
            DataFileError::new(format!("`{}` is not valid JSON: {error}", path.display()))
        })?);
    }
    let elements = match values[..] {
        [array] if array.get().starts_with('[') => parse_array(array.get()),
        [object] => data_array(object.get())
            .map(parse_array)
            .unwrap_or(Ok(values)),
        _ => Ok(values),
    };
    let elements = elements
        .map_err(|message| DataFileError::new(format!("`{}`: {message}", path.display())))?;
    let mut rows = Vec::with_capacity(elements.len());
    for (index, element) in elements.into_iter().enumerate() {
        let location = RowLocation {
            path: path.clone(),
            unit: "row",
            number: index + 1,
        };
        rows.push(match parse_object(element.get(), columns) {
            Ok(fields) => Ok(DataRow { fields, location }),
            Err(message) => Err(location.to_error(message)),
        });
    }
    Ok(Box::new(rows.into_iter()))
}

/// Whether an object has an array of objects, or an empty one, under `data`.
pub(super) fn has_data_array(object: &str) -> bool {
    data_array(object).is_some()
}

/// The array of objects, or the empty one, that an object has under `data`.
fn data_array(object: &str) -> Option<&str> {
    let RawObject(fields) = serde_json::from_str(object).ok()?;
    let (_, array) = fields.iter().find(|(name, _)| name == "data")?;
    let first_element = array.get().strip_prefix('[')?.trim_start();
    first_element.starts_with(['{', ']']).then_some(array.get())
}

/// A JSON object whose values are not parsed yet, in the order of the text.
struct RawObject<'t>(Vec<(String, &'t RawValue)>);

impl<'de> Deserialize<'de> for RawObject<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;
        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = RawObject<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(RawObject(fields))
            }
        }
        deserializer.deserialize_map(ObjectVisitor)
    }
}

/// Parses an object, and of its fields those in `columns`.
fn parse_object(text: &str, columns: &Columns) -> Result<Vec<(String, FieldValue)>, String> {
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| invalid_json(&error))?;
    if !raw.get().starts_with('{') {
        let found = parse_value(raw.get(), 0)?.kind();
        return Err(format!("it is {found}, and a JSON object is expected"));
    }
    let RawObject(raw_fields) =
        serde_json::from_str(raw.get()).map_err(|error| invalid_json(&error))?;
    let mut fields = Vec::with_capacity(raw_fields.len());
    for (name, value) in raw_fields {
        if columns.contains(&name) {
            let value = parse_value(value.get(), 1)?;
            insert_field(&mut fields, name, value);
        }
    }
    Ok(fields)
}

fn parse_array(text: &str) -> Result<Vec<&RawValue>, String> {
    serde_json::from_str(text).map_err(|error| invalid_json(&error))
}

/// Parses a value that is valid JSON. `depth`: how many values contain it.
fn parse_value(text: &str, depth: usize) -> Result<FieldValue, String> {
    if depth > MAX_DEPTH {
        return Err(format!("its values are nested more than {MAX_DEPTH} deep"));
    }
    match text.as_bytes().first() {
        Some(b'n') => Ok(FieldValue::Null),
        Some(b't') => Ok(FieldValue::Bool(true)),
        Some(b'f') => Ok(FieldValue::Bool(false)),
        Some(b'"') => serde_json::from_str(text)
            .map(FieldValue::Text)
            .map_err(|error| invalid_json(&error)),
        Some(b'[') => {
            let elements = parse_array(text)?.into_iter();
            let values = elements.map(|element| parse_value(element.get(), depth + 1));
            values.collect::<Result<_, _>>().map(FieldValue::List)
        }
        Some(b'{') => {
            let RawObject(raw_fields) =
                serde_json::from_str(text).map_err(|error| invalid_json(&error))?;
            let mut fields = Vec::with_capacity(raw_fields.len());
            for (name, value) in raw_fields {
                insert_field(&mut fields, name, parse_value(value.get(), depth + 1)?);
            }
            Ok(FieldValue::Object(fields))
        }
        _ => parse_number(text),
    }
}

fn parse_number(text: &str) -> Result<FieldValue, String> {
    if text == python_numbers::NAN {
        return Ok(FieldValue::Float(f64::NAN));
    }
    if !text.contains(['.', 'e', 'E']) {
        return Ok(match text.parse() {
            Ok(integer) => FieldValue::Integer(integer),
            Err(_) => FieldValue::LargeInteger(text.to_owned()),
        });
    }
    text.parse()
        .map(FieldValue::Float)
        .map_err(|_| format!("`{text}` is not a number"))
}

/// serde_json's message without its line, which is always 1: the text is one line of the file.
fn invalid_json(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let column = format!(" at line {} column {}", error.line(), error.column());
    let cause = message.strip_suffix(&column).unwrap_or(&message);
    format!("it is not valid JSON: {cause} at column {}", error.column())
}
