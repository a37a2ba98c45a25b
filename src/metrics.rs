//! Tables: plain structs → arrow → Parquet, whole files only. NaN and infinities are refused, by table and column.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float64Array, RecordBatch, StringArray, UInt32Array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use arrow::error::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_arrow::schema::{SchemaLike, TracingOptions};

use crate::files::{FileError, write_whole};

/// The rows that a stage measured, without the columns `variant`, `step`, `stage`, which the spine adds.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The file's stem: `evaluate`, `evaluate_samples`, `prune`, `prune_sizes`, …
    pub name: &'static str,
    pub rows: RecordBatch,
}

/// A part of a table: what one step of a variant measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub step: u32,
    /// The stage's type.
    pub stage: String,
    pub table: Table,
}

/// A table could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("the table `{table}` would hold a NaN or an infinity in column `{column}`, row {row}")]
    NotFinite { table: &'static str, column: String, row: usize },
    #[error("the table `{table}` cannot be made: {message}")]
    Arrow { table: &'static str, message: String },
    #[error(transparent)]
    File(#[from] FileError),
}

impl Table {
    /// A table of plain structs: one column per field, in the order of the fields.
    pub fn of<R: Serialize + DeserializeOwned>(name: &'static str, rows: &[R]) -> Result<Self, MetricsError> {
        let failed = |e: serde_arrow::Error| MetricsError::Arrow { table: name, message: e.to_string() };
        let options = TracingOptions::default().strings_as_large_utf8(false);
        let fields = Vec::<FieldRef>::from_type::<R>(options).map_err(failed)?;
        let rows = serde_arrow::to_record_batch(&fields, &rows).map_err(failed)?;
        let table = Self { name, rows };
        table.check_finite()?;
        Ok(table)
    }

    fn check_finite(&self) -> Result<(), MetricsError> {
        for (field, column) in self.rows.schema().fields().iter().zip(self.rows.columns()) {
            let Some(values) = column.as_any().downcast_ref::<Float64Array>() else { continue };
            let bad = (0..values.len()).find(|&row| values.is_valid(row) && !values.value(row).is_finite());
            if let Some(row) = bad {
                return Err(MetricsError::NotFinite { table: self.name, column: field.name().clone(), row });
            }
        }
        Ok(())
    }
}

/// Writes the parts of one table of a variant as Parquet; the same parts give the same bytes.
pub fn write(path: &Path, variant: &str, parts: &[&Part]) -> Result<(), MetricsError> {
    let Some(name) = parts.first().map(|part| part.table.name) else { return Ok(()) };
    let arrow = |e: ArrowError| MetricsError::Arrow { table: name, message: e.to_string() };
    let parquet = |e: ParquetError| MetricsError::Arrow { table: name, message: e.to_string() };
    let batches = parts.iter().map(|part| placed(variant, part)).collect::<Result<Vec<_>, _>>().map_err(arrow)?;
    let whole = concat_batches(&batches[0].schema(), &batches).map_err(arrow)?;
    let properties =
        WriterProperties::builder().set_compression(Compression::SNAPPY).set_created_by("secateur".to_owned()).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, whole.schema(), Some(properties)).map_err(parquet)?;
    writer.write(&whole).map_err(parquet)?;
    writer.close().map_err(parquet)?;
    Ok(write_whole(path, &bytes)?)
}

/// The rows with `variant`, `step`, `stage` in front.
fn placed(variant: &str, part: &Part) -> Result<RecordBatch, ArrowError> {
    let n = part.table.rows.num_rows();
    let field = |name: &str, kind| Arc::new(Field::new(name, kind, false));
    let mut fields = vec![field("variant", DataType::Utf8), field("step", DataType::UInt32), field("stage", DataType::Utf8)];
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![variant; n])),
        Arc::new(UInt32Array::from(vec![part.step; n])),
        Arc::new(StringArray::from(vec![part.stage.as_str(); n])),
    ];
    fields.extend(part.table.rows.schema().fields().iter().cloned());
    columns.extend(part.table.rows.columns().iter().cloned());
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
        Row { task: "tiny".to_owned(), value, stderr: None, n: 3, kept: true }
    }

    #[test]
    fn columns_are_as_the_contract_names_them_and_bytes_repeat() {
        let folder = tempfile::tempdir().expect("a folder");
        let part =
            Part { step: 4, stage: "evaluate".to_owned(), table: Table::of("evaluate", &[row(0.5), row(1.5)]).expect("finite") };
        let kinds: Vec<String> = placed("v", &part)
            .expect("fits")
            .schema()
            .fields()
            .iter()
            .map(|f| format!("{}: {}", f.name(), f.data_type()))
            .collect();
        assert_eq!(
            kinds,
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
            write(&folder.path().join(name), "v", &[&part, &part]).expect("written");
            std::fs::read(folder.path().join(name)).expect("there")
        });
        assert_eq!(bytes[0], bytes[1]);
        Table::of::<Row>("empty", &[]).expect("a table may be empty");
    }

    #[test]
    fn what_is_not_finite_is_refused_by_name() {
        let error = Table::of("evaluate", &[row(1.0), row(f64::NAN)]).expect_err("a NaN").to_string();
        assert_eq!(error, "the table `evaluate` would hold a NaN or an infinity in column `value`, row 1");
    }
}
