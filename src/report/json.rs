//! A table as JSON.

use polars::prelude::*;
use serde_json::{Map, Value};

/// The rows of a table as an array of JSON objects.
pub(crate) fn to_json_records(table: &DataFrame) -> Value {
    (0..table.height())
        .map(|row| to_json_record(table, row))
        .collect()
}

fn to_json_record(table: &DataFrame, row: usize) -> Value {
    let mut record = Map::new();
    for column in table.columns() {
        record.insert(column.name().to_string(), to_json_value(column, row));
    }
    Value::Object(record)
}

fn to_json_value(column: &Column, row: usize) -> Value {
    match column.get(row) {
        Ok(AnyValue::Null) | Err(_) => Value::Null,
        Ok(AnyValue::Boolean(boolean)) => boolean.into(),
        Ok(AnyValue::UInt32(integer)) => integer.into(),
        Ok(AnyValue::UInt64(integer)) => integer.into(),
        Ok(AnyValue::Int64(integer)) => integer.into(),
        Ok(AnyValue::Float64(number)) => number.into(),
        Ok(other) => other.str_value().to_string().into(),
    }
}
