//! Decodes a table after its check. A table with mistakes is repaired and decoded all the same, so
//! that the other options of the table can be checked as well: one check reports all mistakes.

use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue, Deserializer, Error};

use crate::pipeline::option_type::TableType;
use crate::pipeline::problem::Problem;
use crate::pipeline::table_check::CheckedTable;
use crate::pipeline::value_words::describe_value;

/// A decoded table.
pub(crate) struct Decoded<T> {
    pub value: T,
    /// The options whose values are not those of the file, because these are wrong or missing. What
    /// is found about them is not reported.
    pub replaced_keys: BTreeSet<String>,
}

/// Checks and decodes a table. None if it cannot be decoded even after its mistakes are removed;
/// this is then a problem, too.
pub(crate) fn decode_table<T>(
    checked: CheckedTable<'_>,
    table: &DeTable<'_>,
    table_span: Range<usize>,
    table_type: &'static TableType,
    problems: &mut Vec<Problem>,
    decode: impl Fn(Deserializer<'_>) -> Result<T, Error>,
) -> Option<Decoded<T>> {
    let mistakes = checked.check(table, table_type);
    problems.extend(mistakes.problems);
    let mut replaced_keys = mistakes.keys;
    loop {
        let repaired = repair(table, table_type, &replaced_keys);
        let deserializer = Deserializer::from(Spanned::new(table_span.clone(), repaired));
        let error = match decode(deserializer) {
            Ok(value) => {
                return Some(Decoded {
                    value,
                    replaced_keys,
                });
            }
            Err(error) => error,
        };
        // What the types do not say, such as the notation of a size, is found here.
        let entry = error.span().and_then(|span| entry_at(table, &span));
        match entry {
            Some((key, value)) if replaced_keys.insert(key.to_owned()) => {
                problems.push(value_problem(checked, key, value, error.message()));
            }
            _ => {
                let message = format!("{} cannot be read: {}", checked.name(), error.message());
                let problem = checked.sources.problem(checked.span.clone(), message, "");
                problems.push(problem);
                return None;
            }
        }
    }
}

/// The table without these keys. A required option gets a placeholder.
pub(crate) fn repair<'t>(
    table: &DeTable<'t>,
    table_type: &'static TableType,
    replaced_keys: &BTreeSet<String>,
) -> DeTable<'t> {
    let mut repaired = table.clone();
    for key in replaced_keys {
        repaired.remove(key.as_str());
        let option = table_type.option(key).filter(|option| option.is_required);
        if let Some(placeholder) = option.and_then(|option| option.placeholder()) {
            let key = DeString::Owned(key.clone());
            repaired.insert(Spanned::new(0..0, key), placeholder);
        }
    }
    repaired
}

/// The entry of a table whose key or value is at a place.
fn entry_at<'a, 't>(
    table: &'a DeTable<'t>,
    place: &Range<usize>,
) -> Option<(&'a str, &'a Spanned<DeValue<'t>>)> {
    let contains = |span: Range<usize>| span.start <= place.start && place.end <= span.end;
    table
        .iter()
        .find(|(key, value)| contains(value.span()) || contains(key.span()))
        .map(|(key, value)| (key.get_ref().as_ref(), value))
}

/// A value that its own type refuses: "…, expected …" in the words of serde, or another reason.
fn value_problem(
    checked: CheckedTable<'_>,
    key: &str,
    value: &Spanned<DeValue<'_>>,
    message: &str,
) -> Problem {
    let table = checked.name();
    let written = describe_value(value.get_ref());
    let message = match message.split_once("expected ") {
        Some((_, expected)) => {
            let expected = expected.trim();
            format!("`{key}` of {table} must be {expected}, not {written}")
        }
        None => format!("`{key}` of {table} cannot be {written}: {}", message.trim()),
    };
    checked.sources.problem(value.span(), message, "")
}
