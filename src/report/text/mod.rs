//! The tables of a sweep as text. `layout` distributes columns over blocks that fit the width and
//! aligns them, `columns` and `metric` fill them, `failures` lists what went wrong, and
//! `generations` shows what the variants wrote, `profile` their speed and memory.

mod columns;
mod failures;
mod generations;
mod layout;
mod metric;
mod profile;

use std::collections::BTreeMap;

use polars::prelude::*;

use self::columns::{HeaderRow, name_column, option_columns, size_classes, size_columns};
use self::failures::format_failures;
use self::generations::format_generations;
use self::layout::{ColumnGroup, RowNames, format_blocks, keep_end};
use self::metric::{MetricColumns, Shown};
pub(crate) use self::profile::format_profiles;
use super::error::ReportError;
use crate::progress::wrap_lines;

/// The characters of the shortest name: `…` and the hash at the end of an id.
const SHORTEST_NAME: usize = 9;

/// The sweep as text in lines of at most `width` characters: a table with the dense model and
/// chance in its first rows and one row per variant, the variants of earlier states of the
/// pipeline, a legend, the variants that failed, and generated texts.
///
/// The best value among variants of one size is marked, and so is a value that guessing could have
/// given. A line is longer than `width` only where an id, which is never split, needs it.
pub(crate) fn format_sweep(
    variants: &DataFrame,
    generations: Option<&DataFrame>,
    width: usize,
) -> Result<String, ReportError> {
    if variants.height() == 0 {
        return Ok("no variants\n".to_owned());
    }
    let names = VariantNames::read(variants)?;
    let (current, earlier) = split_current(variants)?;
    let mut shown = Shown::default();
    let mut text = String::new();
    if current.height() > 0 {
        text.push_str(&format_section(&current, &names, width, &mut shown)?);
    }
    if earlier.height() > 0 {
        text.push_str("\nof earlier states of the pipeline:\n\n");
        text.push_str(&format_section(&earlier, &names, width, &mut shown)?);
    }
    text.push_str(&format_legend(shown, width));
    text.push_str(&format_failures(variants, width)?);
    if let Some(generations) = generations {
        text.push_str(&format_generations(generations, &names, width)?);
    }
    Ok(text)
}

/// The variants of the present state of the pipeline, and those of earlier ones: the column
/// `current` tells them apart.
fn split_current(variants: &DataFrame) -> Result<(DataFrame, DataFrame), PolarsError> {
    let Ok(column) = variants.column("current") else {
        return Ok((variants.clone(), variants.clear()));
    };
    let is_earlier = |current: Option<bool>| current == Some(false);
    let is_earlier: BooleanChunked = column.bool()?.iter().map(is_earlier).collect();
    Ok((
        variants.filter(&!&is_earlier)?,
        variants.filter(&is_earlier)?,
    ))
}

/// The short name of each variant: its id without the hash at its end, where that is enough to tell
/// it from the others.
pub(crate) struct VariantNames {
    short_by_id: BTreeMap<String, String>,
}

impl VariantNames {
    fn read(variants: &DataFrame) -> Result<Self, PolarsError> {
        let ids: Vec<&str> = variants
            .column("variant")?
            .str()?
            .iter()
            .flatten()
            .collect();
        let short = |id: &str| match id.rsplit_once('-') {
            Some((prefix, hash)) if hash.len() == 8 => prefix.to_owned(),
            _ => id.to_owned(),
        };
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for id in &ids {
            *counts.entry(short(id)).or_default() += 1;
        }
        let name = |id: &&str| {
            let short = short(id);
            let is_unique = counts[&short] == 1;
            (
                id.to_string(),
                if is_unique { short } else { id.to_string() },
            )
        };
        Ok(Self {
            short_by_id: ids.iter().map(name).collect(),
        })
    }

    pub(crate) fn short<'a>(&'a self, id: &'a str) -> &'a str {
        self.short_by_id.get(id).map_or(id, String::as_str)
    }

    /// The short name, or the end of the id if that name has more than `room` characters.
    pub(crate) fn fitting(&self, id: &str, room: usize) -> String {
        let short = self.short(id);
        if short.chars().count() <= room {
            short.to_owned()
        } else {
            keep_end(id, room.max(SHORTEST_NAME))
        }
    }
}

/// The table of some variants. Adds to `shown` what it shows.
fn format_section(
    variants: &DataFrame,
    names: &VariantNames,
    width: usize,
    shown: &mut Shown,
) -> Result<String, PolarsError> {
    let ids: Vec<&str> = variants
        .column("variant")?
        .str()?
        .iter()
        .flatten()
        .collect();
    let full: Vec<String> = ids.iter().map(|id| id.to_string()).collect();
    let metrics = read_metrics(variants)?;
    for metric in &metrics {
        shown.add(metric.shown());
    }
    let metrics: Vec<ColumnGroup> = metrics.iter().map(MetricColumns::to_group).collect();
    let widest_metric = metrics.iter().map(ColumnGroup::width_with_gap).max();
    let room = width.saturating_sub(widest_metric.unwrap_or_default());
    let short: Vec<String> = ids.iter().map(|id| names.fitting(id, room)).collect();
    let rows = RowNames {
        full: name_column(&full),
        short: name_column(&short),
        header_count: HeaderRow::ALL.len(),
    };
    let mut descriptions = option_columns(variants)?;
    descriptions.extend(size_columns(variants)?);
    Ok(format_blocks(rows, descriptions, &metrics, width))
}

/// Every metric of the table that any of its variants has: a column with a second one called
/// `<name>.delta`.
fn read_metrics(variants: &DataFrame) -> Result<Vec<MetricColumns>, PolarsError> {
    let size_classes = size_classes(variants)?;
    let mut metrics = Vec::new();
    for name in variants.get_column_names() {
        if variants.column(&format!("{name}.delta")).is_ok() {
            let metric = MetricColumns::read(variants, name, &size_classes)?;
            if metric.has_any_value() {
                metrics.push(metric);
            }
        }
    }
    Ok(metrics)
}

/// Explains the marks and the columns that the table has, a line for each.
fn format_legend(shown: Shown, width: usize) -> String {
    let mut lines = Vec::new();
    if shown.best_mark {
        lines.push("* the best of the variants with equal params".to_owned());
    }
    if shown.chance_mark {
        let guess = if shown.majority {
            "the larger of chance and majority"
        } else {
            "chance"
        };
        lines.push(format!("~ not above {guess} by two standard errors"));
    }
    if shown.pruned {
        lines.push("pruned, final: before and after recovery".to_owned());
    }
    if shown.difference {
        let points = if shown.difference_in_points {
            " (of % in points)"
        } else {
            ""
        };
        let stderr = if shown.difference_stderr {
            ", ± its paired standard error"
        } else {
            ""
        };
        lines.push(format!("difference: final minus dense{points}{stderr}"));
    }
    let mut legend = String::new();
    for line in &lines {
        legend.push_str(&wrap_lines(line, width, "  "));
        legend.push('\n');
    }
    if legend.is_empty() {
        legend
    } else {
        format!("\n{legend}")
    }
}
