//! The layers of run settings: built-in defaults < `[run]` of the file < `RUNNER_*` environment
//! variables < `--set run.…`. figment merges them and records the layer of every value.

use std::collections::BTreeMap;

use figment::providers::Serialized;
use figment::value::Dict;
use figment::{Figment, Metadata, Profile, Provider};
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, Deserializer};

use crate::pipeline::arguments::{self, ParsedArguments};
use crate::pipeline::decode::{decode_table, repair};
use crate::pipeline::option_type;
use crate::pipeline::problem::{Problem, SourceTexts};
use crate::pipeline::settings::{RunOverrides, RunSettings, SETTING_KEYS};
use crate::pipeline::table_check::CheckedTable;

/// The settings and, for each, the name of the layer that it comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayeredSettings {
    pub run: RunSettings,
    pub provenance: BTreeMap<String, String>,
}

/// One layer: a table of settings and its name.
struct SettingsLayer {
    name: String,
    values: Dict,
}

impl Provider for SettingsLayer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }
    fn data(&self) -> figment::Result<figment::value::Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// The settings without a pipeline: defaults and environment variables.
///
/// # Errors
/// A problem for each environment variable that is wrong.
pub fn environment_settings() -> Result<RunSettings, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut sources = SourceTexts::new("", "");
    let environment = arguments::environment_arguments(&mut sources, &mut problems);
    let parsed = ParsedArguments::parse(&environment, &[], &[], &sources, &mut problems);
    let layered = layer_settings(None, &parsed.run, &sources, &mut problems);
    if problems.is_empty() {
        Ok(layered.run)
    } else {
        Err(problems)
    }
}

/// Merges the layers: `file` is the pipeline's `[run]` table, `overrides` the environment variables
/// and the `--set run.…` arguments. A wrong value is left out.
pub(crate) fn layer_settings(
    file: Option<&Spanned<DeTable<'_>>>,
    overrides: &RunOverrides<'_>,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> LayeredSettings {
    let mut figment = Figment::from(Serialized::defaults(RunSettings::default()));
    if let Some(layer) =
        file.and_then(|table| parse_layer("the pipeline", table, sources, problems))
    {
        figment = figment.merge(layer);
    }
    for (name, table) in overrides {
        if let Some(layer) = parse_layer(name, table, sources, problems) {
            figment = figment.merge(layer);
        }
    }
    let run: RunSettings = match figment.extract() {
        Ok(run) => run,
        Err(error) => {
            let message = format!("the run settings do not fit together: {error}");
            problems.push(sources.problem(0..0, message, ""));
            return LayeredSettings::default();
        }
    };
    let mut provenance = BTreeMap::new();
    // figment names the layer of `Serialized::defaults` after the type that it serialises.
    for key in SETTING_KEYS {
        if let Some(metadata) = figment.find_metadata(key) {
            let layer = if metadata.name.contains("RunSettings") {
                "default".to_owned()
            } else {
                metadata.name.replace('`', "")
            };
            provenance.insert(key.to_owned(), layer);
        }
    }
    LayeredSettings { run, provenance }
}

/// A table of settings as a layer, without its wrong values.
fn parse_layer(
    name: &str,
    table: &Spanned<DeTable<'_>>,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> Option<SettingsLayer> {
    let span = table.span();
    let checked = CheckedTable {
        tag: "run",
        span: &span,
        sources,
        may_lack_keys: false,
    };
    let table_type = option_type::run_table();
    // figment drops the spans of values, so the table is first decoded without it.
    let decoded = decode_table(
        checked,
        table.get_ref(),
        span.clone(),
        table_type,
        problems,
        |deserializer| RunSettings::deserialize(deserializer),
    );
    let right_values = repair(table.get_ref(), table_type, &decoded?.replaced_keys);
    let values = Dict::deserialize(Deserializer::from(Spanned::new(span, right_values))).ok()?;
    Some(SettingsLayer {
        name: name.to_owned(),
        values,
    })
}
