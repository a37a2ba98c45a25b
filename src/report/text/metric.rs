//! One metric as a column of the printed table.

use polars::prelude::*;

use super::columns::numeric_column;
use super::layout::{HeaderRows, TextColumn};

/// Printed before a value that guessing could have given.
pub(crate) const CHANCE_MARK: &str = "~ ";

/// Metrics where a smaller value is the better one.
const LOWER_IS_BETTER: [&str; 4] = [
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
];

/// The columns that `variants.parquet` has of one metric, one value per variant.
pub(crate) struct MetricColumns {
    name: String,
    value: Vec<Option<f64>>,
    stderr: Vec<Option<f64>>,
    pub(crate) dense: Vec<Option<f64>>,
    dense_stderr: Vec<Option<f64>>,
    pub(crate) pruned: Vec<Option<f64>>,
    delta: Vec<Option<f64>>,
    pub(crate) delta_stderr: Vec<Option<f64>>,
    chance: Vec<Option<f64>>,
    pub(crate) majority: Vec<Option<f64>>,
}

impl MetricColumns {
    pub(crate) fn read(table: &DataFrame, name: &str) -> Result<Self, PolarsError> {
        let column = |suffix: &str| numeric_column(table, &format!("{name}{suffix}"));
        // Tables of earlier versions lack some columns.
        let column_or_nulls = |suffix: &str| {
            if table.column(&format!("{name}{suffix}")).is_ok() {
                column(suffix)
            } else {
                Ok(vec![None; table.height()])
            }
        };
        Ok(Self {
            value: column("")?,
            stderr: column(".stderr")?,
            dense: column(".dense")?,
            dense_stderr: column_or_nulls(".dense_stderr")?,
            pruned: column(".pruned")?,
            delta: column(".delta")?,
            delta_stderr: column_or_nulls(".delta_stderr")?,
            chance: column_or_nulls(".chance")?,
            majority: column_or_nulls(".majority")?,
            name: name.to_owned(),
        })
    }

    /// The chance that all variants have in common.
    pub(crate) fn common_chance(&self) -> Option<f64> {
        let first = self.chance.iter().flatten().next().copied();
        first.filter(|_| are_all_equal(&self.chance))
    }

    /// The majority share that all variants have in common.
    pub(crate) fn common_majority(&self) -> Option<f64> {
        let first = self.majority.iter().flatten().next().copied();
        first.filter(|_| are_all_equal(&self.majority))
    }

    /// The metric without the task before it and the protocol after it, `task.metric (protocol)`.
    fn metric(&self) -> &str {
        let column = self.name.as_str();
        let without_protocol = column.split_once(" (").map_or(column, |(name, _)| name);
        without_protocol
            .rsplit_once('.')
            .map_or(without_protocol, |(_, metric)| metric)
    }

    fn lower_is_better(&self) -> bool {
        LOWER_IS_BETTER.contains(&self.metric())
    }

    fn best_value(&self) -> Option<f64> {
        let values = self.value.iter().flatten().copied();
        if self.lower_is_better() {
            values.reduce(f64::min)
        } else {
            values.reduce(f64::max)
        }
    }

    /// Perplexities as numbers, accuracies in percent.
    fn format_value(&self, value: f64) -> String {
        if self.lower_is_better() {
            format!("{value:.3}")
        } else {
            format!("{:.1} %", 100.0 * value)
        }
    }

    /// ` (delta ±standard error)` for each variant, padded so that the digits are aligned.
    fn format_differences(&self) -> Vec<String> {
        let (scale, digits) = if self.lower_is_better() {
            (1.0, 3)
        } else {
            (100.0, 1)
        };
        let format_delta = |delta: f64| format!("{:+.digits$}", scale * delta);
        let format_stderr = |stderr: f64| format!(" ±{:.digits$}", scale * stderr);
        let deltas: Vec<Option<String>> = map_values(&self.delta, format_delta);
        let stderrs: Vec<Option<String>> = map_values(&self.delta_stderr, format_stderr);
        let delta_width = max_width(&deltas);
        let stderr_width = max_width(&stderrs);
        let brackets: Vec<Option<String>> = deltas
            .iter()
            .zip(&stderrs)
            .map(|(delta, stderr)| {
                let delta = delta.as_ref()?;
                let stderr = match stderr {
                    Some(stderr) => format!("{stderr:>stderr_width$}"),
                    None => String::new(),
                };
                Some(format!(" ({delta:>delta_width$}{stderr})"))
            })
            .collect();
        let width = max_width(&brackets);
        brackets
            .into_iter()
            .map(|bracket| format!("{:<width$}", bracket.unwrap_or_default()))
            .collect()
    }

    pub(crate) fn to_text_column(&self, header: HeaderRows) -> TextColumn {
        let differences = self.format_differences();
        let best = self.best_value();
        let cells = (0..self.value.len())
            .map(|row| self.variant_cell(row, best, &differences[row]))
            .collect();
        let bracket_width = max_width_of(&differences);
        TextColumn::new(
            &self.name,
            self.header_cells(header, bracket_width),
            cells,
            true,
        )
    }

    /// `pruned → * ~ value (difference)`, without the parts that the variant does not have.
    fn variant_cell(&self, row: usize, best: Option<f64>, difference: &str) -> String {
        let pruned = match self.pruned[row] {
            Some(pruned) => self.format_value(pruned) + " → ",
            None => String::new(),
        };
        let Some(value) = self.value[row] else {
            return pruned + "–";
        };
        let best_mark = if Some(value) == best { "* " } else { "" };
        let baseline = larger(self.chance[row], self.majority[row]);
        let chance_mark = chance_mark(value, self.stderr[row], baseline);
        let value = self.format_value(value);
        format!("{pruned}{best_mark}{chance_mark}{value}{difference}")
    }

    /// The cells of the dense model, of chance and of the majority share. They have no bracket:
    /// spaces in its place put their numbers above those of the variants.
    fn header_cells(&self, header: HeaderRows, bracket_width: usize) -> Vec<String> {
        let padding = " ".repeat(bracket_width);
        let format_padded = |value: f64| self.format_value(value) + &padding;
        let (chance, majority) = (self.common_chance(), self.common_majority());
        let dense = self
            .dense
            .iter()
            .zip(&self.dense_stderr)
            .find_map(|(value, stderr)| value.map(|value| (value, *stderr)));
        let dense_cell = dense.map(|(value, stderr)| {
            let baseline = larger(chance, majority);
            chance_mark(value, stderr, baseline).to_owned() + &format_padded(value)
        });
        header.select_cells([
            dense_cell.unwrap_or_default(),
            chance.map(format_padded).unwrap_or_default(),
            majority.map(format_padded).unwrap_or_default(),
        ])
    }
}

/// Whether all values that are not null are the same.
pub(crate) fn are_all_equal(values: &[Option<f64>]) -> bool {
    let mut present = values.iter().flatten();
    match present.next() {
        Some(first) => present.all(|value| value == first),
        None => true,
    }
}

/// The larger of chance and the majority share.
fn larger(chance: Option<f64>, majority: Option<f64>) -> Option<f64> {
    chance.into_iter().chain(majority).reduce(f64::max)
}

/// The mark of a value that exceeds the baseline (chance or the majority share) by at most two of
/// its standard errors, which is about the 95 % interval of a normal distribution.
fn chance_mark(value: f64, stderr: Option<f64>, baseline: Option<f64>) -> &'static str {
    match baseline {
        Some(baseline) if value <= baseline + 2.0 * stderr.unwrap_or(0.0) => CHANCE_MARK,
        _ => "",
    }
}

fn map_values(values: &[Option<f64>], format: impl Fn(f64) -> String) -> Vec<Option<String>> {
    values.iter().map(|value| value.map(&format)).collect()
}

fn max_width(texts: &[Option<String>]) -> usize {
    max_width_of(texts.iter().flatten())
}

fn max_width_of<'a>(texts: impl IntoIterator<Item = &'a String>) -> usize {
    let widths = texts.into_iter().map(|text| text.chars().count());
    widths.max().unwrap_or(0)
}
