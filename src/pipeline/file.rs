//! The text of a pipeline → tables of stages with the span of every value, and tables → stages.
//!
//! A stage is decoded in two steps: its `type` is taken out of the parsed table, then the rest is
//! deserialised into the options of that type. serde's tagged enums would do it in one, but they
//! lose the spans, and a wrong key would be reported at another stage.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use crate::pipeline::decode::{Decoded, decode_table};
use crate::pipeline::option_type::{self, OptionType, REPEAT_TAG};
use crate::pipeline::problem::{Problem, SourceTexts, suggest};
use crate::pipeline::syntax::syntax_problem;
use crate::pipeline::table_check::CheckedTable;
use crate::stages::registry;
use crate::stages::step;
use crate::stages::{OptionFault, Stage, repeat};
use secateur_base::spelling::closest;

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

/// Parses the outline of a file: syntax, top-level keys, and the type of every stage. None if the
/// syntax is wrong, which is a problem.
pub(crate) fn parse<'t>(
    text: &'t str,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> Option<PipelineDocument<'t>> {
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            problems.push(syntax_problem(&error, sources));
            return None;
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
            // `[stage]` in place of `[[stage]]`: its options are checked as well.
            ("stage", DeValue::Table(_)) => {
                problems.push(not_a_list_of_tables(sources, key_span));
                let span = value.span();
                let list = DeValue::Array(DeArray::from_iter([value]));
                let list = Spanned::new(span, list);
                document.stages = parse_stages(list, sources, problems, false);
            }
            ("stage", _) => problems.push(not_a_list_of_tables(sources, key_span)),
            (unknown, _) => problems.push(sources.problem(
                key_span,
                format!("unknown key `{unknown}`"),
                unknown_top_level_key_help(unknown),
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
    Some(document)
}

/// Help for an unknown key or table at the top level: where it belongs, or the closest one.
fn unknown_top_level_key_help(key: &str) -> String {
    if option_type::run_table().option(key).is_some() {
        return format!("`{key}` is a setting of [run]");
    }
    if option_type::stage_table(key).is_some() {
        return format!("a stage is written [[stage]] and type = \"{key}\"");
    }
    let tags = option_type::tags_with_option(key);
    if tags.is_empty() {
        return suggest(key, &["run", "stage", "sweep"]);
    }
    format!(
        "`{key}` is an option of `{}`: write it below the `type` of that stage",
        tags.join("`, `")
    )
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
        let message = "the stages of a `repeat` are not a list of tables";
        problems.push(sources.problem(span, message, "write [[stage.stage]], with two brackets"));
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
        let message = "this stage has no `type`";
        return Err(sources.problem(table_span, message, missing_type_help(&options, &choices)));
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

/// Help for a stage without a `type`: the types that have all of its options, if there are few.
fn missing_type_help(options: &DeTable<'_>, choices: &[&str]) -> String {
    if let Some((key, DeValue::String(tag))) = options
        .iter()
        .map(|(key, value)| (key.get_ref(), value.get_ref()))
        .find(|(key, _)| closest(key, ["type"]).is_some())
    {
        return format!("`{key}` is no option; did you mean type = \"{tag}\"?");
    }
    let has_all_options = |tag: &&&str| {
        let table = option_type::stage_table(tag);
        table.is_some_and(|table| {
            options
                .keys()
                .all(|key| table.option(key.get_ref()).is_some())
        })
    };
    let fitting: Vec<&str> = choices.iter().filter(has_all_options).copied().collect();
    match &fitting[..] {
        [tag] if !options.is_empty() => {
            format!("add type = \"{tag}\": its options are those of this type")
        }
        _ => format!("add type = \"…\"; there are: {}", choices.join(", ")),
    }
}

impl RawStage<'_> {
    /// Checks the table, decodes the options and checks their values. None if that fails, which is
    /// a problem.
    pub(crate) fn decode(
        &self,
        sources: &SourceTexts,
        problems: &mut Vec<Problem>,
    ) -> Option<Decoded<DecodedStage>> {
        let decoded = self.decode_options(sources, problems)?;
        for fault in decoded.value.option_faults() {
            if step::is_reported(&fault, &decoded.replaced_keys, &self.key_spans()) {
                problems.push(self.fault_problem(sources, fault));
            }
        }
        Some(decoded)
    }

    fn decode_options(
        &self,
        sources: &SourceTexts,
        problems: &mut Vec<Problem>,
    ) -> Option<Decoded<DecodedStage>> {
        let table_type = option_type::stage_table(&self.tag)?;
        let stage_type = registry::find(&self.tag);
        decode_table(
            self.as_checked(sources),
            &self.options,
            self.table_span.clone(),
            table_type,
            problems,
            |deserializer| match stage_type {
                Some(stage_type) => (stage_type.decode)(deserializer).map(DecodedStage::Stage),
                None => repeat::Options::deserialize(deserializer).map(DecodedStage::Repeat),
            },
        )
    }

    fn as_checked<'a>(&'a self, sources: &'a SourceTexts) -> CheckedTable<'a> {
        CheckedTable {
            tag: &self.tag,
            span: &self.type_span,
            sources,
            may_lack_keys: false,
        }
    }

    /// Checks the values that the file gives to options which the sweep or the command line
    /// replaces. `replaced`: the keys of these options, by type.
    pub(crate) fn check_replaced_values(
        &self,
        replaced: &BTreeMap<&str, BTreeSet<&str>>,
        sources: &SourceTexts,
        problems: &mut Vec<Problem>,
    ) {
        for stage in &self.repeated_stages {
            stage.check_replaced_values(replaced, sources, problems);
        }
        let Some(keys) = replaced.get(self.tag.as_str()) else {
            return;
        };
        let Some(table_type) = option_type::stage_table(&self.tag) else {
            return;
        };
        let checked = CheckedTable {
            may_lack_keys: true,
            ..self.as_checked(sources)
        };
        problems.extend(checked.check(&self.options, table_type).problems);
        let Some(decoded) = self.decode_options(sources, &mut Vec::new()) else {
            return;
        };
        // Whether a choice is right may depend on options that are replaced with it; a number or a
        // text that is refused is wrong by itself.
        let is_choice = |key: &str| {
            let option = table_type.option(key);
            option.is_some_and(|option| matches!(option.value_type, OptionType::Choice(_)))
        };
        for fault in decoded.value.option_faults() {
            let key = fault.option();
            if keys.contains(key)
                && !is_choice(key)
                && !fault.is_warning
                && step::is_reported(&fault, &decoded.replaced_keys, &self.key_spans())
            {
                problems.push(self.fault_problem(sources, fault));
            }
        }
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

impl DecodedStage {
    fn option_faults(&self) -> Vec<OptionFault> {
        match self {
            Self::Stage(stage) => stage.option_faults(),
            Self::Repeat(options) => options.faults(),
        }
    }
}
