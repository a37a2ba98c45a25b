//! Tables: plain structs are converted to arrow arrays and written as Parquet files.
//!
//! A stage builds a [`Table`] from its rows with [`Table::from_rows`]: one column for each field of
//! the struct, in the order of the fields. Rust types become these Parquet types:
//! `String` string, `u32`/`u64` unsigned integers, `f64` double, `bool` boolean, `Option` nullable.
//! A NaN or an infinity is an error, which names the table, the column and the row.
//!
//! The table of a variant is written by [`write_parts`] from the tables of one or more steps, with
//! three columns in front that are the same for all rows of a step:
//!
//! | column | type | content |
//! |---|---|---|
//! | `variant` | string | the variant's id |
//! | `step` | u32 | position of the stage in the resolved pipeline, from 0 |
//! | `stage` | string | the stage's type |
//!
//! The tables of a sweep (`variants.parquet`, `metrics.parquet`), which also have the column
//! `phase`, are built by the runner's reports.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, UInt32Array,
    UInt64Array,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use arrow::error::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_arrow::schema::{SchemaLike, TracingOptions};

use secateur_base::files::{FileError, Fingerprint, write_atomic_unsynced};

/// The rows that a stage measured, without the columns `variant`, `step` and `stage`.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The file's name without `.parquet`: `evaluate`, `evaluate_samples`, `prune`, `prune_sizes`,
    /// …
    pub name: String,
    pub rows: RecordBatch,
}

/// The values of a column; `None` is a null. Every reader of Parquet supports these types.
#[derive(Clone, Debug, PartialEq)]
pub enum ColumnValues {
    Text(Vec<Option<String>>),
    U32(Vec<Option<u32>>),
    U64(Vec<Option<u64>>),
    I64(Vec<Option<i64>>),
    F64(Vec<Option<f64>>),
    Bool(Vec<Option<bool>>),
}

impl ColumnValues {
    fn into_array(self) -> ArrayRef {
        match self {
            Self::Text(values) => Arc::new(StringArray::from(values)),
            Self::U32(values) => Arc::new(UInt32Array::from(values)),
            Self::U64(values) => Arc::new(UInt64Array::from(values)),
            Self::I64(values) => Arc::new(Int64Array::from(values)),
            Self::F64(values) => Arc::new(Float64Array::from(values)),
            Self::Bool(values) => Arc::new(BooleanArray::from(values)),
        }
    }
}

/// The rows of a table that one step of a variant measured.
#[derive(Clone, Debug, PartialEq)]
pub struct TablePart {
    /// Position of the stage in the resolved pipeline, from 0.
    pub step: u32,
    /// The stage's type.
    pub stage: String,
    pub table: Table,
}

/// A table that could not be made, written or read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("the table `{table}` would hold a NaN or an infinity in column `{column}`, row {row}")]
    NotFinite {
        table: String,
        column: String,
        row: usize,
    },
    #[error("the table `{table}` cannot be made: {message}")]
    Encode { table: String, message: String },
    #[error("the table `{table}` cannot be read: {message}")]
    Read { table: String, message: String },
    #[error(transparent)]
    File(#[from] FileError),
}

impl Table {
    /// Makes a table with one column for each field of `R`, in the order of the fields. The columns
    /// follow from the type, so an empty table has them too.
    ///
    /// # Errors
    /// If a value is a NaN or an infinity, or `R` has a field without a Parquet type.
    pub fn from_rows<R: Serialize + DeserializeOwned>(
        name: &str,
        rows: &[R],
    ) -> Result<Self, TableError> {
        let failed = |error: serde_arrow::Error| TableError::Encode {
            table: name.to_owned(),
            message: error.to_string(),
        };
        // Strings and lists with 32-bit offsets, not serde_arrow's default of 64: every reader of
        // Parquet supports these types.
        let options = TracingOptions::default()
            .strings_as_large_utf8(false)
            .sequence_as_large_list(false);
        let fields = Vec::<FieldRef>::from_type::<R>(options).map_err(failed)?;
        let batch = serde_arrow::to_record_batch(&fields, &rows).map_err(failed)?;
        let table = Self {
            name: name.to_owned(),
            rows: batch,
        };
        table.check_finite()?;
        Ok(table)
    }

    /// Makes a table of named columns of equal length, for tables whose columns are only known when
    /// the program runs.
    ///
    /// # Errors
    /// If a value is a NaN or an infinity, or the columns differ in length.
    pub fn from_columns(
        name: &str,
        columns: Vec<(String, ColumnValues)>,
    ) -> Result<Self, TableError> {
        let (mut fields, mut arrays) = (Vec::new(), Vec::new());
        for (column, values) in columns {
            let array = values.into_array();
            fields.push(Field::new(column, array.data_type().clone(), true));
            arrays.push(array);
        }
        let rows =
            RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|error| {
                TableError::Encode {
                    table: name.to_owned(),
                    message: error.to_string(),
                }
            })?;
        let table = Self {
            name: name.to_owned(),
            rows,
        };
        table.check_finite()?;
        Ok(table)
    }

    /// The rows as the bytes of a Parquet file, without further columns. Equal rows give equal
    /// bytes.
    ///
    /// # Errors
    /// If the rows cannot be encoded.
    pub fn to_parquet(&self) -> Result<Vec<u8>, TableError> {
        encode_parquet(&self.name, &self.rows)
    }

    /// Writes the rows to a Parquet file, without further columns. [`Table::read`] reads it back.
    ///
    /// # Errors
    /// If the rows cannot be encoded or the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), TableError> {
        Ok(write_atomic_unsynced(path, &self.to_parquet()?)?)
    }

    /// Reads a file that [`Table::save`] wrote.
    ///
    /// # Errors
    /// If the file is missing or damaged.
    pub fn read(name: &str, path: &Path) -> Result<Self, TableError> {
        let failed = |error: &dyn std::fmt::Display| TableError::Read {
            table: name.to_owned(),
            message: error.to_string(),
        };
        let file = File::open(path).map_err(|error| failed(&error))?;
        let builder =
            ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| failed(&error))?;
        let schema = builder.schema().clone();
        let reader = builder.build().map_err(|error| failed(&error))?;
        let batches = reader
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| failed(&error))?;
        let rows = concat_batches(&schema, &batches).map_err(|error| failed(&error))?;
        Ok(Self {
            name: name.to_owned(),
            rows,
        })
    }

    /// Returns an error for the first value that is a NaN or an infinity.
    fn check_finite(&self) -> Result<(), TableError> {
        let schema = self.rows.schema();
        for (field, column) in schema.fields().iter().zip(self.rows.columns()) {
            let Some(values) = column.as_any().downcast_ref::<Float64Array>() else {
                continue;
            };
            let first_not_finite = (0..values.len())
                .find(|&row| values.is_valid(row) && !values.value(row).is_finite());
            if let Some(row) = first_not_finite {
                return Err(TableError::NotFinite {
                    table: self.name.clone(),
                    column: field.name().clone(),
                    row,
                });
            }
        }
        Ok(())
    }
}

/// Writes the table `name` of a variant: the rows of all parts, one part after another, with the
/// columns `variant`, `step` and `stage` in front. `parts` is not empty. The same parts give the
/// same bytes.
///
/// # Errors
/// If the parts have different columns, or the file cannot be written.
pub fn write_parts(
    path: &Path,
    name: &str,
    variant: &str,
    parts: &[&TablePart],
) -> Result<Fingerprint, TableError> {
    let failed = |error: ArrowError| TableError::Encode {
        table: name.to_owned(),
        message: error.to_string(),
    };
    let batches = parts
        .iter()
        .map(|part| add_key_columns(variant, part))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    let rows = concat_batches(&batches[0].schema(), &batches).map_err(failed)?;
    let parquet_bytes = encode_parquet(name, &rows)?;
    write_atomic_unsynced(path, &parquet_bytes)?;
    Ok(Fingerprint::from_bytes(&parquet_bytes))
}

/// Encodes rows as a Parquet file. `created_by` is fixed: by default it is the version of the
/// Parquet library, with which the bytes would change.
fn encode_parquet(name: &str, rows: &RecordBatch) -> Result<Vec<u8>, TableError> {
    let failed = |error: ParquetError| TableError::Encode {
        table: name.to_owned(),
        message: error.to_string(),
    };
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_created_by("secateur".to_owned())
        .build();
    let mut parquet_bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut parquet_bytes, rows.schema(), Some(properties))
        .map_err(failed)?;
    writer.write(rows).map_err(failed)?;
    writer.close().map_err(failed)?;
    Ok(parquet_bytes)
}

/// Returns the rows of a part with the columns `variant`, `step` and `stage` in front.
fn add_key_columns(variant: &str, part: &TablePart) -> Result<RecordBatch, ArrowError> {
    let rows = &part.table.rows;
    let row_count = rows.num_rows();
    let not_nullable = |name: &str, data_type| Arc::new(Field::new(name, data_type, false));
    let mut fields = vec![
        not_nullable("variant", DataType::Utf8),
        not_nullable("step", DataType::UInt32),
        not_nullable("stage", DataType::Utf8),
    ];
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![variant; row_count])),
        Arc::new(UInt32Array::from(vec![part.step; row_count])),
        Arc::new(StringArray::from(vec![part.stage.as_str(); row_count])),
    ];
    fields.extend(rows.schema().fields().iter().cloned());
    columns.extend(rows.columns().iter().cloned());
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Serialize, Deserialize)]
    struct Row {
        task: String,
        value: f64,
        stderr: Option<f64>,
        n: u64,
        kept: bool,
    }

    fn row(value: f64) -> Row {
        Row {
            task: "tiny".to_owned(),
            value,
            stderr: None,
            n: 3,
            kept: true,
        }
    }

    #[test]
    fn columns_have_the_documented_names_and_types_and_bytes_repeat() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let part = TablePart {
            step: 4,
            stage: "evaluate".to_owned(),
            table: Table::from_rows("evaluate", &[row(0.5), row(1.5)]).expect("finite"),
        };
        let batch = add_key_columns("v", &part).expect("equal lengths");
        let columns: Vec<String> = batch
            .schema()
            .fields()
            .iter()
            .map(|field| format!("{}: {}", field.name(), field.data_type()))
            .collect();
        assert_eq!(
            columns,
            [
                "variant: Utf8",
                "step: UInt32",
                "stage: Utf8",
                "task: Utf8",
                "value: Float64",
                "stderr: Float64",
                "n: UInt64",
                "kept: Boolean"
            ]
        );
        let bytes = ["a.parquet", "b.parquet"].map(|name| {
            write_parts(&folder.path().join(name), "evaluate", "v", &[&part, &part])
                .expect("written");
            std::fs::read(folder.path().join(name)).expect("the file")
        });
        assert_eq!(bytes[0], bytes[1]);
        Table::from_rows::<Row>("empty", &[]).expect("a table may be empty");
    }

    #[test]
    fn columns_that_are_known_at_run_time_have_plain_types() {
        let columns = |ratio: f64| {
            vec![
                (
                    "variant".to_owned(),
                    ColumnValues::Text(vec![Some("v".to_owned()), None]),
                ),
                ("prompt".to_owned(), ColumnValues::U32(vec![Some(1), None])),
                (
                    "bytes".to_owned(),
                    ColumnValues::U64(vec![None, Some(u64::MAX)]),
                ),
                ("rank".to_owned(), ColumnValues::I64(vec![Some(-1), None])),
                (
                    "ratio".to_owned(),
                    ColumnValues::F64(vec![Some(ratio), None]),
                ),
                (
                    "current".to_owned(),
                    ColumnValues::Bool(vec![Some(true), None]),
                ),
            ]
        };
        let table = Table::from_columns("variants", columns(0.5)).expect("equal lengths");
        let types: Vec<String> = table
            .rows
            .schema()
            .fields()
            .iter()
            .map(|field| field.data_type().to_string())
            .collect();
        assert_eq!(
            types,
            ["Utf8", "UInt32", "UInt64", "Int64", "Float64", "Boolean"]
        );
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("variants.parquet");
        table.save(&path).expect("written");
        assert_eq!(Table::read("variants", &path).expect("read"), table);
        Table::from_columns("variants", columns(f64::INFINITY)).expect_err("an infinity");
    }

    #[test]
    fn saved_rows_are_read_back_unchanged() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("rows.parquet");
        let many_rows: Vec<Row> = (0..5000).map(|i| row(1.0 / f64::from(i + 1))).collect();
        for rows in [&many_rows[..], &[]] {
            let table = Table::from_rows("evaluate", rows).expect("finite");
            table.save(&path).expect("written");
            assert_eq!(Table::read("evaluate", &path).expect("read"), table);
        }
    }

    #[test]
    fn a_nan_is_refused_with_table_column_and_row() {
        let message = Table::from_rows("evaluate", &[row(1.0), row(f64::NAN)])
            .expect_err("a NaN")
            .to_string();
        assert_eq!(
            message,
            "the table `evaluate` would hold a NaN or an infinity in column `value`, row 1"
        );
    }
}
