//! The columns of the printed table beside the metrics: names, swept options, sizes.

use polars::prelude::*;

use super::layout::{ColumnGroup, TextColumn};
use crate::progress::format_percent;

/// Printed in place of a value that a variant does not have.
pub(crate) const NO_VALUE: &str = "–";

/// The rows above those of the variants.
#[derive(Clone, Copy)]
pub(crate) enum HeaderRow {
    /// The dense model.
    Dense,
    /// The accuracy of guessing.
    Chance,
    /// The accuracy of always choosing the most frequent answer.
    Majority,
}

impl HeaderRow {
    pub(crate) const ALL: [Self; 3] = [Self::Dense, Self::Chance, Self::Majority];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Chance => "chance",
            Self::Majority => "majority",
        }
    }
}

/// The names of all rows, whose title is `variant`.
pub(crate) fn name_column(names: &[String]) -> TextColumn {
    let header = HeaderRow::ALL.map(|row| row.name().to_owned());
    let cells = header.into_iter().chain(names.iter().cloned());
    TextColumn::new("variant", cells.collect(), false)
}

/// The options that the sweep or the command line set for each variant.
pub(crate) fn option_columns(table: &DataFrame) -> Result<Vec<ColumnGroup>, PolarsError> {
    // They lie between the columns `variant` and `status`.
    let names = table.get_column_names().into_iter().skip(1);
    let keys: Vec<&str> = names
        .map(PlSmallStr::as_str)
        .take_while(|name| *name != "status")
        .filter(|name| name.contains('.'))
        .collect();
    let option = |key: &str| match key.split_once('.') {
        Some((_, option)) => option.to_owned(),
        None => key.to_owned(),
    };
    let mut columns = Vec::new();
    for &key in &keys {
        let short = option(key);
        let is_unique = keys.iter().filter(|other| option(other) == short).count() == 1;
        let title = if is_unique { &short } else { key };
        let cells = HeaderRow::ALL.map(|_| String::new());
        let cells = cells.into_iter().chain(text_column(table, key)?).collect();
        columns.push(ColumnGroup::single(TextColumn::new(title, cells, false)));
    }
    Ok(columns)
}

/// The shares of units and parameters that were removed, and the remaining size on disk. A column
/// without any value is left out.
pub(crate) fn size_columns(table: &DataFrame) -> Result<Vec<ColumnGroup>, PolarsError> {
    let dense_bytes = common_value(&numeric_column(table, "bytes_before")?);
    let columns = [
        size_column(table, "units", "group_ratio", None, format_removed)?,
        size_column(table, "params", "param_ratio", None, format_removed)?,
        size_column(table, "size", "bytes_after", dense_bytes, format_bytes)?,
    ];
    Ok(columns.into_iter().flatten().collect())
}

fn size_column(
    table: &DataFrame,
    title: &str,
    name: &str,
    dense: Option<f64>,
    format: fn(f64) -> String,
) -> Result<Option<ColumnGroup>, PolarsError> {
    let values = numeric_column(table, name)?;
    if values.iter().all(Option::is_none) {
        return Ok(None);
    }
    let header = HeaderRow::ALL.map(|row| match row {
        HeaderRow::Dense => dense.map(format).unwrap_or_default(),
        HeaderRow::Chance | HeaderRow::Majority => String::new(),
    });
    let values = values.into_iter();
    let cells = values.map(|value| value.map_or_else(|| NO_VALUE.to_owned(), format));
    let cells = header.into_iter().chain(cells).collect();
    Ok(Some(ColumnGroup::single(TextColumn::new(
        title, cells, true,
    ))))
}

fn format_removed(share: f64) -> String {
    format!("-{}", format_percent(share))
}

fn format_bytes(bytes: f64) -> String {
    indicatif::HumanBytes(bytes as u64).to_string()
}

/// The value that all variants have in common, leaving out those that have none.
pub(crate) fn common_value(values: &[Option<f64>]) -> Option<f64> {
    let mut present = values.iter().flatten().copied();
    let first = present.next()?;
    present.all(|value| value == first).then_some(first)
}

/// The size of each variant as it is printed, by which variants are compared: the parameters of the
/// dense model, and the share that was removed in tenths of a percent.
pub(crate) fn size_classes(table: &DataFrame) -> Result<Vec<Option<(u64, i64)>>, PolarsError> {
    let dense = numeric_column(table, "params_before")?;
    let removed = numeric_column(table, "param_ratio")?;
    let pairs = dense.into_iter().zip(removed);
    let class = |(dense, removed): (Option<f64>, Option<f64>)| {
        Some((dense? as u64, (1000.0 * removed?).round() as i64))
    };
    Ok(pairs.map(class).collect())
}

/// The values of a column of any numeric type.
pub(crate) fn numeric_column(
    table: &DataFrame,
    name: &str,
) -> Result<Vec<Option<f64>>, PolarsError> {
    let column = table.column(name)?.cast(&DataType::Float64)?;
    Ok(column.f64()?.iter().collect())
}

/// The values of a column of any type as text.
pub(crate) fn text_column(table: &DataFrame, name: &str) -> Result<Vec<String>, PolarsError> {
    let column = table.column(name)?;
    let text = |row| {
        Ok(match column.get(row)? {
            AnyValue::Null => NO_VALUE.to_owned(),
            AnyValue::Float64(number) => format_exact(number),
            value => value.str_value().to_string(),
        })
    };
    (0..column.len()).map(text).collect()
}

/// The number with all its digits, as a pipeline file may have it: `0.123456789`, `1e9`.
fn format_exact(number: f64) -> String {
    if number == 0.0 || (1e-4..1e7).contains(&number.abs()) {
        number.to_string()
    } else {
        format!("{number:e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_keep_all_digits() {
        let values = [
            0.123456789,
            0.3000000000000001,
            0.25,
            2e-3,
            1e-5,
            1e9,
            0.0,
            2.0,
        ];
        let table = df!("option" => values).expect("a table");
        let texts = text_column(&table, "option").expect("a column");
        assert_eq!(
            texts,
            [
                "0.123456789",
                "0.3000000000000001",
                "0.25",
                "0.002",
                "1e-5",
                "1e9",
                "0",
                "2"
            ]
        );
    }
}
