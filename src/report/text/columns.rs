//! The columns of the printed table beside the metrics: names, swept options, sizes.

use polars::prelude::*;

use super::layout::{HeaderRows, TextColumn};

/// Printed in place of a value that a variant does not have.
const NO_VALUE: &str = "–";

/// The names of the variants, and the options that the sweep set for each.
pub(crate) fn option_columns(
    table: &DataFrame,
    header: HeaderRows,
) -> Result<Vec<TextColumn>, PolarsError> {
    let mut columns = vec![TextColumn::new(
        "variant",
        header.select_cells(["dense", "chance", "majority"].map(str::to_owned)),
        text_column(table, "variant")?,
        false,
    )];
    // The swept options lie between the columns `variant` and `status`.
    let keys = table.get_column_names().into_iter().skip(1);
    for key in keys.take_while(|name| name.as_str() != "status") {
        let option = key
            .split_once('.')
            .map_or(key.as_str(), |(_, option)| option);
        columns.push(TextColumn::new(
            option,
            header.select_cells(Default::default()),
            text_column(table, key)?,
            false,
        ));
    }
    Ok(columns)
}

/// The shares of units and parameters that were removed, and the remaining size on disk. A column
/// without any value is left out.
pub(crate) fn size_columns(
    table: &DataFrame,
    header: HeaderRows,
) -> Result<Vec<TextColumn>, PolarsError> {
    let dense_bytes = numeric_column(table, "bytes_before")?
        .into_iter()
        .flatten()
        .next();
    let columns = [
        size_column(table, header, "units", "group_ratio", None, format_removed)?,
        size_column(table, header, "params", "param_ratio", None, format_removed)?,
        size_column(
            table,
            header,
            "size",
            "bytes_after",
            dense_bytes,
            format_bytes,
        )?,
    ];
    Ok(columns.into_iter().flatten().collect())
}

fn size_column(
    table: &DataFrame,
    header: HeaderRows,
    title: &str,
    name: &str,
    dense: Option<f64>,
    format: fn(f64) -> String,
) -> Result<Option<TextColumn>, PolarsError> {
    let values = numeric_column(table, name)?;
    if values.iter().all(Option::is_none) {
        return Ok(None);
    }
    let cells = values
        .into_iter()
        .map(|value| value.map_or_else(|| NO_VALUE.to_owned(), format))
        .collect();
    let dense_cell = dense.map_or_else(String::new, format);
    let header_cells = header.select_cells([dense_cell, String::new(), String::new()]);
    Ok(Some(TextColumn::new(title, header_cells, cells, true)))
}

fn format_removed(share: f64) -> String {
    format!("-{:.1} %", 100.0 * share)
}

fn format_bytes(bytes: f64) -> String {
    indicatif::HumanBytes(bytes as u64).to_string()
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
    (0..column.len())
        .map(|row| Ok(column.get(row)?.str_value().to_string()))
        .collect()
}
