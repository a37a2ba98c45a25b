//! The table of a sweep as text: the dense model first, then a line for each variant, differences to dense beside the
//! numbers, the best of each column marked.

use polars::prelude::*;
use serde_json::{Map, Value};

use super::ReportError;

/// A column of the printed table.
struct Shown {
    title: String,
    cells: Vec<String>,
    /// Numbers lean to the right.
    number: bool,
}

/// The frame as lines.
pub fn summary(frame: &DataFrame) -> Result<String, ReportError> {
    let names: Vec<String> = frame.get_column_names().iter().map(|name| name.to_string()).collect();
    let metrics: Vec<&String> = names.iter().filter(|name| names.contains(&format!("{name}.delta"))).collect();
    let swept: Vec<&String> = names.iter().skip(1).take_while(|name| *name != "status").collect();
    let dense: Vec<Vec<Option<f64>>> =
        metrics.iter().map(|metric| number(frame, &format!("{metric}.dense"))).collect::<Result<_, PolarsError>>()?;
    let measured = || dense.iter().map(|values| values.iter().flatten().collect::<Vec<_>>());
    let is_compared = measured().any(|values| !values.is_empty());
    // Variants of several models have no dense line in common.
    let has_dense = is_compared && measured().all(|values| values.windows(2).all(|pair| pair[0] == pair[1]));

    let mut columns = vec![shown("variant", has_dense.then(|| "dense".to_owned()), strings(frame, "variant")?, false)];
    for key in swept {
        let title = key.split_once('.').map_or(key.as_str(), |(_, option)| option);
        columns.push(shown(title, has_dense.then(String::new), strings(frame, key)?, false));
    }
    let percent = |share: f64| format!("-{:.1} %", 100.0 * share);
    let bytes = |bytes: f64| indicatif::HumanBytes(bytes as u64).to_string();
    let mut size = |title: &str, column: &str, dense: Option<f64>, show: &dyn Fn(f64) -> String| {
        let values = number(frame, column)?;
        if values.iter().any(Option::is_some) {
            let cells = values.into_iter().map(|value| value.map_or_else(|| "–".to_owned(), show)).collect();
            columns.push(shown(title, has_dense.then(|| dense.map_or_else(String::new, show)), cells, true));
        }
        Ok::<_, PolarsError>(())
    };
    size("units", "group_ratio", None, &percent)?;
    size("params", "param_ratio", None, &percent)?;
    size("size", "bytes_after", number(frame, "bytes_before")?.into_iter().flatten().next(), &bytes)?;
    let mut recovers = false;
    for (metric, dense) in metrics.into_iter().zip(dense) {
        let values = number(frame, metric)?;
        let lower_is_better = metric.ends_with(".perplexity");
        let best = values.iter().flatten().copied().reduce(|a, b| if (a < b) == lower_is_better { a } else { b });
        let show = |value: f64| if lower_is_better { format!("{value:.3}") } else { format!("{:.1} %", 100.0 * value) };
        let difference = |delta: Option<f64>| match delta {
            Some(delta) if lower_is_better => format!(" ({delta:+.3})"),
            Some(delta) => format!(" ({:+5.1})", 100.0 * delta),
            None => String::new(),
        };
        let deltas = number(frame, &format!("{metric}.delta"))?;
        let pruned = number(frame, &format!("{metric}.pruned"))?;
        recovers |= pruned.iter().any(Option::is_some);
        let cell = |((value, pruned), delta): ((&Option<f64>, &Option<f64>), &Option<f64>)| {
            let before = pruned.map_or_else(String::new, |v| show(v) + " → ");
            let value = value.map(|v| format!("{}{}{}", if Some(v) == best { "* " } else { "" }, show(v), difference(*delta)));
            before + &value.unwrap_or_else(|| "–".to_owned())
        };
        let dense = dense.into_iter().flatten().next();
        let beside = deltas.iter().flatten().next().map_or(0, |delta| difference(Some(*delta)).len());
        let first = has_dense.then(|| dense.map_or_else(String::new, |d| show(d) + &" ".repeat(beside)));
        columns.push(shown(metric, first, values.iter().zip(&pruned).zip(&deltas).map(cell).collect(), true));
    }
    let mut text = lines(&columns) + "\n* the best of its column";
    if is_compared {
        text.push_str("; in brackets the difference to the dense model");
    }
    if recovers {
        text.push_str("; → from pruned to recovered");
    }
    text.push('\n');
    let (ids, errors) = (frame.column("variant")?.str()?, frame.column("error")?.str()?);
    let mut failed: Vec<((String, &str), Vec<&str>)> = Vec::new();
    for ((id, error), status) in ids.iter().zip(errors.iter()).zip(strings(frame, "status")?) {
        let (Some(id), Some(error)) = (id, error) else { continue };
        match failed.iter_mut().find(|(known, _)| *known == (status.clone(), error)) {
            Some((_, ids)) => ids.push(id),
            None => failed.push(((status, error), vec![id])),
        }
    }
    for ((status, error), ids) in failed {
        text.push_str(&format!("\n{status}: {}: {error}\n", ids.join(", ")));
    }
    Ok(text)
}

/// The frame as JSON objects.
pub fn records(frame: &DataFrame) -> Value {
    let cell = |column: &Column, row: usize| match column.get(row) {
        Ok(AnyValue::Null) | Err(_) => Value::Null,
        Ok(AnyValue::Boolean(truth)) => truth.into(),
        Ok(AnyValue::UInt64(n)) => n.into(),
        Ok(AnyValue::Int64(n)) => n.into(),
        Ok(AnyValue::Float64(x)) => x.into(),
        Ok(other) => other.str_value().to_string().into(),
    };
    let record = |row: usize| {
        Value::Object(frame.columns().iter().map(|column| (column.name().to_string(), cell(column, row))).collect::<Map<_, _>>())
    };
    (0..frame.height()).map(record).collect()
}

fn shown(title: &str, first: Option<String>, cells: Vec<String>, number: bool) -> Shown {
    Shown { title: title.to_owned(), cells: first.into_iter().chain(cells).collect(), number }
}

fn number(frame: &DataFrame, name: &str) -> Result<Vec<Option<f64>>, PolarsError> {
    Ok(frame.column(name)?.cast(&DataType::Float64)?.f64()?.iter().collect())
}

fn strings(frame: &DataFrame, name: &str) -> Result<Vec<String>, PolarsError> {
    let column = frame.column(name)?;
    (0..column.len()).map(|row| Ok(column.get(row)?.str_value().to_string())).collect()
}

/// Columns side by side, two spaces between them.
fn lines(columns: &[Shown]) -> String {
    let width = |column: &Shown| column.cells.iter().chain([&column.title]).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = columns.iter().map(width).collect();
    let line = |cell: &dyn Fn(&Shown) -> String| {
        let padded = columns.iter().zip(&widths).map(|(column, &width)| match column.number {
            true => format!("{:>width$}", cell(column)),
            false => format!("{:<width$}", cell(column)),
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let rows = columns.first().map_or(0, |column| column.cells.len());
    let head = line(&|column| column.title.clone());
    let rule = line(&|column| "─".repeat(width(column)));
    head + &rule + &(0..rows).map(|row| line(&|column| column.cells[row].clone())).collect::<String>()
}
