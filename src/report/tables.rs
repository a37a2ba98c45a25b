//! Writes `variants.parquet` and `generations.parquet` from the tables of the variants.

use std::collections::BTreeSet;
use std::path::Path;

use polars::prelude::*;
use serde_json::Value;

use super::error::ReportError;
use super::generations::{GeneratedTexts, PromptKey};
use super::metrics::{SIZE_COLUMNS, VariantMetrics};
use super::numbers::read_metrics;
use super::option_values::OptionValues;
use super::parquet::{GENERATIONS_FILE, VARIANTS_FILE, write_parquet};
use super::sweep_report::SweepReport;
use super::variant_summary::VariantSummary;
use crate::results::VariantStatus;
use secateur_base::files::FileError;

/// Writes `variants.parquet` and `generations.parquet` from the variants' own tables, and returns
/// both.
pub fn write_report_tables(
    folder: &Path,
    variants: &[VariantSummary],
) -> Result<SweepReport, ReportError> {
    let rows: Vec<VariantRow> = variants.iter().map(VariantRow::read).collect();
    let variants = build_variants_table(&rows)?;
    write_parquet(&folder.join(VARIANTS_FILE), &variants)?;
    let generations = build_generations_table(&rows)?;
    let path = folder.join(GENERATIONS_FILE);
    match &generations {
        Some(table) => write_parquet(&path, table)?,
        // The pipeline had a `generate` stage in an earlier run and has none now.
        None if path.exists() => {
            std::fs::remove_file(&path).map_err(|source| FileError::remove(&path, source))?;
        }
        None => {}
    }
    Ok(SweepReport {
        folder: folder.to_owned(),
        variants,
        generations,
    })
}

/// A variant, and the content of its tables.
struct VariantRow {
    variant: VariantSummary,
    metrics: VariantMetrics,
    texts: GeneratedTexts,
    options: OptionValues,
}

impl VariantRow {
    /// Reads the tables of a variant. If one of them cannot be read the variant counts as failed,
    /// and the rows of the other variants are still written.
    fn read(variant: &VariantSummary) -> Self {
        let mut variant = variant.clone();
        let tables = read_metrics(&variant)
            .and_then(|metrics| Ok((metrics, GeneratedTexts::read(&variant)?)));
        let (metrics, texts) = tables.unwrap_or_else(|error| {
            variant.status = VariantStatus::Failed;
            variant.error = Some(format!("{error}; run it again"));
            Default::default()
        });
        Self {
            options: OptionValues::read(&variant.tables_folder),
            variant,
            metrics,
            texts,
        }
    }
}

/// The table with one row per variant: swept options, status, whether it is current, sizes, metrics, and the differences
/// to the dense model.
fn build_variants_table(rows: &[VariantRow]) -> Result<DataFrame, ReportError> {
    let mut columns = vec![column_of("variant", rows, |row| {
        row.variant.description.id.as_str()
    })];
    for key in swept_keys(rows) {
        columns.push(swept_column(key, rows));
    }
    columns.push(column_of("status", rows, |row| row.variant.status.name()));
    columns.push(column_of("error", rows, |row| row.variant.error.as_deref()));
    columns.push(column_of("current", rows, |row| row.variant.is_current));
    for name in SIZE_COLUMNS {
        columns.push(size_column(name, rows)?);
    }
    let metrics: BTreeSet<&String> = rows
        .iter()
        .flat_map(|row| row.metrics.last.keys().chain(row.metrics.dense.keys()))
        .collect();
    for metric in metrics {
        columns.extend(metric_columns(metric, rows));
    }
    Ok(DataFrame::new(rows.len(), columns)?)
}

/// A column with one value per item. `Phantom` is the parameter by which polars tells its
/// conversions of `Vec<T>` apart; callers leave it to inference.
fn column_of<'a, Item, T, Phantom: ?Sized>(
    name: &str,
    items: &'a [Item],
    value: impl Fn(&'a Item) -> T,
) -> Column
where
    Series: NamedFrom<Vec<T>, Phantom>,
{
    Column::new(name.into(), items.iter().map(value).collect::<Vec<T>>())
}

/// The options that any variant has from a sweep or the command line, in the order of their first
/// appearance.
fn swept_keys(rows: &[VariantRow]) -> Vec<&str> {
    let mut keys: Vec<&str> = Vec::new();
    for (key, _) in rows.iter().flat_map(|row| &row.variant.description.swept) {
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    keys
}

/// A swept option as a column: of integers, numbers or booleans if all values are such, else of
/// text.
fn swept_column(key: &str, rows: &[VariantRow]) -> Column {
    let values: Vec<Option<Value>> = rows.iter().map(|row| option_value(row, key)).collect();
    let all = |has_type: fn(&Value) -> bool| values.iter().flatten().all(has_type);
    if all(Value::is_i64) {
        column_of(key, &values, |value| value.as_ref().and_then(Value::as_i64))
    } else if all(Value::is_number) {
        column_of(key, &values, |value| value.as_ref().and_then(Value::as_f64))
    } else if all(Value::is_boolean) {
        column_of(key, &values, |value| {
            value.as_ref().and_then(Value::as_bool)
        })
    } else {
        column_of(key, &values, |value| value.as_ref().map(value_text))
    }
}

/// The value that the sweep or the command line sets, else that of the pipeline file.
fn option_value(row: &VariantRow, key: &str) -> Option<Value> {
    let mut swept = row.variant.description.swept.iter();
    swept
        .find(|(swept_key, _)| swept_key == key)
        .map(|(_, value)| value.clone())
        .or_else(|| row.options.get(key))
}

/// A string without its quotes; every other value as JSON.
fn value_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A column of `prune_sizes.parquet`: counts are unsigned integers, shares are floats, the element
/// type is a text.
fn size_column(name: &'static str, rows: &[VariantRow]) -> Result<Column, PolarsError> {
    let data_type = match name {
        "dtype" => DataType::String,
        _ if name.ends_with("_ratio") => DataType::Float64,
        _ => DataType::UInt64,
    };
    let values: Vec<AnyValue<'_>> = rows
        .iter()
        .map(|row| row.metrics.sizes.get(name).cloned())
        .map(|size| size.unwrap_or(AnyValue::Null))
        .collect();
    let is_strict = false;
    let series = Series::from_any_values_and_dtype(name.into(), &values, &data_type, is_strict)?;
    Ok(series.into_column())
}

/// The columns of one metric: `metric`, and what belongs to it with a suffix.
fn metric_columns(metric: &str, rows: &[VariantRow]) -> Vec<Column> {
    let column = |suffix: &str, value: &dyn Fn(&VariantMetrics) -> Option<f64>| {
        column_of(&format!("{metric}{suffix}"), rows, |row| {
            value(&row.metrics)
        })
    };
    vec![
        column("", &|metrics| Some(metrics.last.get(metric)?.value)),
        column(".stderr", &|metrics| metrics.last.get(metric)?.stderr),
        column(".dense", &|metrics| Some(metrics.dense.get(metric)?.value)),
        column(".dense_stderr", &|metrics| {
            metrics.dense.get(metric)?.stderr
        }),
        column(".pruned", &|metrics| {
            Some(metrics.pruned.get(metric)?.value)
        }),
        column(".delta", &|metrics| {
            Some(metrics.last.get(metric)?.value - metrics.dense.get(metric)?.value)
        }),
        column(".delta_stderr", &|metrics| {
            metrics.delta_stderr.get(metric).copied()
        }),
        column(".chance", &|metrics| {
            let measurement = metrics.last.get(metric).or(metrics.dense.get(metric))?;
            measurement.chance
        }),
        column(".majority", &|metrics| {
            let measurement = metrics.last.get(metric).or(metrics.dense.get(metric))?;
            measurement.majority
        }),
    ]
}

/// The table with one row per variant and prompt; `None` if no variant generated a text.
fn build_generations_table(rows: &[VariantRow]) -> Result<Option<DataFrame>, ReportError> {
    let mut prompts: Vec<(&VariantRow, &PromptKey)> = Vec::new();
    for row in rows {
        prompts.extend(row.texts.prompts().into_iter().map(|prompt| (row, prompt)));
    }
    if prompts.is_empty() {
        return Ok(None);
    }
    let columns = vec![
        column_of("variant", &prompts, |(row, _)| {
            row.variant.description.id.as_str()
        }),
        column_of("prompt", &prompts, |(_, prompt)| prompt.number),
        column_of("input", &prompts, |(_, prompt)| prompt.input.as_str()),
        column_of("dense", &prompts, |(row, prompt)| {
            row.texts.dense.get(*prompt).map(String::as_str)
        }),
        column_of("pruned", &prompts, |(row, prompt)| {
            row.texts.pruned.get(*prompt).map(String::as_str)
        }),
        column_of("output", &prompts, |(row, prompt)| {
            row.texts.last.get(*prompt).map(String::as_str)
        }),
    ];
    Ok(Some(DataFrame::new(prompts.len(), columns)?))
}
