//! Paired standard errors: how certain the difference between two models is.
//!
//! Both models answered the same documents, so each document gives one pair of values and one
//! difference. What makes a document hard for both models cancels in the difference, which is why
//! this standard error is smaller than that of two independent means. It is the standard error of
//! the paired t-test (Student 1908; for language models: Miller 2024, "Adding Error Bars to Evals",
//! arXiv:2411.00640, section 4.2).

use std::collections::BTreeMap;
use std::path::Path;

use polars::prelude::*;

use super::error::ReportError;
use super::metrics::{Measurement, Measurements};
use super::parquet::read_parquet;

/// The columns that are read from `evaluate_documents.parquet`.
const DOCUMENT_COLUMNS: [&str; 5] = ["step", "task", "metric", "doc", "value"];

/// The standard error of `last - dense` for each metric, by the name of the metric's column.
///
/// A metric is left out where one of the two models was evaluated on documents that the other
/// lacks, and where there are fewer than two documents.
pub(crate) fn standard_errors(
    documents_path: &Path,
    dense: &Measurements,
    last: &Measurements,
) -> Result<BTreeMap<String, f64>, ReportError> {
    if !documents_path.exists() || !last.keys().any(|metric| dense.contains_key(metric)) {
        return Ok(BTreeMap::new());
    }
    let documents = read_parquet(documents_path, Some(&DOCUMENT_COLUMNS))?;
    let pairs = join_documents(&documents, dense, last)?;
    let mut standard_errors = BTreeMap::new();
    for (metric, differences) in differences_by_metric(&pairs)? {
        // `None` if any document has no counterpart.
        let complete: Option<Vec<f64>> = differences.into_iter().collect();
        if let Some(standard_error) = complete.and_then(|values| standard_error_of_mean(&values)) {
            standard_errors.insert(metric, standard_error);
        }
    }
    Ok(standard_errors)
}

/// One row per metric and document, with the values of both models: columns `name`, `doc`, `dense`,
/// `last`. A full join: a document that one model lacks has a null in that model's column.
fn join_documents(
    documents: &DataFrame,
    dense: &Measurements,
    last: &Measurements,
) -> Result<DataFrame, PolarsError> {
    let keys = ["name", "doc"];
    let full = JoinArgs::new(JoinType::Full).with_coalesce(JoinCoalesce::CoalesceColumns);
    select_documents(documents, dense, "dense")?
        .join(
            &select_documents(documents, last, "last")?,
            keys,
            keys,
            full,
            None,
        )?
        // The order of the summands decides the last bits of a sum, and a join guarantees no order.
        .sort(keys, SortMultipleOptions::default())
}

/// The values of the documents behind `measurements`, in a column called `value_column`: for each
/// metric, the rows of the step that measured it.
fn select_documents(
    documents: &DataFrame,
    measurements: &Measurements,
    value_column: &str,
) -> Result<DataFrame, PolarsError> {
    let field_values = |field: fn(&Measurement) -> &str| -> Vec<&str> {
        measurements.values().map(field).collect()
    };
    let names: Vec<&str> = measurements.keys().map(String::as_str).collect();
    let steps: Vec<u32> = measurements
        .values()
        .map(|measurement| measurement.step)
        .collect();
    let measured = df!(
        "name" => names,
        "task" => field_values(|measurement| &measurement.task),
        "metric" => field_values(|measurement| &measurement.metric),
        "step" => steps,
    )?;
    let keys = ["task", "metric", "step"];
    let mut values = documents
        .join(&measured, keys, keys, JoinArgs::new(JoinType::Inner), None)?
        .select(["name", "doc", "value"])?;
    values.rename("value", value_column.into())?;
    Ok(values)
}

/// d_i = last_i − dense_i of every document i, in the order of the rows; `None` where one value is
/// missing.
fn differences_by_metric(
    pairs: &DataFrame,
) -> Result<BTreeMap<String, Vec<Option<f64>>>, PolarsError> {
    let names = pairs.column("name")?.str()?;
    let dense = pairs.column("dense")?.f64()?;
    let last = pairs.column("last")?.f64()?;
    let mut differences: BTreeMap<String, Vec<Option<f64>>> = BTreeMap::new();
    for row in 0..pairs.height() {
        let Some(name) = names.get(row) else { continue };
        let difference = match (last.get(row), dense.get(row)) {
            (Some(last), Some(dense)) => Some(last - dense),
            _ => None,
        };
        differences
            .entry(name.to_owned())
            .or_default()
            .push(difference);
    }
    Ok(differences)
}

/// The standard error of the mean of d_1 … d_n; `None` for n < 2:
///
/// SE(d̄) = s / √n, where s² = Σ (d_i − d̄)² / (n − 1) is the sample variance (Bessel's
/// correction), so SE = √(Σ (d_i − d̄)² / (n − 1) / n).
fn standard_error_of_mean(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squared_deviations: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let sample_variance = squared_deviations / (n - 1.0);
    Some((sample_variance / n).sqrt())
}
