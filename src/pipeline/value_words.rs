//! Values in words, and how values of a type are written.

use toml::de::DeValue;

use crate::pipeline::option_type::{OptionType, TableType};

/// The number of a whole number of TOML; None if it is beyond 64 bits.
pub(crate) fn integer_value(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// A value in words, for messages such as "must be a number, not *the text `x`*".
pub(crate) fn describe_value(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) if text.chars().count() <= 40 => format!("the text \"{text}\""),
        DeValue::String(_) => "a text".to_owned(),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(date) => match date.date {
            Some(_) => format!("the date {date}"),
            None => format!("the time {date}"),
        },
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// How an option is written.
pub(crate) fn example(name: &str, value_type: &OptionType) -> String {
    match value_type {
        OptionType::Table(tables) => table_examples(name, tables),
        _ => format!("{name} = {}", example_value(value_type)),
    }
}

/// A value of a type.
pub(crate) fn example_value(value_type: &OptionType) -> String {
    match value_type {
        OptionType::Text => "\"…\"".to_owned(),
        OptionType::Choice(choices) => choices
            .first()
            .map_or_else(String::new, |choice| format!("\"{choice}\"")),
        OptionType::List(items, length) => {
            let items = vec![example_value(items); length.unwrap_or(1)];
            format!("[{}]", items.join(", "))
        }
        _ => "…".to_owned(),
    }
}

/// How an option whose value is a table is written: `duration = { updates = … }`, one for each type
/// of table.
pub(crate) fn table_examples(path: &str, tables: &[TableType]) -> String {
    let examples: Vec<String> = tables
        .iter()
        .map(|table| {
            let entries: Vec<String> = table
                .options
                .iter()
                .map(|option| format!("{} = {}", option.name, example_value(&option.value_type)))
                .collect();
            format!("{path} = {{ {} }}", entries.join(", "))
        })
        .collect();
    examples.join(" or ")
}
