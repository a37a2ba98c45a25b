//! One metric as a group of columns of the printed table.

use polars::prelude::*;

use super::columns::{HeaderRow, NO_VALUE, common_value, numeric_column};
use super::layout::{ColumnGroup, TextColumn};

/// Printed before the best value among the variants of one size.
const BEST_MARK: &str = "*";

/// Printed before a value that guessing could have given.
const CHANCE_MARK: &str = "~";

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
    dense: Vec<Option<f64>>,
    dense_stderr: Vec<Option<f64>>,
    pruned: Vec<Option<f64>>,
    delta: Vec<Option<f64>>,
    delta_stderr: Vec<Option<f64>>,
    chance: Vec<Option<f64>>,
    majority: Vec<Option<f64>>,
    /// Whether the variant has the best value of its size.
    is_best: Vec<bool>,
}

/// What a table shows of its metrics, and the legend explains.
#[derive(Clone, Copy, Default)]
pub(crate) struct Shown {
    pub(crate) best_mark: bool,
    pub(crate) chance_mark: bool,
    pub(crate) majority: bool,
    pub(crate) pruned: bool,
    pub(crate) difference: bool,
    pub(crate) difference_in_points: bool,
    pub(crate) difference_stderr: bool,
}

impl Shown {
    /// Adds what another metric shows.
    pub(crate) fn add(&mut self, other: Shown) {
        self.best_mark |= other.best_mark;
        self.chance_mark |= other.chance_mark;
        self.majority |= other.majority;
        self.pruned |= other.pruned;
        self.difference |= other.difference;
        self.difference_in_points |= other.difference_in_points;
        self.difference_stderr |= other.difference_stderr;
    }
}

impl MetricColumns {
    /// Reads a metric. `size_classes` are the sizes of the variants: the best value is that among
    /// variants of one size.
    pub(crate) fn read(
        table: &DataFrame,
        name: &str,
        size_classes: &[Option<(u64, i64)>],
    ) -> Result<Self, PolarsError> {
        let column = |suffix: &str| numeric_column(table, &format!("{name}{suffix}"));
        // Tables of earlier versions lack some columns.
        let column_or_nulls = |suffix: &str| {
            if table.column(&format!("{name}{suffix}")).is_ok() {
                column(suffix)
            } else {
                Ok(vec![None; table.height()])
            }
        };
        let value = column("")?;
        Ok(Self {
            is_best: find_best(&value, size_classes, lower_is_better(name)),
            value,
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

    /// Whether any variant has a value of the metric, of any of its models.
    pub(crate) fn has_any_value(&self) -> bool {
        let values = [&self.value, &self.dense, &self.pruned];
        values.into_iter().flatten().any(Option::is_some)
    }

    pub(crate) fn shown(&self) -> Shown {
        let has_any = |values: &[Option<f64>]| values.iter().any(Option::is_some);
        let has_chance_mark =
            |row: usize| self.value[row].is_some_and(|value| self.is_chance(row, value));
        let mut rows = 0..self.value.len();
        Shown {
            best_mark: self.is_best.contains(&true),
            chance_mark: rows.any(has_chance_mark) || self.is_dense_chance(),
            majority: has_any(&self.majority),
            pruned: has_any(&self.pruned),
            difference: has_any(&self.delta),
            difference_in_points: has_any(&self.delta) && !lower_is_better(&self.name),
            difference_stderr: has_any(&self.delta_stderr),
        }
    }

    /// The columns `pruned`, `final` and `difference`, as far as any variant has them. The dense
    /// model is a row if all variants have it in common, else a column.
    pub(crate) fn to_group(&self) -> ColumnGroup {
        let shown = self.shown();
        let final_cells = (0..self.value.len()).map(|row| self.final_cell(row));
        let is_dense_common = common_value(&self.dense).is_some();
        let mut columns = Vec::new();
        if !is_dense_common && self.dense.iter().any(Option::is_some) {
            columns.push(self.column("dense", self.format_values(&self.dense)));
        }
        if shown.pruned {
            columns.push(self.column("pruned", self.format_values(&self.pruned)));
        }
        let header = HeaderRow::ALL.map(|row| self.header_cell(row));
        let cells = header.into_iter().chain(final_cells).collect();
        columns.push(TextColumn::new("final", cells, true));
        if shown.difference {
            columns.push(self.column("difference", self.format_differences()));
        }
        let unit = if lower_is_better(&self.name) {
            ""
        } else {
            ", %"
        };
        ColumnGroup {
            title: Some(format!("{}{unit}", self.name)),
            columns,
        }
    }

    /// A column without cells in the header rows.
    fn column(&self, title: &str, cells: Vec<String>) -> TextColumn {
        let header = HeaderRow::ALL.map(|_| String::new());
        TextColumn::new(title, header.into_iter().chain(cells).collect(), true)
    }

    fn header_cell(&self, row: HeaderRow) -> String {
        let value = match row {
            HeaderRow::Dense => common_value(&self.dense),
            HeaderRow::Chance => common_value(&self.chance),
            HeaderRow::Majority => common_value(&self.majority),
        };
        let is_chance = matches!(row, HeaderRow::Dense) && self.is_dense_chance();
        let mark = if is_chance { CHANCE_MARK } else { "" };
        value.map_or_else(String::new, |value| {
            format!("{mark}{}", self.format_value(value))
        })
    }

    fn final_cell(&self, row: usize) -> String {
        let Some(value) = self.value[row] else {
            return NO_VALUE.to_owned();
        };
        let best = if self.is_best[row] { BEST_MARK } else { "" };
        let chance = if self.is_chance(row, value) {
            CHANCE_MARK
        } else {
            ""
        };
        format!("{best}{chance}{}", self.format_value(value))
    }

    /// Whether a value of the variant in this row exceeds chance, and the share of the most
    /// frequent answer, by at most two of its standard errors, which is about the 95 % interval of
    /// a normal distribution.
    fn is_chance(&self, row: usize, value: f64) -> bool {
        let guess = [self.chance[row], self.majority[row]];
        let guess = guess.into_iter().flatten().reduce(f64::max);
        guess.is_some_and(|guess| value <= guess + 2.0 * self.stderr[row].unwrap_or(0.0))
    }

    /// The same for the common dense model.
    fn is_dense_chance(&self) -> bool {
        let guesses = [common_value(&self.chance), common_value(&self.majority)];
        let guess = guesses.into_iter().flatten().reduce(f64::max);
        let stderr = self.dense_stderr.iter().flatten().next().copied();
        match (common_value(&self.dense), guess) {
            (Some(dense), Some(guess)) => dense <= guess + 2.0 * stderr.unwrap_or(0.0),
            _ => false,
        }
    }

    /// Accuracies in percent.
    fn scale(&self) -> f64 {
        if lower_is_better(&self.name) {
            1.0
        } else {
            100.0
        }
    }

    /// The decimals of every number of the metric: fewer for large perplexities.
    fn digits(&self) -> usize {
        if !lower_is_better(&self.name) {
            return 1;
        }
        let values = [&self.value, &self.dense, &self.pruned];
        let largest = values.into_iter().flatten().flatten().copied();
        match largest.fold(0.0, f64::max) {
            value if value < 100.0 => 3,
            value if value < 1000.0 => 2,
            value if value < 10_000.0 => 1,
            _ => 0,
        }
    }

    fn format_value(&self, value: f64) -> String {
        format!("{:.*}", self.digits(), self.scale() * value)
    }

    fn format_values(&self, values: &[Option<f64>]) -> Vec<String> {
        let format = |value: &Option<f64>| value.map(|value| self.format_value(value));
        values
            .iter()
            .map(|value| format(value).unwrap_or_default())
            .collect()
    }

    /// `delta ±standard error` for each variant, padded so that the digits are aligned.
    fn format_differences(&self) -> Vec<String> {
        let (digits, scale) = (self.digits(), self.scale());
        let stderrs: Vec<Option<String>> = self
            .delta_stderr
            .iter()
            .map(|stderr| stderr.map(|stderr| format!(" ±{:.digits$}", scale * stderr)))
            .collect();
        let widths = stderrs.iter().flatten().map(|text| text.chars().count());
        let stderr_width = widths.max().unwrap_or(0);
        let format = |(delta, stderr): (&Option<f64>, Option<String>)| {
            let stderr = stderr.unwrap_or_default();
            // Rounded first: a small negative number would be printed as -0.0.
            let unit = 10f64.powi(digits as i32);
            let rounded = |delta: f64| (scale * delta * unit).round() / unit + 0.0;
            delta.map(|delta| format!("{:+.digits$}{stderr:<stderr_width$}", rounded(delta)))
        };
        let pairs = self.delta.iter().zip(stderrs);
        pairs.map(|pair| format(pair).unwrap_or_default()).collect()
    }
}

/// Which variants have the best value among those of their size. None where a single variant has a
/// value, or all have the same.
fn find_best(
    values: &[Option<f64>],
    size_classes: &[Option<(u64, i64)>],
    lower_is_better: bool,
) -> Vec<bool> {
    let is_best = |row: usize| {
        let rows = 0..values.len();
        let same_size = rows.filter(|&other| size_classes[other] == size_classes[row]);
        let rivals: Vec<f64> = same_size.filter_map(|other| values[other]).collect();
        let is_worse = |rival: &&f64| {
            if lower_is_better {
                Some(**rival) > values[row]
            } else {
                Some(**rival) < values[row]
            }
        };
        let is_not_better = |rival: &f64| Some(*rival) == values[row] || is_worse(&rival);
        values[row].is_some()
            && rivals.iter().all(is_not_better)
            && rivals.iter().any(|rival| is_worse(&rival))
    };
    (0..values.len()).map(is_best).collect()
}

/// Whether a smaller value of `task.metric` or `task.metric (protocol)` is the better one.
fn lower_is_better(name: &str) -> bool {
    let without_protocol = name.split_once(" (").map_or(name, |(name, _)| name);
    let metric = without_protocol.rsplit_once('.');
    LOWER_IS_BETTER.contains(&metric.map_or(without_protocol, |(_, metric)| metric))
}
