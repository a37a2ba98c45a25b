//! TOML text → tables with the place of every value → stages.
//!
//! Decoding takes two steps: the `type` is taken out of the parsed table, then the rest is read into that type's own
//! options. So an unknown key is blamed on the stage that it stands in, at its own place.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use crate::pipeline::problem::{Problem, SourceTexts, suggest};
use crate::stages::registry;
use crate::stages::{OptionFault, Stage, repeat};

/// A pipeline file, parsed but not decoded.
#[derive(Clone, Default)]
pub struct PipelineDocument<'t> {
    pub run: Option<Spanned<DeTable<'t>>>,
    pub stages: Vec<RawStage<'t>>,
    pub sweep: Option<Spanned<DeTable<'t>>>,
}

/// A `[[stage]]` table without its `type`.
#[derive(Clone, Default)]
pub struct RawStage<'t> {
    /// "" if it could not be read; that has been said.
    pub tag: String,
    /// Where the `type` is written.
    pub type_span: Range<usize>,
    /// Where the table is written.
    pub table_span: Range<usize>,
    pub options: DeTable<'t>,
    /// The list of a `repeat`.
    pub repeated_stages: Vec<RawStage<'t>>,
}

/// A stage or a repeat, decoded.
pub enum DecodedStage {
    Stage(Arc<dyn Stage>),
    Repeat(repeat::Options),
}

/// Reads the file's outline: syntax, top-level keys, and the type of every stage.
pub fn parse<'t>(
    text: &'t str,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> PipelineDocument<'t> {
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            problems.push(sources.problem(
                error.span().unwrap_or(0..0),
                format!("this is not valid TOML: {}", error.message()),
                "",
            ));
            return PipelineDocument::default();
        }
    };
    let mut document = PipelineDocument::default();
    let mut has_stages = false;
    for (key, value) in table {
        let span = key.span();
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("run", DeValue::Table(_)) => document.run = as_table(value),
            ("sweep", DeValue::Table(_)) => document.sweep = as_table(value),
            ("stage", DeValue::Array(_)) => {
                has_stages = true;
                document.stages = parse_stages(value, sources, problems, false);
            }
            ("run" | "sweep", _) => problems.push(sources.problem(
                value.span(),
                format!("`{}` is not a table", key.get_ref()),
                format!("write [{}]", key.get_ref()),
            )),
            ("stage", _) => problems.push(sources.problem(
                span,
                "`stage` is not a list of tables",
                "write [[stage]], with two brackets",
            )),
            (other, _) => problems.push(sources.problem(
                span,
                format!("unknown key `{other}`"),
                suggest(other, &["run", "stage", "sweep"]),
            )),
        }
    }
    if problems.is_empty() && (!has_stages || document.stages.is_empty()) {
        problems.push(sources.problem(
            0..0,
            "the pipeline has no stage",
            "add one: [[stage]] and type = \"load\"",
        ));
    }
    document
}

fn as_table(value: Spanned<DeValue<'_>>) -> Option<Spanned<DeTable<'_>>> {
    let span = value.span();
    match value.into_inner() {
        DeValue::Table(table) => Some(Spanned::new(span, table)),
        _ => None,
    }
}

fn parse_stages<'t>(
    list: Spanned<DeValue<'t>>,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
    inside_repeat: bool,
) -> Vec<RawStage<'t>> {
    let span = list.span();
    let DeValue::Array(items) = list.into_inner() else {
        problems.push(sources.problem(
            span,
            "`stage` is not a list of tables",
            "write [[stage]], with two brackets",
        ));
        return Vec::new();
    };
    let items = items.into_iter();
    items
        .map(|item| parse_stage(item, sources, problems, inside_repeat).unwrap_or_default())
        .collect()
}

fn parse_stage<'t>(
    item: Spanned<DeValue<'t>>,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
    inside_repeat: bool,
) -> Option<RawStage<'t>> {
    let whole = item.span();
    let choices = || registry::tags().chain(["repeat"]).collect::<Vec<_>>();
    let mut refuse = |at: Range<usize>, message: String, help: String| {
        problems.push(sources.problem(at, message, help));
        None
    };
    let DeValue::Table(mut options) = item.into_inner() else {
        return refuse(
            whole,
            "a stage is not a table".into(),
            "write [[stage]]".into(),
        );
    };
    let Some((_, tag)) = options.remove_entry("type") else {
        return refuse(
            whole,
            "this stage has no `type`".into(),
            format!("add type = \"…\"; there are: {}", choices().join(", ")),
        );
    };
    let at = tag.span();
    let DeValue::String(tag) = tag.into_inner() else {
        return refuse(
            at,
            "the `type` of a stage is a text".into(),
            format!("there are: {}", choices().join(", ")),
        );
    };
    let tag = tag.into_owned();
    if !choices().contains(&tag.as_str()) {
        return refuse(
            at,
            format!("unknown stage `{tag}`"),
            suggest(&tag, &choices()),
        );
    }
    let mut inner = Vec::new();
    if tag == "repeat" {
        if inside_repeat {
            return refuse(
                at,
                "a `repeat` inside a `repeat` is not supported".into(),
                "write its stages one level up".into(),
            );
        }
        match options.remove_entry("stage") {
            Some((_, list)) => inner = parse_stages(list, sources, problems, true),
            None => {
                return refuse(
                    at,
                    "this `repeat` has no stages".into(),
                    "add a list: [[stage.stage]] and type = \"importance\"".into(),
                );
            }
        }
    }
    Some(RawStage {
        tag,
        type_span: at,
        table_span: whole,
        options,
        repeated_stages: inner,
    })
}

impl RawStage<'_> {
    /// Reads the options and checks their values; problems are blamed at their keys.
    pub fn decode(
        &self,
        sources: &SourceTexts,
        problems: &mut Vec<Problem>,
    ) -> Option<DecodedStage> {
        if self.tag.is_empty() {
            return None;
        }
        let options =
            || Deserializer::from(Spanned::new(self.table_span.clone(), self.options.clone()));
        let decoded = if self.tag == "repeat" {
            <repeat::Options as serde::Deserialize>::deserialize(options())
                .map(DecodedStage::Repeat)
        } else {
            let stage_type = registry::find(&self.tag)?;
            (stage_type.decode)(options()).map(DecodedStage::Stage)
        };
        match decoded {
            Ok(decoded) => {
                let faults = match &decoded {
                    DecodedStage::Stage(stage) => stage.option_faults(),
                    DecodedStage::Repeat(options) => options.faults(),
                };
                problems.extend(
                    faults
                        .into_iter()
                        .map(|fault| self.fault_problem(sources, fault)),
                );
                Some(decoded)
            }
            Err(error) => {
                let span = error
                    .span()
                    .filter(|span| *span != self.table_span)
                    .unwrap_or(self.type_span.clone());
                problems.push(deserialize_problem(
                    sources,
                    span,
                    error.message(),
                    &format!("`{}`", self.tag),
                ));
                None
            }
        }
    }

    /// A fault at the place of its key; at the stage's `type` if the key is not written.
    fn fault_problem(&self, sources: &SourceTexts, fault: OptionFault) -> Problem {
        let span = self
            .key_spans()
            .remove(&fault.key)
            .unwrap_or(self.type_span.clone());
        sources.problem(span, fault.message, fault.help)
    }

    /// Where the value of each option is written: `duration`, `duration.updates`, `tasks`, `tasks[0]`.
    pub fn key_spans(&self) -> BTreeMap<String, Range<usize>> {
        let mut spans = BTreeMap::new();
        for (key, value) in &self.options {
            let key = key.get_ref();
            spans.insert(key.to_string(), value.span());
            match value.get_ref() {
                DeValue::Table(inner) => spans.extend(
                    inner
                        .iter()
                        .map(|(sub, value)| (format!("{key}.{}", sub.get_ref()), value.span())),
                ),
                DeValue::Array(items) => spans.extend(
                    items
                        .iter()
                        .enumerate()
                        .map(|(i, item)| (format!("{key}[{i}]"), item.span())),
                ),
                _ => {}
            }
        }
        spans
    }
}

/// serde's words for a wrong key or value, with what was meant.
pub fn deserialize_problem(
    sources: &SourceTexts,
    span: Range<usize>,
    message: &str,
    of: &str,
) -> Problem {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let message = message.trim();
    match (message.split_whitespace().next(), &quoted[..]) {
        (Some("unknown"), [wrong, choices @ ..]) if !choices.is_empty() => {
            let what = if message.starts_with("unknown field") {
                "key"
            } else {
                "value"
            };
            sources.problem(
                span,
                format!("unknown {what} `{wrong}` in {of}"),
                suggest(wrong, choices),
            )
        }
        (Some("missing"), [name]) => sources.problem(
            span,
            format!("{of} lacks the key `{name}`"),
            format!("add {name} = …"),
        ),
        _ => sources.problem(span, format!("{of}: {message}"), ""),
    }
}
