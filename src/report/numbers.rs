//! Reads the numbers of one variant from its tables: metrics of the dense, the pruned and the final
//! model, and sizes.

use std::collections::BTreeMap;
use std::path::Path;

use polars::prelude::*;

use super::error::ReportError;
use super::metrics::{Measurement, Measurements, SIZE_COLUMNS, VariantMetrics};
use super::paired;
use super::parquet::{read_parquet, read_parquet_if_exists};
use super::step_options::StepOptions;
use super::variant_summary::VariantSummary;
use crate::results::VariantStatus;

/// The protocol whose metrics have no suffix in the name of their column.
const DEFAULT_PROTOCOL: &str = "harness";

/// Reads the numbers of a variant. A variant that did not succeed has no final model.
pub(crate) fn read_metrics(variant: &VariantSummary) -> Result<VariantMetrics, ReportError> {
    let folder = &variant.tables_folder;
    let evaluate = read_parquet_if_exists(&folder.join("evaluate.parquet"))?;
    let options = StepOptions::read(folder);
    let collect = |steps: &[u32], reference: &Measurements| match &evaluate {
        Some(table) => collect_measurements(table, steps, reference, &options),
        None => Ok(Measurements::new()),
    };
    let steps = &variant.description.evaluate;
    let last = if variant.status == VariantStatus::Succeeded {
        collect(&reversed(&steps.last), &Measurements::new())?
    } else {
        Measurements::new()
    };
    let dense = collect(&steps.dense, &last)?;
    let pruned = collect(&reversed(&steps.pruned), &last)?;
    let comparable_dense = comparable_to(&dense, &last, &options);
    let delta_stderr = paired::standard_errors(
        &folder.join("evaluate_documents.parquet"),
        &comparable_dense,
        &last,
    )?;
    let sizes = read_sizes(&folder.join("prune_sizes.parquet"))?;
    Ok(VariantMetrics {
        dense,
        pruned,
        last,
        delta_stderr,
        sizes,
    })
}

fn reversed(steps: &[u32]) -> Vec<u32> {
    steps.iter().rev().copied().collect()
}

/// Collects one measurement per metric from the `evaluate` stages at `steps`: the first step whose
/// options are comparable to those of `reference`, else the first step. A metric that `reference`
/// lacks is comparable.
fn collect_measurements(
    evaluate: &DataFrame,
    steps: &[u32],
    reference: &Measurements,
    options: &StepOptions,
) -> Result<Measurements, ReportError> {
    let mut comparable = Measurements::new();
    let mut incomparable = Measurements::new();
    for &step in steps {
        for (name, measurement) in read_measurements(evaluate, step)? {
            let is_comparable = reference.get(&name).is_none_or(|reference| {
                options.are_comparable(&measurement.task, step, reference.step)
            });
            let measurements = if is_comparable {
                &mut comparable
            } else {
                &mut incomparable
            };
            measurements.entry(name).or_insert(measurement);
        }
    }
    for (name, measurement) in incomparable {
        comparable.entry(name).or_insert(measurement);
    }
    Ok(comparable)
}

/// The measurements of `dense` that have a counterpart in `last` with comparable options: only
/// their documents can be paired.
fn comparable_to(dense: &Measurements, last: &Measurements, options: &StepOptions) -> Measurements {
    let mut comparable = Measurements::new();
    for (name, measurement) in dense {
        let is_comparable = last.get(name).is_some_and(|last| {
            options.are_comparable(&measurement.task, measurement.step, last.step)
        });
        if is_comparable {
            comparable.insert(name.clone(), measurement.clone());
        }
    }
    comparable
}

/// The metrics that the `evaluate` stage at `step` measured.
fn read_measurements(evaluate: &DataFrame, step: u32) -> Result<Measurements, ReportError> {
    let rows = evaluate.filter(&evaluate.column("step")?.u32()?.equal(step))?;
    let tasks = rows.column("task")?.str()?;
    let metrics = rows.column("metric")?.str()?;
    let values = rows.column("value")?.f64()?;
    let stderrs = rows.column("stderr")?.f64()?;
    // Tables of earlier versions lack these columns.
    let chances = optional_column(&rows, "chance", Column::f64)?;
    let majorities = optional_column(&rows, "majority", Column::f64)?;
    let protocols = optional_column(&rows, "protocol", Column::str)?;
    let measurement = |row: usize| {
        let task = tasks.get(row)?.to_owned();
        let metric = metrics.get(row)?.to_owned();
        let chance = chances.and_then(|column| column.get(row));
        let protocol = protocols.and_then(|column| column.get(row));
        let name = column_name(&task, &metric, protocol, chance);
        let measurement = Measurement {
            task,
            metric,
            step,
            value: values.get(row)?,
            stderr: stderrs.get(row),
            chance,
            majority: majorities.and_then(|column| column.get(row)),
        };
        Some((name, measurement))
    };
    Ok((0..rows.height()).filter_map(measurement).collect())
}

/// A column with the given type; `None` where the table does not have it.
fn optional_column<'a, T>(
    table: &'a DataFrame,
    name: &str,
    typed: impl FnOnce(&'a Column) -> PolarsResult<T>,
) -> PolarsResult<Option<T>> {
    table.column(name).ok().map(typed).transpose()
}

/// The column of a metric in `variants.parquet`: `task.metric`, or `task.metric (protocol)` for
/// another protocol than the default, so that a difference never compares two protocols.
/// Perplexities of windows (they have no chance) are always measured as LLM-Pruner does, so they
/// need no suffix either.
fn column_name(task: &str, metric: &str, protocol: Option<&str>, chance: Option<f64>) -> String {
    let protocol = protocol.unwrap_or(DEFAULT_PROTOCOL);
    let needs_no_suffix =
        protocol == DEFAULT_PROTOCOL || (chance.is_none() && protocol == "llm-pruner");
    if needs_no_suffix {
        format!("{task}.{metric}")
    } else {
        format!("{task}.{metric} ({protocol})")
    }
}

/// Reads the sizes before the first pruning and after the last, and the shares that all prunings
/// together removed.
fn read_sizes(path: &Path) -> Result<BTreeMap<&'static str, AnyValue<'static>>, ReportError> {
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    // One row per `prune` stage, in the order of the pipeline.
    let prunings = read_parquet(path, None)?;
    let mut sizes = BTreeMap::new();
    for name in SIZE_COLUMNS {
        let row = if name.ends_with("_before") {
            0
        } else {
            prunings.height() - 1
        };
        sizes.insert(name, prunings.column(name)?.get(row)?.into_static());
    }
    if let (AnyValue::UInt64(before), AnyValue::UInt64(after)) =
        (&sizes["params_before"], &sizes["params_after"])
    {
        let removed = 1.0 - *after as f64 / *before as f64;
        sizes.insert("param_ratio", AnyValue::Float64(removed));
    }
    // Each pruning removes the share r of the units that the ones before it left, so all together
    // remove 1 − Π (1 − r). With one row the stored value stays, to the bit.
    let remaining: f64 = prunings
        .column("group_ratio")?
        .f64()?
        .iter()
        .flatten()
        .map(|removed| 1.0 - removed)
        .product();
    if prunings.height() > 1 {
        sizes.insert("group_ratio", AnyValue::Float64(1.0 - remaining));
    }
    Ok(sizes)
}
