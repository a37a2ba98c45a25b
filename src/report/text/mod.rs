//! The tables of a sweep as text. `layout` aligns columns, `columns` and `metric` fill them,
//! `generations` shows what the variants wrote, `profile` their speed and memory.

mod columns;
mod generations;
mod layout;
mod metric;
mod profile;

use polars::prelude::*;

use self::columns::{option_columns, size_columns, text_column};
use self::generations::format_generations;
use self::layout::{HeaderRows, TextColumn, format_table};
use self::metric::{CHANCE_MARK, MetricColumns, are_all_equal};
pub(crate) use self::profile::format_profiles;
use super::error::ReportError;

/// The sweep as text: a table with the dense model, chance and majority in its first rows and one
/// row per variant, a legend, the variants that failed, and generated texts.
///
/// The best value of each metric is marked, and so is a value that guessing could have given.
pub(crate) fn format_sweep(
    variants: &DataFrame,
    generations: Option<&DataFrame>,
) -> Result<String, ReportError> {
    let metrics = read_metrics(variants)?;
    let header = HeaderRows {
        // Variants of different dense models have no common row for it.
        has_dense: has_any_dense(&metrics)
            && metrics.iter().all(|metric| are_all_equal(&metric.dense)),
        has_chance: metrics
            .iter()
            .any(|metric| metric.common_chance().is_some()),
        has_majority: metrics
            .iter()
            .any(|metric| metric.common_majority().is_some()),
    };
    let mut columns = option_columns(variants, header)?;
    columns.extend(size_columns(variants, header)?);
    columns.extend(metrics.iter().map(|metric| metric.to_text_column(header)));
    let mut text = format_table(&columns);
    text.push_str(&format_legend(&metrics, &columns));
    text.push_str(&format_failures(variants)?);
    if let Some(generations) = generations {
        text.push_str(&format_generations(generations)?);
    }
    Ok(text)
}

/// Every metric of the table: a column with a second one called `<name>.delta`.
fn read_metrics(variants: &DataFrame) -> Result<Vec<MetricColumns>, PolarsError> {
    let mut metrics = Vec::new();
    for name in variants.get_column_names() {
        if variants.column(&format!("{name}.delta")).is_ok() {
            metrics.push(MetricColumns::read(variants, name)?);
        }
    }
    Ok(metrics)
}

fn has_any_dense(metrics: &[MetricColumns]) -> bool {
    let mut dense_values = metrics.iter().flat_map(|metric| &metric.dense);
    dense_values.any(Option::is_some)
}

/// Explains the marks that the table has.
fn format_legend(metrics: &[MetricColumns], columns: &[TextColumn]) -> String {
    let has_any = |values: fn(&MetricColumns) -> &[Option<f64>]| {
        metrics
            .iter()
            .any(|metric| values(metric).iter().any(Option::is_some))
    };
    let has_chance_mark = columns
        .iter()
        .filter(|column| column.is_numeric)
        .flat_map(|column| &column.cells)
        .any(|cell| cell.contains(CHANCE_MARK));
    let mut legend = "\n* the best of its column".to_owned();
    if has_any_dense(metrics) {
        legend.push_str("; in brackets the difference to the dense model");
    }
    if has_any(|metric| &metric.delta_stderr) {
        legend.push_str(", ± its paired standard error");
    }
    if has_any(|metric| &metric.pruned) {
        legend.push_str("; → from pruned to recovered");
    }
    if has_chance_mark {
        let baseline = match has_any(|metric| &metric.majority) {
            true => "the larger of chance and majority",
            false => "chance",
        };
        legend.push_str(&format!("; ~ not above {baseline} by two standard errors"));
    }
    legend + "\n"
}

/// Variants with the same status and error.
struct FailureGroup<'a> {
    status: String,
    error: &'a str,
    variants: Vec<&'a str>,
}

/// The variants that have an error, one paragraph per status and error.
fn format_failures(table: &DataFrame) -> Result<String, PolarsError> {
    let ids = table.column("variant")?.str()?;
    let errors = table.column("error")?.str()?;
    let mut groups: Vec<FailureGroup<'_>> = Vec::new();
    for (row, status) in text_column(table, "status")?.into_iter().enumerate() {
        let (Some(id), Some(error)) = (ids.get(row), errors.get(row)) else {
            continue;
        };
        let same = |group: &&mut FailureGroup<'_>| group.status == status && group.error == error;
        match groups.iter_mut().find(same) {
            Some(group) => group.variants.push(id),
            None => groups.push(FailureGroup {
                status,
                error,
                variants: vec![id],
            }),
        }
    }
    let paragraph = |group: &FailureGroup<'_>| {
        let variants = group.variants.join(", ");
        format!("\n{}: {variants}: {}\n", group.status, group.error)
    };
    Ok(groups.iter().map(paragraph).collect())
}
