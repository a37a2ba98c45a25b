//! The table of a sweep as text: the dense model and chance first, then a line for each variant, differences to dense beside
//! the numbers, the best of each column marked, and what guessing could have given.

use polars::prelude::*;
use serde_json::{Map, Value};

use super::{ReportError, generations};

/// Stands before a value that guessing could have given.
const CHANCE_MARK: &str = "~ ";

/// A column of the printed table.
struct TextColumn {
    title: String,
    cells: Vec<String>,
    /// Numbers lean to the right.
    is_numeric: bool,
}

/// The lines above those of the variants.
#[derive(Clone, Copy)]
struct HeaderRows {
    has_dense: bool,
    has_chance: bool,
}

/// A metric's columns.
struct MetricColumns {
    name: String,
    value: Vec<Option<f64>>,
    stderr: Vec<Option<f64>>,
    dense: Vec<Option<f64>>,
    dense_stderr: Vec<Option<f64>>,
    pruned: Vec<Option<f64>>,
    delta: Vec<Option<f64>>,
    delta_stderr: Vec<Option<f64>>,
    chance: Vec<Option<f64>>,
}

/// The frames as lines; `generations`: what was written, where anything was.
pub fn format_sweep(
    frame: &DataFrame,
    generations: Option<&DataFrame>,
) -> Result<String, ReportError> {
    let names: Vec<String> = frame
        .get_column_names()
        .iter()
        .map(|name| name.to_string())
        .collect();
    let metrics = names
        .iter()
        .filter(|name| names.contains(&format!("{name}.delta")));
    let metrics = metrics
        .map(|name| MetricColumns::read(frame, name))
        .collect::<Result<Vec<_>, _>>()?;
    let is_compared = metrics
        .iter()
        .any(|metric| metric.dense.iter().any(Option::is_some));
    let above = HeaderRows {
        // Variants of several models have no dense line in common.
        has_dense: is_compared && metrics.iter().all(|metric| are_all_equal(&metric.dense)),
        has_chance: metrics
            .iter()
            .any(|metric| metric.common_chance().is_some()),
    };
    let mut columns = option_columns(frame, &names, above)?;
    columns.extend(size_columns(frame, above)?);
    columns.extend(metrics.iter().map(|metric| metric.to_text_column(above)));

    let mut text = format_table(&columns) + "\n* the best of its column";
    let is_any = |of: fn(&MetricColumns) -> bool| metrics.iter().any(of);
    if is_compared {
        text.push_str("; in brackets the difference to the dense model");
    }
    if is_any(|metric| metric.delta_stderr.iter().any(Option::is_some)) {
        text.push_str(", ± its paired standard error");
    }
    if is_any(|metric| metric.pruned.iter().any(Option::is_some)) {
        text.push_str("; → from pruned to recovered");
    }
    if columns.iter().any(|column| {
        column.is_numeric && column.cells.iter().any(|cell| cell.contains(CHANCE_MARK))
    }) {
        text.push_str("; ~ not above chance by two standard errors");
    }
    text.push('\n');
    text.push_str(&failures(frame)?);
    if let Some(generations) = generations {
        text.push_str(&generations::format_generations(generations)?);
    }
    Ok(text)
}

impl MetricColumns {
    fn read(frame: &DataFrame, name: &str) -> Result<Self, PolarsError> {
        let column = |ending: &str| numeric_column(frame, &format!("{name}{ending}"));
        // tables of earlier versions have not all of them
        let newer = |ending: &str| match frame.column(&format!("{name}{ending}")) {
            Ok(_) => column(ending),
            Err(_) => Ok(vec![None; frame.height()]),
        };
        Ok(Self {
            value: column("")?,
            stderr: column(".stderr")?,
            dense: column(".dense")?,
            dense_stderr: newer(".dense_stderr")?,
            pruned: column(".pruned")?,
            delta: column(".delta")?,
            delta_stderr: newer(".delta_stderr")?,
            chance: newer(".chance")?,
            name: name.to_owned(),
        })
    }

    fn lower_is_better(&self) -> bool {
        let metric = self
            .name
            .split(" (")
            .next()
            .unwrap_or_default()
            .rsplit('.')
            .next()
            .unwrap_or_default();
        [
            "perplexity",
            "word_perplexity",
            "byte_perplexity",
            "bits_per_byte",
        ]
        .contains(&metric)
    }

    /// The chance of all variants, if it is one.
    fn common_chance(&self) -> Option<f64> {
        self.chance
            .iter()
            .flatten()
            .next()
            .copied()
            .filter(|_| are_all_equal(&self.chance))
    }

    fn format_value(&self, value: f64) -> String {
        if self.lower_is_better() {
            format!("{value:.3}")
        } else {
            format!("{:.1} %", 100.0 * value)
        }
    }

    /// The differences in brackets, digits below digits.
    fn format_differences(&self) -> Vec<String> {
        let (scale, digits) = if self.lower_is_better() {
            (1.0, 3)
        } else {
            (100.0, 1)
        };
        let widest = |texts: &[Option<String>]| {
            texts
                .iter()
                .flatten()
                .map(|text| text.chars().count())
                .max()
                .unwrap_or(0)
        };
        let deltas: Vec<Option<String>> = self
            .delta
            .iter()
            .map(|delta| delta.map(|d| format!("{:+.digits$}", scale * d)))
            .collect();
        let errors: Vec<Option<String>> = self
            .delta_stderr
            .iter()
            .map(|error| error.map(|e| format!(" ±{:.digits$}", scale * e)))
            .collect();
        let (delta_width, error_width) = (widest(&deltas), widest(&errors));
        let bracket = |(delta, error): (&Option<String>, &Option<String>)| {
            let delta = delta.as_ref()?;
            let error = error
                .as_ref()
                .map_or_else(String::new, |error| format!("{error:>error_width$}"));
            Some(format!(" ({delta:>delta_width$}{error})"))
        };
        let brackets: Vec<Option<String>> = deltas.iter().zip(&errors).map(bracket).collect();
        let width = widest(&brackets);
        brackets
            .into_iter()
            .map(|bracket| format!("{:<width$}", bracket.unwrap_or_default()))
            .collect()
    }

    fn to_text_column(&self, above: HeaderRows) -> TextColumn {
        let lower_is_better = self.lower_is_better();
        let best = self
            .value
            .iter()
            .flatten()
            .copied()
            .reduce(|a, b| if (a < b) == lower_is_better { a } else { b });
        let brackets = self.format_differences();
        let cell = |row: usize| {
            let before =
                self.pruned[row].map_or_else(String::new, |value| self.format_value(value) + " → ");
            let value = self.value[row].map(|value| {
                let mark = if Some(value) == best { "* " } else { "" };
                let guess = chance_mark(value, self.stderr[row], self.chance[row]);
                format!("{mark}{guess}{}{}", self.format_value(value), brackets[row])
            });
            before + &value.unwrap_or_else(|| "–".to_owned())
        };
        // without a bracket, but above the numbers
        let beside = brackets
            .first()
            .map_or(0, |bracket| bracket.chars().count());
        let on_top = |value: f64| self.format_value(value) + &" ".repeat(beside);
        let chance = self.common_chance();
        let dense = self
            .dense
            .iter()
            .zip(&self.dense_stderr)
            .find_map(|(value, stderr)| Some(((*value)?, *stderr)));
        let dense = dense
            .map(|(value, stderr)| chance_mark(value, stderr, chance).to_owned() + &on_top(value));
        let first = above.select_cells(
            dense.unwrap_or_default(),
            chance.map(on_top).unwrap_or_default(),
        );
        new_text_column(
            &self.name,
            first,
            (0..self.value.len()).map(cell).collect(),
            true,
        )
    }
}

impl HeaderRows {
    fn select_cells(self, dense: String, chance: String) -> Vec<String> {
        [(self.has_dense, dense), (self.has_chance, chance)]
            .into_iter()
            .filter_map(|(is_there, cell)| is_there.then_some(cell))
            .collect()
    }
}

/// Whether all that are there are the same.
fn are_all_equal(values: &[Option<f64>]) -> bool {
    let mut known = values.iter().flatten();
    known
        .next()
        .is_none_or(|first| known.all(|value| value == first))
}

/// The mark of a value that does not exceed chance by more than two of its standard errors.
fn chance_mark(value: f64, stderr: Option<f64>, chance: Option<f64>) -> &'static str {
    match chance {
        Some(chance) if value <= chance + 2.0 * stderr.unwrap_or(0.0) => CHANCE_MARK,
        _ => "",
    }
}

/// The variants' names, and what the sweep decided for each.
fn option_columns(
    frame: &DataFrame,
    names: &[String],
    above: HeaderRows,
) -> Result<Vec<TextColumn>, PolarsError> {
    let first = above.select_cells("dense".to_owned(), "chance".to_owned());
    let mut columns = vec![new_text_column(
        "variant",
        first,
        strings(frame, "variant")?,
        false,
    )];
    for key in names.iter().skip(1).take_while(|name| *name != "status") {
        let title = key
            .split_once('.')
            .map_or(key.as_str(), |(_, option)| option);
        let first = above.select_cells(String::new(), String::new());
        columns.push(new_text_column(title, first, strings(frame, key)?, false));
    }
    Ok(columns)
}

/// What was taken away, and what is left.
fn size_columns(frame: &DataFrame, above: HeaderRows) -> Result<Vec<TextColumn>, PolarsError> {
    let percent = |share: f64| format!("-{:.1} %", 100.0 * share);
    let bytes = |bytes: f64| indicatif::HumanBytes(bytes as u64).to_string();
    let mut columns = Vec::new();
    let mut size = |title: &str, column: &str, dense: Option<f64>, show: &dyn Fn(f64) -> String| {
        let values = numeric_column(frame, column)?;
        if values.iter().any(Option::is_some) {
            let cells = values
                .into_iter()
                .map(|value| value.map_or_else(|| "–".to_owned(), show))
                .collect();
            let first = above.select_cells(dense.map_or_else(String::new, show), String::new());
            columns.push(new_text_column(title, first, cells, true));
        }
        Ok::<_, PolarsError>(())
    };
    size("units", "group_ratio", None, &percent)?;
    size("params", "param_ratio", None, &percent)?;
    size(
        "size",
        "bytes_after",
        numeric_column(frame, "bytes_before")?
            .into_iter()
            .flatten()
            .next(),
        &bytes,
    )?;
    Ok(columns)
}

/// Variants that have no numbers, and why.
fn failures(frame: &DataFrame) -> Result<String, PolarsError> {
    let (ids, errors) = (
        frame.column("variant")?.str()?,
        frame.column("error")?.str()?,
    );
    let mut failed: Vec<((String, &str), Vec<&str>)> = Vec::new();
    for ((id, error), status) in ids.iter().zip(errors.iter()).zip(strings(frame, "status")?) {
        let (Some(id), Some(error)) = (id, error) else {
            continue;
        };
        match failed
            .iter_mut()
            .find(|(known, _)| *known == (status.clone(), error))
        {
            Some((_, ids)) => ids.push(id),
            None => failed.push(((status, error), vec![id])),
        }
    }
    let told = |((status, error), ids): ((String, &str), Vec<&str>)| {
        format!("\n{status}: {}: {error}\n", ids.join(", "))
    };
    Ok(failed.into_iter().map(told).collect())
}

/// The frame as JSON objects.
pub fn to_json_records(frame: &DataFrame) -> Value {
    let cell = |column: &Column, row: usize| match column.get(row) {
        Ok(AnyValue::Null) | Err(_) => Value::Null,
        Ok(AnyValue::Boolean(truth)) => truth.into(),
        Ok(AnyValue::UInt32(n)) => n.into(),
        Ok(AnyValue::UInt64(n)) => n.into(),
        Ok(AnyValue::Int64(n)) => n.into(),
        Ok(AnyValue::Float64(x)) => x.into(),
        Ok(other) => other.str_value().to_string().into(),
    };
    let record = |row: usize| {
        Value::Object(
            frame
                .columns()
                .iter()
                .map(|column| (column.name().to_string(), cell(column, row)))
                .collect::<Map<_, _>>(),
        )
    };
    (0..frame.height()).map(record).collect()
}

fn new_text_column(
    title: &str,
    first: Vec<String>,
    cells: Vec<String>,
    number: bool,
) -> TextColumn {
    TextColumn {
        title: title.to_owned(),
        cells: first.into_iter().chain(cells).collect(),
        is_numeric: number,
    }
}

fn numeric_column(frame: &DataFrame, name: &str) -> Result<Vec<Option<f64>>, PolarsError> {
    Ok(frame
        .column(name)?
        .cast(&DataType::Float64)?
        .f64()?
        .iter()
        .collect())
}

fn strings(frame: &DataFrame, name: &str) -> Result<Vec<String>, PolarsError> {
    let column = frame.column(name)?;
    (0..column.len())
        .map(|row| Ok(column.get(row)?.str_value().to_string()))
        .collect()
}

/// Columns side by side, two spaces between them.
fn format_table(columns: &[TextColumn]) -> String {
    let width = |column: &TextColumn| {
        column
            .cells
            .iter()
            .chain([&column.title])
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = columns.iter().map(width).collect();
    let line = |cell: &dyn Fn(&TextColumn) -> String| {
        let padded = columns
            .iter()
            .zip(&widths)
            .map(|(column, &width)| match column.is_numeric {
                true => format!("{:>width$}", cell(column)),
                false => format!("{:<width$}", cell(column)),
            });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let rows = columns.first().map_or(0, |column| column.cells.len());
    let head = line(&|column| column.title.clone());
    let rule = line(&|column| "─".repeat(width(column)));
    head + &rule
        + &(0..rows)
            .map(|row| line(&|column| column.cells[row].clone()))
            .collect::<String>()
}
