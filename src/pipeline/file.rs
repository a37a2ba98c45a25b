//! The text of a pipeline → tables of stages with the span of every value, and tables → stages.
//!
//! A stage is decoded in two steps: its `type` is taken out of the parsed table, then the rest is
//! deserialised into the options of that type. serde's tagged enums would do it in one, but they
//! lose the spans, and a wrong key would be reported at another stage.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use crate::pipeline::problem::{Problem, SourceTexts, suggest};
use crate::stages::registry;
use crate::stages::{OptionFault, Stage, repeat};

/// The `type` of a list of stages that runs several times. The check unrolls it, so it is not a
/// [`Stage`].
pub(crate) const REPEAT_TAG: &str = "repeat";

/// A pipeline file, parsed but not decoded.
#[derive(Clone, Default)]
pub(crate) struct PipelineDocument<'t> {
    pub run: Option<Spanned<DeTable<'t>>>,
    pub stages: Vec<RawStage<'t>>,
    pub sweep: Option<Spanned<DeTable<'t>>>,
}

/// A `[[stage]]` table without its `type`.
#[derive(Clone, Default)]
pub(crate) struct RawStage<'t> {
    /// The `type`; "" if it is missing or wrong, which is a problem already reported.
    pub tag: String,
    /// The span of the `type`.
    pub type_span: Range<usize>,
    /// The span of the table.
    pub table_span: Range<usize>,
    pub options: DeTable<'t>,
    /// The stages of a `repeat`.
    pub repeated_stages: Vec<RawStage<'t>>,
}

/// A stage or a repeat, decoded.
pub(crate) enum DecodedStage {
    Stage(Arc<dyn Stage>),
    Repeat(repeat::Options),
}

/// Parses the outline of a file: syntax, top-level keys, and the type of every stage.
pub(crate) fn parse<'t>(
    text: &'t str,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> PipelineDocument<'t> {
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let span = error.span().unwrap_or(0..0);
            let message = format!("this is not valid TOML: {}", error.message());
            problems.push(sources.problem(span, message, ""));
            return PipelineDocument::default();
        }
    };
    let mut document = PipelineDocument::default();
    for (key, value) in table {
        let key_span = key.span();
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("run", DeValue::Table(_)) => document.run = into_table(value),
            ("sweep", DeValue::Table(_)) => document.sweep = into_table(value),
            ("stage", DeValue::Array(_)) => {
                document.stages = parse_stages(value, sources, problems, false);
            }
            ("run" | "sweep", _) => problems.push(sources.problem(
                value.span(),
                format!("`{}` is not a table", key.get_ref()),
                format!("write [{}]", key.get_ref()),
            )),
            ("stage", _) => problems.push(not_a_list_of_tables(sources, key_span)),
            (unknown, _) => problems.push(sources.problem(
                key_span,
                format!("unknown key `{unknown}`"),
                suggest(unknown, &["run", "stage", "sweep"]),
            )),
        }
    }
    if problems.iter().all(Problem::is_warning) && document.stages.is_empty() {
        problems.push(sources.problem(
            0..0,
            "the pipeline has no stage",
            "add one: [[stage]] and type = \"load\"",
        ));
    }
    document
}

fn into_table(value: Spanned<DeValue<'_>>) -> Option<Spanned<DeTable<'_>>> {
    let span = value.span();
    match value.into_inner() {
        DeValue::Table(table) => Some(Spanned::new(span, table)),
        _ => None,
    }
}

fn not_a_list_of_tables(sources: &SourceTexts, span: Range<usize>) -> Problem {
    let message = "`stage` is not a list of tables";
    sources.problem(span, message, "write [[stage]], with two brackets")
}

fn parse_stages<'t>(
    list: Spanned<DeValue<'t>>,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
    inside_repeat: bool,
) -> Vec<RawStage<'t>> {
    let span = list.span();
    let DeValue::Array(items) = list.into_inner() else {
        problems.push(not_a_list_of_tables(sources, span));
        return Vec::new();
    };
    let mut stages = Vec::new();
    for item in items {
        // A stage with a wrong outline stays in the list without a type. The order pass assumes
        // that it makes every kind of value, so it does not report the stages after it.
        let stage = parse_stage(item, sources, problems, inside_repeat).unwrap_or_else(|problem| {
            problems.push(problem);
            RawStage::default()
        });
        stages.push(stage);
    }
    stages
}

#[expect(
    clippy::result_large_err,
    reason = "a problem is made once and moved into the list of problems"
)]
fn parse_stage<'t>(
    item: Spanned<DeValue<'t>>,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
    inside_repeat: bool,
) -> Result<RawStage<'t>, Problem> {
    let choices: Vec<&str> = registry::tags().chain([REPEAT_TAG]).collect();
    let all_choices = format!("there are: {}", choices.join(", "));
    let table_span = item.span();
    let DeValue::Table(mut options) = item.into_inner() else {
        return Err(sources.problem(table_span, "a stage is not a table", "write [[stage]]"));
    };
    let Some((_, tag)) = options.remove_entry("type") else {
        let help = format!("add type = \"…\"; {all_choices}");
        return Err(sources.problem(table_span, "this stage has no `type`", help));
    };
    let type_span = tag.span();
    let DeValue::String(tag) = tag.into_inner() else {
        let message = "the `type` of a stage is a text";
        return Err(sources.problem(type_span, message, all_choices));
    };
    let tag = tag.into_owned();
    if !choices.contains(&tag.as_str()) {
        let message = format!("unknown stage `{tag}`");
        return Err(sources.problem(type_span, message, suggest(&tag, &choices)));
    }
    let mut repeated_stages = Vec::new();
    if tag == REPEAT_TAG {
        if inside_repeat {
            return Err(sources.problem(
                type_span,
                "a `repeat` inside a `repeat` is not supported",
                "write its stages one level up",
            ));
        }
        let Some((_, list)) = options.remove_entry("stage") else {
            return Err(sources.problem(
                type_span,
                "this `repeat` has no stages",
                "add a list: [[stage.stage]] and type = \"importance\"",
            ));
        };
        repeated_stages = parse_stages(list, sources, problems, true);
    }
    Ok(RawStage {
        tag,
        type_span,
        table_span,
        options,
        repeated_stages,
    })
}

impl RawStage<'_> {
    /// Deserialises the options and checks their values. None if that fails.
    pub(crate) fn decode(
        &self,
        sources: &SourceTexts,
        problems: &mut Vec<Problem>,
    ) -> Option<DecodedStage> {
        if self.tag.is_empty() {
            return None;
        }
        let table = Spanned::new(self.table_span.clone(), self.options.clone());
        let deserializer = Deserializer::from(table);
        let decoded = if self.tag == REPEAT_TAG {
            repeat::Options::deserialize(deserializer).map(DecodedStage::Repeat)
        } else {
            let stage_type = registry::find(&self.tag)?;
            (stage_type.decode)(deserializer).map(DecodedStage::Stage)
        };
        let decoded = match decoded {
            Ok(decoded) => decoded,
            Err(error) => {
                // A missing key has the span of the whole table; the `type` is shown instead.
                let value_span = error.span().filter(|span| *span != self.table_span);
                problems.push(deserialize_problem(
                    sources,
                    value_span.unwrap_or(self.type_span.clone()),
                    error.message(),
                    &format!("`{}`", self.tag),
                ));
                return None;
            }
        };
        let faults = match &decoded {
            DecodedStage::Stage(stage) => stage.option_faults(),
            DecodedStage::Repeat(options) => options.faults(),
        };
        for fault in faults {
            problems.push(self.fault_problem(sources, fault));
        }
        Some(decoded)
    }

    /// A fault at the place of its key, or at the stage's `type` if the key is not written.
    fn fault_problem(&self, sources: &SourceTexts, fault: OptionFault) -> Problem {
        let written_span = self.key_spans().remove(&fault.key);
        let span = written_span.unwrap_or(self.type_span.clone());
        sources.option_problem(span, fault)
    }

    /// The span of every option's value, by key: `duration`, `duration.updates`, `tasks`,
    /// `tasks[0]`.
    pub(crate) fn key_spans(&self) -> BTreeMap<String, Range<usize>> {
        let mut spans = BTreeMap::new();
        for (key, value) in &self.options {
            let key = key.get_ref();
            spans.insert(key.to_string(), value.span());
            match value.get_ref() {
                DeValue::Table(inner) => {
                    for (inner_key, inner_value) in inner {
                        let path = format!("{key}.{}", inner_key.get_ref());
                        spans.insert(path, inner_value.span());
                    }
                }
                DeValue::Array(items) => {
                    for (index, item) in items.iter().enumerate() {
                        spans.insert(format!("{key}[{index}]"), item.span());
                    }
                }
                _ => {}
            }
        }
        spans
    }
}

/// A deserialisation error of serde as a problem. `context` is where it occurred: a stage type or
/// `[run]`.
///
/// serde's error has no fields for the unknown name and the expected ones, only a message such as
/// "unknown field `ration`, expected `ratio` or `scope`"; the names are parsed out of it.
pub(crate) fn deserialize_problem(
    sources: &SourceTexts,
    span: Range<usize>,
    message: &str,
    context: &str,
) -> Problem {
    let message = message.trim();
    // Between the backquotes: every second piece, from the second on.
    let quoted_names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let first_word = message.split_whitespace().next();
    match (first_word, &quoted_names[..]) {
        (Some("unknown"), [unknown, choices @ ..]) if !choices.is_empty() => {
            let kind = if message.starts_with("unknown field") {
                "key"
            } else {
                "value"
            };
            let message = format!("unknown {kind} `{unknown}` in {context}");
            sources.problem(span, message, suggest(unknown, choices))
        }
        (Some("missing"), [name]) => sources.problem(
            span,
            format!("{context} lacks the key `{name}`"),
            format!("add {name} = …"),
        ),
        _ => sources.problem(span, format!("{context}: {message}"), ""),
    }
}
