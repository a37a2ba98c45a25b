//! Tables: plain structs → arrow → Parquet, whole files only. NaN and infinities are refused, by table and column.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float64Array, RecordBatch, StringArray, UInt32Array};
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

/// The rows that a stage measured, without the columns `variant`, `step`, `stage`, which the spine adds.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The file's stem: `evaluate`, `evaluate_samples`, `prune`, `prune_sizes`, …
    pub name: String,
    pub rows: RecordBatch,
}

/// A part of a table: what one step of a variant measured.
#[derive(Clone, Debug, PartialEq)]
pub struct TablePart {
    pub step: u32,
    /// The stage's type.
    pub stage: String,
    pub table: Table,
}

/// A table could not be made or written.
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
    /// A table of plain structs: one column per field, in the order of the fields.
    pub fn from_rows<R: Serialize + DeserializeOwned>(
        name: &str,
        rows: &[R],
    ) -> Result<Self, TableError> {
        let failed = |e: serde_arrow::Error| TableError::Encode {
            table: name.to_owned(),
            message: e.to_string(),
        };
        let options = TracingOptions::default()
            .strings_as_large_utf8(false)
            .sequence_as_large_list(false);
        let fields = Vec::<FieldRef>::from_type::<R>(options).map_err(failed)?;
        let rows = serde_arrow::to_record_batch(&fields, &rows).map_err(failed)?;
        let table = Self {
            name: name.to_owned(),
            rows,
        };
        table.check_finite()?;
        Ok(table)
    }

    /// Writes the rows alone; [`Table::read`] gives them back.
    pub fn save(&self, path: &Path) -> Result<(), TableError> {
        Ok(write_atomic_unsynced(
            path,
            &encode_parquet(&self.name, &self.rows)?,
        )?)
    }

    /// What [`Table::save`] wrote.
    pub fn read(name: &str, path: &Path) -> Result<Self, TableError> {
        let failed = |e: &dyn std::fmt::Display| TableError::Read {
            table: name.to_owned(),
            message: e.to_string(),
        };
        let file = File::open(path).map_err(|e| failed(&e))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| failed(&e))?;
        let schema = reader.schema().clone();
        let batches = reader
            .build()
            .map_err(|e| failed(&e))?
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| failed(&e))?;
        Ok(Self {
            name: name.to_owned(),
            rows: concat_batches(&schema, &batches).map_err(|e| failed(&e))?,
        })
    }

    fn check_finite(&self) -> Result<(), TableError> {
        for (field, column) in self.rows.schema().fields().iter().zip(self.rows.columns()) {
            let Some(values) = column.as_any().downcast_ref::<Float64Array>() else {
                continue;
            };
            let bad = (0..values.len())
                .find(|&row| values.is_valid(row) && !values.value(row).is_finite());
            if let Some(row) = bad {
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

/// Writes the parts of the table `name` of a variant as Parquet; the same parts give the same bytes, and there is at least
/// one.
pub fn write_parts(
    path: &Path,
    name: &str,
    variant: &str,
    parts: &[&TablePart],
) -> Result<Fingerprint, TableError> {
    let arrow = |e: ArrowError| TableError::Encode {
        table: name.to_owned(),
        message: e.to_string(),
    };
    let batches = parts
        .iter()
        .map(|part| add_key_columns(variant, part))
        .collect::<Result<Vec<_>, _>>()
        .map_err(arrow)?;
    let whole = concat_batches(&batches[0].schema(), &batches).map_err(arrow)?;
    let bytes = encode_parquet(name, &whole)?;
    write_atomic_unsynced(path, &bytes)?;
    Ok(Fingerprint::from_bytes(&bytes))
}

/// Rows as a Parquet file.
fn encode_parquet(name: &str, rows: &RecordBatch) -> Result<Vec<u8>, TableError> {
    let parquet = |e: ParquetError| TableError::Encode {
        table: name.to_owned(),
        message: e.to_string(),
    };
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_created_by("secateur".to_owned())
        .build();
    let mut bytes = Vec::new();
    let mut writer =
        ArrowWriter::try_new(&mut bytes, rows.schema(), Some(properties)).map_err(parquet)?;
    writer.write(rows).map_err(parquet)?;
    writer.close().map_err(parquet)?;
    Ok(bytes)
}

/// The rows with `variant`, `step`, `stage` in front.
fn add_key_columns(variant: &str, part: &TablePart) -> Result<RecordBatch, ArrowError> {
    let n = part.table.rows.num_rows();
    let field = |name: &str, kind| Arc::new(Field::new(name, kind, false));
    let mut fields = vec![
        field("variant", DataType::Utf8),
        field("step", DataType::UInt32),
        field("stage", DataType::Utf8),
    ];
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
        Row {
            task: "tiny".to_owned(),
            value,
            stderr: None,
            n: 3,
            kept: true,
        }
    }

    #[test]
    fn columns_are_as_the_contract_names_them_and_bytes_repeat() {
        let folder = tempfile::tempdir().expect("a folder");
        let part = TablePart {
            step: 4,
            stage: "evaluate".to_owned(),
            table: Table::from_rows("evaluate", &[row(0.5), row(1.5)]).expect("finite"),
        };
        let kinds: Vec<String> = add_key_columns("v", &part)
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
            write_parts(&folder.path().join(name), "evaluate", "v", &[&part, &part])
                .expect("written");
            std::fs::read(folder.path().join(name)).expect("there")
        });
        assert_eq!(bytes[0], bytes[1]);
        Table::from_rows::<Row>("empty", &[]).expect("a table may be empty");
    }

    #[test]
    fn rows_come_back_from_disk_as_they_were() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rows.parquet");
        let many: Vec<Row> = (0..5000).map(|i| row(1.0 / f64::from(i + 1))).collect();
        for rows in [&many[..], &[]] {
            let table = Table::from_rows("evaluate", rows).expect("finite");
            table.save(&path).expect("written");
            assert_eq!(Table::read("evaluate", &path).expect("read"), table);
        }
    }

    #[test]
    fn what_is_not_finite_is_refused_by_name() {
        let error = Table::from_rows("evaluate", &[row(1.0), row(f64::NAN)])
            .expect_err("a NaN")
            .to_string();
        assert_eq!(
            error,
            "the table `evaluate` would hold a NaN or an infinity in column `value`, row 1"
        );
    }
}
