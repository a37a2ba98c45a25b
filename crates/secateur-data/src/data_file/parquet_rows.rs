//! Rows of Parquet.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StructArray, downcast_dictionary_array,
};
use arrow::datatypes::{DataType, Float16Type, Float32Type, Float64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::error::DataFileError;
use super::row::{DataRow, FieldValue, RowLocation};
use super::{Columns, Rows};

/// Rows that are decoded at a time.
const BATCH_ROWS: usize = 1024;

pub(super) fn rows(file: File, path: Arc<Path>, columns: &Columns) -> Result<Rows, DataFileError> {
    let unreadable = |message: String| DataFileError::cannot_read(&path, &explain_error(message));
    let builder = ParquetRecordBatchReaderBuilder::try_new(file)
        .map_err(|error| unreadable(error.to_string()))?;
    let root_names = builder.parquet_schema().root_schema().get_fields().iter();
    let needed_roots: Vec<usize> = root_names
        .enumerate()
        .filter(|(_, field)| columns.contains(field.name()))
        .map(|(index, _)| index)
        .collect();
    let projection = ProjectionMask::roots(builder.parquet_schema(), needed_roots);
    let batches = builder
        .with_projection(projection)
        .with_batch_size(BATCH_ROWS)
        .build()
        .map_err(|error| unreadable(error.to_string()))?;
    let mut number = 0;
    Ok(Box::new(batches.flat_map(move |batch| {
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                let message = explain_error(error.to_string());
                return vec![Err(DataFileError::cannot_read(&path, &message))];
            }
        };
        let rows = (0..batch.num_rows()).map(|index| {
            number += 1;
            Ok(DataRow {
                fields: row_fields(&batch, index),
                location: RowLocation {
                    path: path.clone(),
                    unit: "row",
                    number,
                },
            })
        });
        rows.collect::<Vec<_>>()
    })))
}

fn row_fields(batch: &RecordBatch, row: usize) -> Vec<(String, FieldValue)> {
    let schema = batch.schema_ref();
    let columns = schema.fields().iter().zip(batch.columns());
    columns
        .map(|(field, column)| (field.name().clone(), field_value(column, row)))
        .collect()
}

/// The value of a row, as pyarrow's `to_pylist` gives it.
fn field_value(array: &ArrayRef, row: usize) -> FieldValue {
    use DataType as T;
    if array.is_null(row) {
        return FieldValue::Null;
    }
    let text = |text: &str| FieldValue::Text(text.to_owned());
    let list = |items: ArrayRef| {
        FieldValue::List(
            (0..items.len())
                .map(|item| field_value(&items, item))
                .collect(),
        )
    };
    match array.data_type() {
        T::Null => FieldValue::Null,
        T::Boolean => match array.as_any().downcast_ref::<BooleanArray>() {
            Some(array) => FieldValue::Bool(array.value(row)),
            None => other_value(array, row),
        },
        T::Int8 | T::Int16 | T::Int32 | T::Int64 | T::UInt8 | T::UInt16 | T::UInt32 | T::UInt64 => {
            match display(array, row).parse() {
                Ok(number) => FieldValue::Integer(number),
                Err(_) => other_value(array, row),
            }
        }
        T::Float16 => FieldValue::Float(array.as_primitive::<Float16Type>().value(row).into()),
        T::Float32 => FieldValue::Float(array.as_primitive::<Float32Type>().value(row).into()),
        T::Float64 => FieldValue::Float(array.as_primitive::<Float64Type>().value(row)),
        T::Utf8 => text(array.as_string::<i32>().value(row)),
        T::LargeUtf8 => text(array.as_string::<i64>().value(row)),
        T::Utf8View => text(array.as_string_view().value(row)),
        T::List(_) => list(array.as_list::<i32>().value(row)),
        T::LargeList(_) => list(array.as_list::<i64>().value(row)),
        T::FixedSizeList(_, _) => list(array.as_fixed_size_list().value(row)),
        T::Struct(_) => struct_value(array.as_struct(), row),
        T::Dictionary(_, _) => dictionary_value(array, row),
        _ => other_value(array, row),
    }
}

fn struct_value(array: &StructArray, row: usize) -> FieldValue {
    let columns = array.fields().iter().zip(array.columns());
    let fields = columns.map(|(field, column)| (field.name().clone(), field_value(column, row)));
    FieldValue::Object(fields.collect())
}

fn dictionary_value(array: &ArrayRef, row: usize) -> FieldValue {
    let array: &dyn Array = array;
    downcast_dictionary_array!(
        array => match array.key(row) {
            Some(key) => field_value(array.values(), key),
            None => FieldValue::Null,
        },
        _ => FieldValue::Null
    )
}

/// A value of a type that JSON has not. Its text tells equal values from others.
fn other_value(array: &ArrayRef, row: usize) -> FieldValue {
    FieldValue::Other {
        type_name: type_name(array.data_type()),
        text: display(array, row),
    }
}

/// The name of a type that JSON has not.
fn type_name(data_type: &DataType) -> &'static str {
    use DataType as T;
    match data_type {
        T::Decimal32(..) | T::Decimal64(..) | T::Decimal128(..) | T::Decimal256(..) => "decimal",
        T::Date32 | T::Date64 => "date",
        T::Time32(_) | T::Time64(_) => "time",
        T::Timestamp(..) => "timestamp",
        T::Duration(_) | T::Interval(_) => "duration",
        T::Binary | T::LargeBinary | T::BinaryView | T::FixedSizeBinary(_) => "binary value",
        T::Map(..) => "map",
        _ => "value of this type",
    }
}

/// Arrow's text of a value; empty if it has none.
fn display(array: &ArrayRef, row: usize) -> String {
    let options = FormatOptions::default();
    match ArrayFormatter::try_new(array, &options) {
        Ok(formatter) => formatter.value(row).try_to_string().unwrap_or_default(),
        Err(_) => String::new(),
    }
}

/// Explains an error of the Parquet library: one for a compression that this program is built
/// without, else its own words.
fn explain_error(message: String) -> String {
    if let Some((_, library)) = message.split_once("Disabled feature at compile time: ") {
        let compression = match library {
            "flate2" => "gzip",
            other => other,
        };
        return format!(
            "its columns are compressed with {compression}, which is not supported; write it with \
             Snappy or Zstandard, or without compression"
        );
    }
    match message.rsplit_once("Parquet error: ") {
        Some((_, cause)) => format!("it is damaged ({cause})"),
        None => message,
    }
}
