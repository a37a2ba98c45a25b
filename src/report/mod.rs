//! The tables of a sweep: `variants.parquet`, one row for each variant, `generations.parquet`, what the variants wrote side by
//! side, and the same as a person reads it. polars reads what arrow wrote, joins and summarises.

pub mod merge;
pub mod shape;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use polars::prelude::*;
use serde_json::Value;

use crate::plan::Plan;
use crate::report::shape::VariantDescription;
use crate::results::{self, VariantManifest, VariantStatus};
use generations::GeneratedTexts;
use numbers::{Measurement, SIZE_COLUMNS, VariantMetrics};
use secateur_base::files::{FileError, write_atomic};

mod evaluation_key;
mod generations;
mod numbers;
mod paired;
mod text;

/// The file of the table, in the folder of a pipeline.
pub const VARIANTS_FILE: &str = "variants.parquet";

/// What became of one variant.
#[derive(Clone, Debug)]
pub struct VariantSummary {
    pub description: VariantDescription,
    pub status: VariantStatus,
    pub error: Option<String>,
    /// The folder of its tables.
    tables_folder: PathBuf,
}

impl VariantSummary {
    pub fn new(
        shape: VariantDescription,
        status: VariantStatus,
        error: Option<String>,
        tables: PathBuf,
    ) -> Self {
        Self {
            description: shape,
            status,
            error,
            tables_folder: tables,
        }
    }

    /// As its folder in the pipeline's tells; None if it has none.
    pub fn from_folder(shape: VariantDescription, folder: &Path) -> Option<Self> {
        let (tables, manifest) = results::read_last_manifest(&folder.join(&shape.id))?;
        Some(Self {
            description: shape,
            status: manifest.status,
            error: manifest.error,
            tables_folder: tables,
        })
    }

    /// A file that it was made from and that is another one now.
    fn changed_input(&self, now: &BTreeMap<String, String>) -> Option<String> {
        let manifest = VariantManifest::read(&self.tables_folder)?;
        manifest
            .inputs
            .into_iter()
            .find(|(path, hash)| now.get(path).is_some_and(|now| now != hash))
            .map(|(path, _)| path)
    }
}

/// A report could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("`{}` holds no results: it has no variants.parquet", .0.display())]
    NoResults(PathBuf),
    #[error("`{}` cannot be read: {message}", .path.display())]
    Broken { path: PathBuf, message: String },
    #[error("the table of the variants cannot be made: {0}")]
    Polars(#[from] PolarsError),
    #[error(transparent)]
    File(#[from] FileError),
}

/// Variants of the sweep that a run was not asked for, as their folders tell; `inputs`: what the run read.
pub fn unselected_summaries(
    plan: &Plan,
    folder: &Path,
    inputs: &BTreeMap<String, String>,
) -> Vec<VariantSummary> {
    let others = plan
        .unselected
        .iter()
        .filter_map(|other| VariantSummary::from_folder(other.into(), folder));
    let told = |other: &VariantSummary| {
        if let Some(changed) = other.changed_input(inputs) {
            tracing::warn!(
                variant = other.description.id,
                "its row is of another `{changed}`: run it again"
            );
        }
    };
    others.inspect(told).collect()
}

/// Writes `variants.parquet` and `generations.parquet` from the variants' own tables, and returns the summary.
pub fn write_report_tables(
    folder: &Path,
    variants: &[VariantSummary],
) -> Result<String, ReportError> {
    let rows: Vec<VariantRow> = variants.iter().map(VariantRow::read).collect();
    let mut frame = variants_frame(&rows)?;
    write_parquet(&folder.join(VARIANTS_FILE), &mut frame)?;
    let mut generations = generations::generations_frame(&rows)?;
    let path = folder.join(generations::GENERATIONS_FILE);
    match &mut generations {
        Some(generations) => write_parquet(&path, generations)?,
        // of an earlier run, whose pipeline still had such a stage
        None if path.exists() => {
            std::fs::remove_file(&path).map_err(|source| FileError { path, source })?
        }
        None => {}
    }
    text::format_sweep(&frame, generations.as_ref())
}

fn write_parquet(path: &Path, frame: &mut DataFrame) -> Result<(), ReportError> {
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes)
        .with_compression(ParquetCompression::Snappy)
        .finish(frame)?;
    Ok(write_atomic(path, &bytes)?)
}

/// Summarises results folders: `results/<pipeline>`, or a folder of several.
pub fn summarize_results(paths: &[PathBuf], json: bool) -> Result<String, ReportError> {
    let mut texts = Vec::new();
    let mut records = Vec::new();
    for path in paths {
        let folders = find_result_folders(path, |folder| folder.join(VARIANTS_FILE).exists());
        if folders.is_empty() {
            return Err(ReportError::NoResults(path.clone()));
        }
        for folder in folders {
            let frame = read_parquet(&folder.join(VARIANTS_FILE), None)?;
            let generations = folder.join(generations::GENERATIONS_FILE);
            let generations = if generations.exists() {
                Some(read_parquet(&generations, None)?)
            } else {
                None
            };
            if json {
                let generations = generations.map_or_else(
                    || Value::Array(Vec::new()),
                    |frame| text::to_json_records(&frame),
                );
                let variants = text::to_json_records(&frame);
                records.push(serde_json::json!({ "results": folder, "variants": variants, "generations": generations }));
            } else {
                texts.push(format!(
                    "{}\n\n{}",
                    folder.display(),
                    text::format_sweep(&frame, generations.as_ref())?
                ));
            }
        }
    }
    Ok(if json {
        format!("{:#}\n", Value::Array(records))
    } else {
        texts.join("\n")
    })
}

/// The folder itself if it holds results, or the folders in it that do, in order.
pub fn find_result_folders(path: &Path, has_results: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    if has_results(path) {
        return vec![path.to_owned()];
    }
    let inside = std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let mut found: Vec<PathBuf> = inside.filter(|folder| has_results(folder)).collect();
    found.sort();
    found
}

/// A table, or these columns of it.
fn read_parquet(path: &Path, columns: Option<&[&str]>) -> Result<DataFrame, ReportError> {
    let broken = |message: String| ReportError::Broken {
        path: path.to_owned(),
        message,
    };
    let file = File::open(path).map_err(|e| broken(e.to_string()))?;
    let columns = columns.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
    ParquetReader::new(file)
        .with_columns(columns)
        .finish()
        .map_err(|e| broken(e.to_string()))
}

/// A variant, and what its tables hold.
struct VariantRow {
    variant: VariantSummary,
    metrics: VariantMetrics,
    texts: GeneratedTexts,
}

impl VariantRow {
    fn read(variant: &VariantSummary) -> Self {
        let mut variant = variant.clone();
        let read = VariantMetrics::read(&variant)
            .and_then(|numbers| Ok((numbers, GeneratedTexts::read(&variant)?)));
        // One variant's broken table is no reason to lose the others' rows.
        let (numbers, texts) = read.unwrap_or_else(|error| {
            (variant.status, variant.error) = (
                VariantStatus::Failed,
                Some(format!("{error}; run it again")),
            );
            Default::default()
        });
        Self {
            variant,
            metrics: numbers,
            texts,
        }
    }
}

/// One row for each variant: swept options, status, sizes, metrics, and their differences to the dense model.
fn variants_frame(rows: &[VariantRow]) -> Result<DataFrame, ReportError> {
    let variants: Vec<&VariantSummary> = rows.iter().map(|row| &row.variant).collect();
    let numbers: Vec<&VariantMetrics> = rows.iter().map(|row| &row.metrics).collect();
    let mut columns: Vec<Column> = vec![Column::new(
        "variant".into(),
        variants
            .iter()
            .map(|v| v.description.id.as_str())
            .collect::<Vec<_>>(),
    )];
    for key in swept_keys(&variants) {
        columns.push(swept_column(&key, &variants));
    }
    columns.push(Column::new(
        "status".into(),
        variants.iter().map(|v| v.status.name()).collect::<Vec<_>>(),
    ));
    columns.push(Column::new(
        "error".into(),
        variants
            .iter()
            .map(|v| v.error.as_deref())
            .collect::<Vec<_>>(),
    ));
    for name in SIZE_COLUMNS {
        let values: Vec<AnyValue<'_>> = numbers
            .iter()
            .map(|row| row.sizes.get(name).cloned().unwrap_or(AnyValue::Null))
            .collect();
        let kind = if name.ends_with("_ratio") {
            DataType::Float64
        } else {
            DataType::UInt64
        };
        columns.push(
            Series::from_any_values_and_dtype(name.into(), &values, &kind, false)?.into_column(),
        );
    }
    let metrics: BTreeSet<&String> = numbers
        .iter()
        .flat_map(|row| row.last.keys().chain(row.dense.keys()))
        .collect();
    for metric in metrics {
        columns.extend(metric_columns(metric, &numbers));
    }
    Ok(DataFrame::new(rows.len(), columns)?)
}

/// What is known of a metric, a column for each.
fn metric_columns(metric: &str, numbers: &[&VariantMetrics]) -> Vec<Column> {
    let column = |ending: &str, value: &dyn Fn(&VariantMetrics) -> Option<f64>| {
        Column::new(
            format!("{metric}{ending}").into(),
            numbers
                .iter()
                .map(|row| value(row))
                .collect::<Vec<Option<f64>>>(),
        )
    };
    let last = |row: &VariantMetrics| row.last.get(metric).cloned();
    let dense = |row: &VariantMetrics| row.dense.get(metric).cloned();
    let value = |of: Option<Measurement>| of.map(|m| m.value);
    vec![
        column("", &|row| value(last(row))),
        column(".stderr", &|row| last(row)?.stderr),
        column(".dense", &|row| value(dense(row))),
        column(".dense_stderr", &|row| dense(row)?.stderr),
        column(".pruned", &|row| value(row.pruned.get(metric).cloned())),
        column(".delta", &|row| Some(last(row)?.value - dense(row)?.value)),
        column(".delta_stderr", &|row| {
            row.delta_stderr.get(metric).copied()
        }),
        column(".chance", &|row| last(row).or_else(|| dense(row))?.chance),
    ]
}

fn swept_keys(variants: &[&VariantSummary]) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for (key, _) in variants.iter().flat_map(|v| &v.description.swept) {
        if !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    keys
}

/// A swept option as a column: numbers as numbers, everything else as text.
fn swept_column(key: &str, variants: &[&VariantSummary]) -> Column {
    let values: Vec<Option<&Value>> = variants
        .iter()
        .map(|v| {
            v.description
                .swept
                .iter()
                .find(|(k, _)| k == key)
                .map(|(_, value)| value)
        })
        .collect();
    let all = |is: fn(&Value) -> bool| values.iter().flatten().all(|value| is(value));
    let name: PlSmallStr = key.into();
    if all(Value::is_i64) {
        Column::new(
            name,
            values
                .iter()
                .map(|v| v.and_then(Value::as_i64))
                .collect::<Vec<_>>(),
        )
    } else if all(Value::is_number) {
        Column::new(
            name,
            values
                .iter()
                .map(|v| v.and_then(Value::as_f64))
                .collect::<Vec<_>>(),
        )
    } else if all(Value::is_boolean) {
        Column::new(
            name,
            values
                .iter()
                .map(|v| v.and_then(Value::as_bool))
                .collect::<Vec<_>>(),
        )
    } else {
        let text = |value: &Value| {
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned)
        };
        Column::new(name, values.iter().map(|v| v.map(text)).collect::<Vec<_>>())
    }
}
