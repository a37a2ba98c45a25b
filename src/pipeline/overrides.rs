//! `--set type.key=value`: arguments as TOML values with the place of every value.

use toml::Spanned;
use toml::de::DeTable;

use crate::pipeline::assignment::{OptionAddress, OptionAssignment};
use crate::pipeline::problem::{Problem, SourceTexts};

/// One `--set` argument.
pub(crate) struct SetArgument {
    /// The argument as it was given.
    argument: String,
    /// The argument as a line of TOML, after as many spaces as its offset in [`SourceTexts`]: so
    /// the parser's spans are offsets in the common space.
    padded_toml: String,
}

/// Overrides of run settings: a table with one key each, with the argument that it came from.
pub(crate) type RunOverrides<'t> = Vec<(String, Spanned<DeTable<'t>>)>;

/// All `--set` arguments, parsed.
#[derive(Default)]
pub(crate) struct RunAndStageOverrides<'t> {
    /// Those of the form `run.key=value`.
    pub run: RunOverrides<'t>,
    /// Those of the form `type.key=value`.
    pub stages: Vec<OptionAssignment<'t>>,
}

impl SetArgument {
    /// Adds the argument to the sources. The value is read as TOML or, if it is not TOML, as a
    /// string.
    pub(crate) fn new(argument: &str, sources: &mut SourceTexts) -> Self {
        let (key, value) = argument.split_once('=').unwrap_or((argument, ""));
        let is_toml = !value.trim().is_empty() && DeTable::parse(&format!("x = {value}")).is_ok();
        let toml_value = if is_toml {
            value.to_owned()
        } else {
            serde_json::Value::from(value).to_string()
        };
        let line = format!("\"{key}\" = {toml_value}");
        let start = sources.add_text(&format!("--set {argument}"), &line);
        Self {
            argument: argument.to_owned(),
            padded_toml: format!("{}{line}", " ".repeat(start)),
        }
    }
}

impl<'t> RunAndStageOverrides<'t> {
    /// Parses the arguments; each that is wrong is a problem.
    pub(crate) fn parse(
        arguments: &'t [SetArgument],
        sources: &SourceTexts,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut overrides = Self::default();
        for argument in arguments {
            if let Err(message) = overrides.add(argument) {
                let toml = &argument.padded_toml;
                let start = toml.len() - toml.trim_start().len();
                problems.push(sources.problem(
                    start..toml.len(),
                    message,
                    "write --set type.key=value, or --set run.key=value",
                ));
            }
        }
        overrides
    }

    fn add(&mut self, set_argument: &'t SetArgument) -> Result<(), String> {
        let SetArgument {
            argument,
            padded_toml,
        } = set_argument;
        let parsed = DeTable::parse(padded_toml)
            .ok()
            .map(Spanned::into_inner)
            .filter(|table| table.len() == 1);
        let Some((key, value)) = parsed.and_then(|table| table.into_iter().next()) else {
            return Err(format!("`{argument}` is not `type.key=value`"));
        };
        if !argument.contains('=') {
            return Err(format!("`{argument}` has no value"));
        }
        let address = OptionAddress::parse(key.get_ref())?;
        if address.tag != "run" {
            self.stages.push(OptionAssignment {
                address,
                key: key.get_ref().to_string(),
                name_span: key.span(),
                value,
            });
            return Ok(());
        }
        let (None, [setting]) = (address.index, &address.path[..]) else {
            return Err(format!("`{argument}` is no run setting"));
        };
        let start = padded_toml.len() - padded_toml.trim_start().len();
        let mut table = DeTable::new();
        table.insert(Spanned::new(key.span(), setting.clone().into()), value);
        let span = start..padded_toml.len();
        self.run
            .push((format!("--set {argument}"), Spanned::new(span, table)));
        Ok(())
    }
}
