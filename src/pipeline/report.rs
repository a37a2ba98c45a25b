//! The table of a sweep: `variants.parquet`, one row for each variant, and the same as a person reads it. polars reads
//! what arrow wrote, joins and summarises.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use polars::prelude::*;
use serde_json::Value;

use super::plan::Plan;
use super::results::{self, Manifest, Status};
use super::shape::Shape;
use crate::files::{FileError, write_whole};

mod text;

/// The file of the table, in the folder of a pipeline.
pub const TABLE: &str = "variants.parquet";

/// What became of one variant.
#[derive(Clone, Debug)]
pub struct VariantSummary {
    pub shape: Shape,
    pub status: Status,
    pub error: Option<String>,
    /// The folder of its tables.
    tables: PathBuf,
}

impl VariantSummary {
    pub fn new(shape: Shape, status: Status, error: Option<String>, tables: PathBuf) -> Self {
        Self { shape, status, error, tables }
    }

    /// As its folder in the pipeline's tells; None if it has none.
    pub fn of_folder(shape: Shape, folder: &Path) -> Option<Self> {
        let (tables, manifest) = results::outcome(&folder.join(&shape.id))?;
        Some(Self { shape, status: manifest.status, error: manifest.error, tables })
    }

    /// A file that it was made from and that is another one now.
    fn of_another(&self, now: &BTreeMap<String, String>) -> Option<String> {
        let manifest = Manifest::read(&self.tables)?;
        manifest.inputs.into_iter().find(|(path, hash)| now.get(path).is_some_and(|now| now != hash)).map(|(path, _)| path)
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

/// A metric's value and its standard error.
type Measured = BTreeMap<String, (f64, Option<f64>)>;

/// The columns of `prune_sizes` that the table repeats.
const SIZES: [&str; 8] =
    ["params_before", "params_after", "macs_before", "macs_after", "bytes_before", "bytes_after", "group_ratio", "param_ratio"];

/// Variants of the sweep that a run was not asked for, as their folders tell; `inputs`: what the run read.
pub fn others(plan: &Plan, folder: &Path, inputs: &BTreeMap<String, String>) -> Vec<VariantSummary> {
    let others = plan.others.iter().filter_map(|other| VariantSummary::of_folder(other.into(), folder));
    let told = |other: &VariantSummary| {
        if let Some(changed) = other.of_another(inputs) {
            tracing::warn!(variant = other.shape.id, "its row is of another `{changed}`: run it again");
        }
    };
    others.inspect(told).collect()
}

/// Writes `variants.parquet` from the variants' own tables, and returns the summary.
pub fn write_variants(folder: &Path, variants: &[VariantSummary]) -> Result<String, ReportError> {
    let mut frame = variants_frame(variants)?;
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).with_compression(ParquetCompression::Snappy).finish(&mut frame)?;
    let path = folder.join(TABLE);
    write_whole(&path, &bytes)?;
    text::summary(&frame)
}

/// Summarises results folders: `results/<pipeline>`, or a folder of several.
pub fn report(paths: &[PathBuf], json: bool) -> Result<String, ReportError> {
    let mut texts = Vec::new();
    let mut records = Vec::new();
    for path in paths {
        let folders = result_folders(path, |folder| folder.join(TABLE).exists());
        if folders.is_empty() {
            return Err(ReportError::NoResults(path.clone()));
        }
        for folder in folders {
            let frame = read(&folder.join(TABLE))?;
            if json {
                records.push(serde_json::json!({ "results": folder, "variants": text::records(&frame) }));
            } else {
                texts.push(format!("{}\n\n{}", folder.display(), text::summary(&frame)?));
            }
        }
    }
    Ok(if json { format!("{:#}\n", Value::Array(records)) } else { texts.join("\n") })
}

/// The folder itself if it holds results, or the folders in it that do, in order.
pub fn result_folders(path: &Path, has_results: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    if has_results(path) {
        return vec![path.to_owned()];
    }
    let inside = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = inside.filter(|folder| has_results(folder)).collect();
    found.sort();
    found
}

fn read(path: &Path) -> Result<DataFrame, ReportError> {
    let broken = |message: String| ReportError::Broken { path: path.to_owned(), message };
    let file = File::open(path).map_err(|e| broken(e.to_string()))?;
    ParquetReader::new(file).finish().map_err(|e| broken(e.to_string()))
}

/// What a variant's tables hold for its row.
#[derive(Default)]
struct Numbers {
    dense: Measured,
    pruned: Measured,
    last: Measured,
    sizes: BTreeMap<&'static str, AnyValue<'static>>,
}

impl Numbers {
    fn read(variant: &VariantSummary) -> Result<Self, ReportError> {
        let evaluate = variant.tables.join("evaluate.parquet");
        let evaluate = if evaluate.exists() { Some(read(&evaluate)?) } else { None };
        // Later steps win.
        let at = |steps: &mut dyn Iterator<Item = &u32>| match &evaluate {
            Some(frame) => steps.map(|&step| measured(frame, step)).try_fold(Measured::new(), |mut all, one| {
                all.extend(one?);
                Ok::<_, ReportError>(all)
            }),
            None => Ok(Measured::new()),
        };
        let Shape { dense, pruned, last, .. } = &variant.shape;
        Ok(Self {
            dense: at(&mut dense.iter().rev())?,
            pruned: at(&mut pruned.iter())?,
            last: if variant.status == Status::Succeeded { at(&mut last.iter())? } else { Measured::new() },
            sizes: last_sizes(&variant.tables.join("prune_sizes.parquet"))?,
        })
    }
}

/// One row for each variant: swept options, status, sizes, metrics, and their differences to the dense model.
fn variants_frame(variants: &[VariantSummary]) -> Result<DataFrame, ReportError> {
    let mut variants = variants.to_vec();
    let mut numbers: Vec<Numbers> = Vec::with_capacity(variants.len());
    for variant in &mut variants {
        // One variant's broken table is no reason to lose the others' rows.
        numbers.push(Numbers::read(variant).unwrap_or_else(|error| {
            (variant.status, variant.error) = (Status::Failed, Some(format!("{error}; run it again")));
            Numbers::default()
        }));
    }
    let variants = &variants[..];
    let mut columns: Vec<Column> =
        vec![Column::new("variant".into(), variants.iter().map(|v| v.shape.id.as_str()).collect::<Vec<_>>())];
    for key in swept_keys(variants) {
        columns.push(swept_column(&key, variants));
    }
    columns.push(Column::new("status".into(), variants.iter().map(|v| v.status.name()).collect::<Vec<_>>()));
    columns.push(Column::new("error".into(), variants.iter().map(|v| v.error.as_deref()).collect::<Vec<_>>()));
    for name in SIZES {
        let values: Vec<AnyValue<'_>> =
            numbers.iter().map(|row| row.sizes.get(name).cloned().unwrap_or(AnyValue::Null)).collect();
        let kind = if name.ends_with("_ratio") { DataType::Float64 } else { DataType::UInt64 };
        columns.push(Series::from_any_values_and_dtype(name.into(), &values, &kind, false)?.into_column());
    }
    let metrics: BTreeSet<&String> = numbers.iter().flat_map(|row| row.last.keys().chain(row.dense.keys())).collect();
    for metric in metrics {
        let mut column = |name: String, value: &dyn Fn(&Numbers) -> Option<f64>| {
            columns.push(Column::new(name.into(), numbers.iter().map(value).collect::<Vec<Option<f64>>>()));
        };
        let value = |of: &Measured| of.get(metric).map(|m| m.0);
        column(metric.clone(), &|row| value(&row.last));
        column(format!("{metric}.stderr"), &|row| row.last.get(metric).and_then(|m| m.1));
        column(format!("{metric}.dense"), &|row| value(&row.dense));
        column(format!("{metric}.pruned"), &|row| value(&row.pruned));
        column(format!("{metric}.delta"), &|row| Some(value(&row.last)? - value(&row.dense)?));
    }
    Ok(DataFrame::new(variants.len(), columns)?)
}

/// The metrics of one `evaluate`, as `task.metric`.
fn measured(frame: &DataFrame, step: u32) -> Result<Measured, ReportError> {
    let rows = frame
        .clone()
        .lazy()
        .filter(col("step").eq(lit(step)))
        .select([col("task"), col("metric"), col("value"), col("stderr")])
        .collect()?;
    let (task, metric) = (rows.column("task")?.str()?, rows.column("metric")?.str()?);
    let (value, stderr) = (rows.column("value")?.f64()?, rows.column("stderr")?.f64()?);
    let row = |i: usize| Some((format!("{}.{}", task.get(i)?, metric.get(i)?), (value.get(i)?, stderr.get(i))));
    Ok((0..rows.height()).filter_map(row).collect())
}

/// The sizes before the first pruning and after the last.
fn last_sizes(path: &Path) -> Result<BTreeMap<&'static str, AnyValue<'static>>, ReportError> {
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let frame = read(path)?;
    let mut sizes = BTreeMap::new();
    for name in SIZES {
        let row = if name.ends_with("_before") { 0 } else { frame.height() - 1 };
        sizes.insert(name, frame.column(name)?.get(row)?.into_static());
    }
    // Of several prunings the shares are those of all together.
    if let (AnyValue::UInt64(before), AnyValue::UInt64(after)) = (&sizes["params_before"], &sizes["params_after"]) {
        let removed = 1.0 - *after as f64 / *before as f64;
        sizes.insert("param_ratio", AnyValue::Float64(removed));
    }
    let kept: f64 = frame.column("group_ratio")?.f64()?.iter().flatten().map(|removed| 1.0 - removed).product();
    if frame.height() > 1 {
        sizes.insert("group_ratio", AnyValue::Float64(1.0 - kept));
    }
    Ok(sizes)
}

fn swept_keys(variants: &[VariantSummary]) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for (key, _) in variants.iter().flat_map(|v| &v.shape.swept) {
        if !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    keys
}

/// A swept option as a column: numbers as numbers, everything else as text.
fn swept_column(key: &str, variants: &[VariantSummary]) -> Column {
    let values: Vec<Option<&Value>> =
        variants.iter().map(|v| v.shape.swept.iter().find(|(k, _)| k == key).map(|(_, value)| value)).collect();
    let all = |is: fn(&Value) -> bool| values.iter().flatten().all(|value| is(value));
    let name: PlSmallStr = key.into();
    if all(Value::is_i64) {
        Column::new(name, values.iter().map(|v| v.and_then(Value::as_i64)).collect::<Vec<_>>())
    } else if all(Value::is_number) {
        Column::new(name, values.iter().map(|v| v.and_then(Value::as_f64)).collect::<Vec<_>>())
    } else if all(Value::is_boolean) {
        Column::new(name, values.iter().map(|v| v.and_then(Value::as_bool)).collect::<Vec<_>>())
    } else {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Column::new(name, values.iter().map(|v| v.map(text)).collect::<Vec<_>>())
    }
}
