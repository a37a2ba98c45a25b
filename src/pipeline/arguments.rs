//! Values that are given outside of the pipeline file: `--set type.key=value`, `--sweep
//! type.key=v1,v2`, and the environment variables of run settings.
//!
//! A value is read as TOML. Where its option is a text, or if it is not TOML, it is the text itself:
//! `--set load.model=2026-11-29` names a folder.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::pipeline::address::OptionAddress;
use crate::pipeline::assignment::OptionAssignment;
use crate::pipeline::option_type::{self, OptionType};
use crate::pipeline::problem::{ENVIRONMENT, Problem, SourceTexts};
use crate::pipeline::settings::{RunOverrides, SETTING_KEYS};

/// A `key=value`, added to the sources.
pub(crate) struct Argument {
    /// The name of the layer of run settings that it makes: `--set run.seed=3`, `RUNNER_SEED`.
    name: String,
    key: String,
    /// The span of the key in the sources.
    key_span: Range<usize>,
    /// Each value as a line of TOML. Its value is at the same offset as in the sources, after
    /// spaces, so that the parser's spans are spans of the sources. None: there is no `=`.
    values: Option<Vec<PaddedValue>>,
    span: Range<usize>,
}

/// A value as a line of TOML, after spaces.
struct PaddedValue {
    toml: String,
    /// The offset of the value in `toml`.
    start: usize,
}

/// An argument of `--sweep`.
pub(crate) struct SweepArgument<'t> {
    /// The option with each of its values. Not empty.
    pub values: Vec<OptionAssignment<'t>>,
}

impl<'t> SweepArgument<'t> {
    /// One combination for each value.
    pub(crate) fn axis(&self) -> Vec<Vec<OptionAssignment<'t>>> {
        let values = self.values.iter();
        values.map(|value| vec![value.clone()]).collect()
    }
}

/// The arguments of `--set` and `--sweep` and the environment variables.
#[derive(Default)]
pub(crate) struct ParsedArguments<'t> {
    /// Environment variables, then `--set run.key=value`.
    pub run: RunOverrides<'t>,
    /// `--set type.key=value`.
    pub set: Vec<OptionAssignment<'t>>,
    pub sweep: Vec<SweepArgument<'t>>,
}

impl Argument {
    /// `--set key=value`.
    pub(crate) fn set(argument: &str, sources: &mut SourceTexts) -> Self {
        Self::new("command line", "--set ", argument, None, false, sources)
    }

    /// `--sweep key=v1,v2`.
    pub(crate) fn sweep(argument: &str, sources: &mut SourceTexts) -> Self {
        Self::new("command line", "--sweep ", argument, None, true, sources)
    }

    /// The environment variable of a run setting.
    fn environment(setting: &str, variable: &str, value: &str, sources: &mut SourceTexts) -> Self {
        let key = format!("run.{setting}");
        let argument = format!("{variable}={value}");
        Self::new(ENVIRONMENT, "", &argument, Some(key), false, sources)
    }

    /// `option`: what the value is assigned to, if it is not the key of the argument.
    fn new(
        source_name: &str,
        prefix: &str,
        argument: &str,
        option: Option<String>,
        has_several_values: bool,
        sources: &mut SourceTexts,
    ) -> Self {
        let text = format!("{prefix}{argument}");
        let start = sources.add_text(source_name, &text);
        let key_start = start + prefix.len();
        let (key, value) = match argument.split_once('=') {
            // In `key = value`, written as in the file, the spaces belong to neither.
            Some((key, value)) if key.ends_with(' ') => (key.trim_end(), Some(value.trim_start())),
            Some((key, value)) => (key, Some(value)),
            None => (argument, None),
        };
        let value_start = start + text.len() - value.map_or(0, str::len);
        let values = value.map(|value| {
            let parts = match has_several_values {
                true => split_values(value),
                false => std::iter::once(0..value.len()).collect(),
            };
            let parts = parts.into_iter();
            parts
                .map(|part| PaddedValue::new(&value[part.clone()], value_start + part.start))
                .collect()
        });
        let name = match &option {
            Some(_) => key.to_owned(),
            None => text.clone(),
        };
        Self {
            name,
            key: option.unwrap_or_else(|| key.to_owned()),
            key_span: key_start..key_start + key.len(),
            values,
            span: start..start + text.len(),
        }
    }

    /// The option, and each value as its option expects it.
    fn parse(&self) -> Result<(OptionAddress, Vec<Spanned<DeValue<'_>>>), String> {
        let Some(values) = &self.values else {
            return Err(format!("`{}` has no value", self.key));
        };
        let address = OptionAddress::parse(&self.key)?;
        let value_type = option_type_of(&address);
        let values = values.iter().map(|value| value.parse(value_type));
        Ok((address, values.collect()))
    }

    fn assignment<'t>(
        &self,
        address: OptionAddress,
        value: Spanned<DeValue<'t>>,
    ) -> OptionAssignment<'t> {
        OptionAssignment {
            address,
            key: self.key.clone(),
            name_span: self.key_span.clone(),
            value,
        }
    }
}

/// The type of an option; None if there is no such option.
pub(crate) fn option_type_of(address: &OptionAddress) -> Option<&'static OptionType> {
    let table = match address.tag.as_str() {
        "run" => option_type::run_table(),
        tag => option_type::stage_table(tag)?,
    };
    table.type_at(&address.path)
}

impl PaddedValue {
    /// `start`: the offset of the value in the sources, at least 2.
    fn new(value: &str, start: usize) -> Self {
        Self {
            toml: format!("{}x={value}", " ".repeat(start - 2)),
            start,
        }
    }

    /// The value as its option expects it.
    fn parse(&self, value_type: Option<&OptionType>) -> Spanned<DeValue<'_>> {
        let text = &self.toml[self.start..];
        let span = self.start..self.toml.len();
        let as_text = || Spanned::new(span.clone(), DeValue::String(text.into()));
        match self.parse_toml() {
            None => as_text(),
            Some(value) => match value_type {
                Some(value_type) if is_text_in_place_of(&value, value_type) => as_text(),
                Some(value_type) => read_texts(value, value_type, &self.toml),
                None => value,
            },
        }
    }

    /// The value as TOML; None if it is none.
    fn parse_toml(&self) -> Option<Spanned<DeValue<'_>>> {
        let table = DeTable::parse(&self.toml).ok()?.into_inner();
        let mut entries = table.into_iter();
        let (_, value) = entries.next()?;
        // More lines, or a comment after the value: the whole is a text.
        let is_whole = value.span().end == self.toml.trim_end().len();
        (entries.next().is_none() && is_whole).then_some(value)
    }
}

/// Whether a value is a number, a date or a boolean, and its option expects a text.
fn is_text_in_place_of(value: &Spanned<DeValue<'_>>, value_type: &OptionType) -> bool {
    let value = value.get_ref();
    if matches!(
        value,
        DeValue::String(_) | DeValue::Array(_) | DeValue::Table(_)
    ) {
        return false;
    }
    match value_type {
        OptionType::Text | OptionType::Choice(_) => true,
        OptionType::Size => !value.is_integer(),
        OptionType::OneOf(types) => {
            let is_own_type = |one: &OptionType| match one {
                OptionType::Number => value.is_float() || value.is_integer(),
                OptionType::Integer(..) => value.is_integer(),
                OptionType::Boolean => value.is_bool(),
                _ => false,
            };
            let is_text = |one: &OptionType| matches!(one, OptionType::Text);
            types.iter().any(is_text) && !types.iter().any(is_own_type)
        }
        _ => false,
    }
}

/// The value with every number, date and boolean inside it as a text where a text is expected.
/// `source`: the text that the spans refer to.
fn read_texts<'t>(
    value: Spanned<DeValue<'t>>,
    value_type: &OptionType,
    source: &'t str,
) -> Spanned<DeValue<'t>> {
    let span = value.span();
    if is_text_in_place_of(&value, value_type) {
        return Spanned::new(span.clone(), DeValue::String(source[span].into()));
    }
    let value = match (value.into_inner(), value_type) {
        (DeValue::Array(items), OptionType::List(item_type, _)) => DeValue::Array(
            items
                .into_iter()
                .map(|item| read_texts(item, item_type, source))
                .collect(),
        ),
        (DeValue::Table(entries), OptionType::Table(tables)) => {
            let mut read = DeTable::new();
            for (key, value) in entries {
                let mut options = tables
                    .iter()
                    .filter_map(|table| table.option(key.get_ref()));
                let value = match options.next() {
                    Some(option) => read_texts(value, &option.value_type, source),
                    None => value,
                };
                read.insert(key, value);
            }
            DeValue::Table(read)
        }
        (other, _) => other,
    };
    Spanned::new(span, value)
}

/// Splits at the commas outside of quotes and brackets, and leaves out spaces around the parts. A
/// quote counts at the beginning of a value
/// and inside brackets.
fn split_values(text: &str) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut depth = 0usize;
    let mut quote: Option<char> = None;
    let mut is_escaped = false;
    for (offset, character) in text.char_indices() {
        if let Some(open) = quote {
            let is_end = character == open && !is_escaped;
            is_escaped = open == '"' && character == '\\' && !is_escaped;
            if is_end {
                quote = None;
            }
            continue;
        }
        match character {
            '"' | '\'' if depth > 0 || text[start..offset].trim().is_empty() => {
                quote = Some(character);
            }
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(start..offset);
                start = offset + 1;
            }
            _ => {}
        }
    }
    parts.push(start..text.len());
    let without_spaces = |part: Range<usize>| {
        let value = &text[part.clone()];
        let start = part.start + value.len() - value.trim_start().len();
        start..start + value.trim().len()
    };
    parts.into_iter().map(without_spaces).collect()
}

/// The environment variable of a setting.
fn environment_variable(setting: &str) -> String {
    format!("RUNNER_{}", setting.to_uppercase())
}

/// The environment variables of run settings that are set and not empty. Only the names of settings
/// are looked up: CI systems have `RUNNER_` variables of their own.
pub(crate) fn environment_arguments(
    sources: &mut SourceTexts,
    problems: &mut Vec<Problem>,
) -> Vec<Argument> {
    let mut arguments = Vec::new();
    for setting in SETTING_KEYS {
        let variable = environment_variable(setting);
        let Some(value) = std::env::var_os(&variable).filter(|value| !value.is_empty()) else {
            continue;
        };
        match value.to_str() {
            Some(value) => {
                arguments.push(Argument::environment(setting, &variable, value, sources));
            }
            None => {
                let start = sources.add_text(ENVIRONMENT, &variable);
                let span = start..start + variable.len();
                problems.push(sources.problem(span, "it is not UTF-8", ""));
            }
        }
    }
    arguments
}

impl<'t> ParsedArguments<'t> {
    /// Where mistakes of the whole sweep are reported: at the first `--sweep`, else at `[sweep]`.
    pub(crate) fn sweep_span(&self, table: Option<&Spanned<DeTable<'_>>>) -> Range<usize> {
        let argument = self.sweep.iter().flat_map(|sweep| &sweep.values).next();
        match argument {
            Some(option) => option.name_span.clone(),
            None => table.map_or(0..0, Spanned::span),
        }
    }

    /// Parses the arguments; each that is wrong is a problem.
    pub(crate) fn parse(
        environment: &'t [Argument],
        set: &'t [Argument],
        sweep: &'t [Argument],
        sources: &SourceTexts,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut parsed = Self::default();
        for argument in environment.iter().chain(set) {
            if let Err((message, help)) = parsed.add_set(argument) {
                problems.push(sources.problem(argument.span.clone(), message, help));
            }
        }
        for argument in sweep {
            match parsed.parse_sweep(argument) {
                Ok(sweep) => parsed.sweep.push(sweep),
                Err((message, help)) => {
                    problems.push(sources.problem(argument.span.clone(), message, help));
                }
            }
        }
        parsed
    }

    /// Adds an argument of `--set` or an environment variable. The error is a message and its help.
    fn add_set(&mut self, argument: &'t Argument) -> Result<(), (String, String)> {
        let usage = "write --set type.key=value, or --set run.key=value";
        let (address, values) = argument
            .parse()
            .map_err(|message| (message, usage.to_owned()))?;
        for value in values {
            if address.tag != "run" {
                self.set.push(argument.assignment(address.clone(), value));
                continue;
            }
            let (None, [setting]) = (address.index, &address.path[..]) else {
                let message = format!("`{}` is not a run setting", argument.key);
                return Err((message, format!("there are: {}", SETTING_KEYS.join(", "))));
            };
            let key = Spanned::new(argument.key_span.clone(), setting.clone().into());
            let mut table = DeTable::new();
            table.insert(key, value);
            let table = Spanned::new(argument.span.clone(), table);
            self.run.push((argument.name.clone(), table));
        }
        Ok(())
    }

    /// Reads an argument of `--sweep`. The error is a message and its help.
    fn parse_sweep(&self, argument: &'t Argument) -> Result<SweepArgument<'t>, (String, String)> {
        let usage = "write --sweep type.key=value,value";
        let (address, mut values) = argument
            .parse()
            .map_err(|message| (message, usage.to_owned()))?;
        if address.tag == "run" {
            return Err((
                "run settings cannot be swept".to_owned(),
                "for several seeds run the pipeline with --set run.seed=…".to_owned(),
            ));
        }
        let is_empty = |value: &Spanned<DeValue<'_>>| {
            let text = value.get_ref().as_str();
            text.is_some_and(|text| text.is_empty() && value.span().is_empty())
        };
        if values.iter().any(is_empty) {
            let message = format!("`--sweep {}` has an empty value", argument.key);
            return Err((message, usage.to_owned()));
        }
        if let [only] = &values[..]
            && let DeValue::Array(items) = only.get_ref()
            && is_list_of_values(items, option_type_of(&address))
        {
            let value_type = option_type_of(&address);
            let source = argument.values.iter().flatten().next();
            let items = items.iter().cloned();
            values = match (value_type, source) {
                (Some(value_type), Some(source)) => items
                    .map(|item| read_texts(item, value_type, &source.toml))
                    .collect(),
                _ => items.collect(),
            };
        }
        if values.is_empty() {
            let message = format!("`--sweep {}` has no value", argument.key);
            return Err((message, usage.to_owned()));
        }
        Ok(SweepArgument {
            values: values
                .into_iter()
                .map(|value| argument.assignment(address.clone(), value))
                .collect(),
        })
    }
}

/// Whether a list is the values of an option, and not one value of an option that is a list.
fn is_list_of_values(items: &[Spanned<DeValue<'_>>], value_type: Option<&OptionType>) -> bool {
    let is_list = |item: &Spanned<DeValue<'_>>| item.get_ref().is_array();
    match value_type {
        Some(OptionType::List(item_type, _)) => {
            !matches!(**item_type, OptionType::List(..))
                && !items.is_empty()
                && items.iter().all(is_list)
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::split_values;

    #[test]
    fn values_are_split_at_commas_outside_of_quotes_and_brackets() {
        let split = |text: &'static str| -> Vec<&str> {
            split_values(text)
                .into_iter()
                .map(|part| &text[part])
                .collect()
        };
        assert_eq!(split("0.1, 0.25"), ["0.1", "0.25"]);
        assert_eq!(split("[1,2],[3,4]"), ["[1,2]", "[3,4]"]);
        assert_eq!(split(r#""a,b",'c,d',e"#), [r#""a,b""#, "'c,d'", "e"]);
        assert_eq!(split(r#""a\",b",c"#), [r#""a\",b""#, "c"]);
        assert_eq!(split("it's,b"), ["it's", "b"], "an apostrophe is no quote");
        assert_eq!(split("{ updates = 1 },{ epochs = 2 }").len(), 2);
    }
}
