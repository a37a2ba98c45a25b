//! Values for options: `[sweep]`, `--sweep` and `--set` put them into the parsed tables before these
//! are decoded. A value keeps the span where it is written, so a wrong value is reported there.

use std::ops::Range;

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::pipeline::address::{CountByType, OptionAddress};
use crate::pipeline::file::RawStage;
use crate::pipeline::option_type::REPEAT_TAG;
use crate::pipeline::problem::{Problem, SourceTexts, format_count, suggest};
use crate::stages::registry;

/// A value for an option.
#[derive(Clone)]
pub(crate) struct OptionAssignment<'t> {
    pub address: OptionAddress,
    /// The address as it is written.
    pub key: String,
    /// The span of the address.
    pub name_span: Range<usize>,
    pub value: Spanned<DeValue<'t>>,
}

/// Counts the stages of each type.
pub(crate) fn count_stages(stages: &[RawStage<'_>]) -> CountByType {
    let mut counts = CountByType::new();
    for stage in stages {
        *counts.entry(stage.tag.clone()).or_default() += 1;
        for (tag, count) in count_stages(&stage.repeated_stages) {
            *counts.entry(tag).or_default() += count;
        }
    }
    counts
}

/// Puts a value into the stages that the assignment names, those inside a `repeat` included.
pub(crate) fn apply_assignment<'t>(
    stages: &mut [RawStage<'t>],
    assignment: &OptionAssignment<'t>,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) {
    let mut same_type_count = 0;
    if apply_to_list(stages, assignment, &mut same_type_count, sources, problems) {
        return;
    }
    let OptionAddress { tag, index, .. } = &assignment.address;
    let mut known_tags: Vec<&str> = registry::tags().collect();
    known_tags.extend([REPEAT_TAG, "run"]);
    let (message, help) = match index {
        _ if !known_tags.contains(&tag.as_str()) => (
            format!("there is no stage type `{tag}`"),
            suggest(tag, &known_tags),
        ),
        Some(index) => (
            format!(
                "the pipeline has {} of type `{tag}`, not {index}",
                format_count(same_type_count, "stage")
            ),
            String::new(),
        ),
        None => (
            format!("the pipeline has no stage of type `{tag}`"),
            format!("add one: [[stage]] and type = \"{tag}\""),
        ),
    };
    problems.push(sources.problem(assignment.name_span.clone(), message, help));
}

/// Puts a value into the stages of a list that the assignment names, and returns whether there is
/// any. `same_type_count` is the number of stages of the type so far: it numbers them across the
/// lists of all `repeat`s.
fn apply_to_list<'t>(
    stages: &mut [RawStage<'t>],
    assignment: &OptionAssignment<'t>,
    same_type_count: &mut usize,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> bool {
    let OptionAddress { tag, index, path } = &assignment.address;
    let mut is_found = false;
    for stage in stages {
        if stage.tag == *tag {
            *same_type_count += 1;
            if index.is_none_or(|index| index == *same_type_count) {
                is_found = true;
                if let Err(message) = insert_value(&mut stage.options, path, assignment) {
                    problems.push(sources.problem(assignment.name_span.clone(), message, ""));
                }
            }
        }
        is_found |= apply_to_list(
            &mut stage.repeated_stages,
            assignment,
            same_type_count,
            sources,
            problems,
        );
    }
    is_found
}

/// Inserts a value at a path of nested tables, which are created if they are missing. `path` is not
/// empty.
pub(crate) fn insert_value<'t>(
    table: &mut DeTable<'t>,
    path: &[String],
    assignment: &OptionAssignment<'t>,
) -> Result<(), String> {
    let span = assignment.name_span.clone();
    let key = Spanned::new(span.clone(), DeString::Owned(path[0].clone()));
    if path.len() == 1 {
        table.insert(key, assignment.value.clone());
        return Ok(());
    }
    let inner = table
        .entry(key)
        .or_insert_with(|| Spanned::new(span, DeValue::Table(DeTable::new())));
    match inner.get_mut() {
        DeValue::Table(inner) => insert_value(inner, &path[1..], assignment),
        _ => Err(format!(
            "`{}` is not a table, so it has no `{}`",
            path[0], path[1]
        )),
    }
}

/// A TOML value as JSON, without spans.
pub(crate) fn toml_to_json(value: &Spanned<DeValue<'_>>) -> Value {
    match value.get_ref() {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Integer(integer) => {
            let parsed = i64::from_str_radix(integer.as_str(), integer.radix());
            parsed.map_or(integer.as_str().into(), Into::into)
        }
        DeValue::Float(float) => {
            let parsed = float.as_str().parse::<f64>();
            parsed.map_or(float.as_str().into(), Into::into)
        }
        DeValue::Boolean(boolean) => (*boolean).into(),
        DeValue::Datetime(datetime) => datetime.to_string().into(),
        DeValue::Array(items) => items.iter().map(toml_to_json).collect(),
        DeValue::Table(table) => {
            let entries = table
                .iter()
                .map(|(key, value)| (key.get_ref().to_string(), toml_to_json(value)));
            Value::Object(entries.collect())
        }
    }
}
