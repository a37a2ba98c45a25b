//! The layers of run settings: built-in defaults < `[run]` of the file < `RUNNER_*` environment
//! variables < `--set run.…`. figment merges them and records the layer of every value.

use std::collections::BTreeMap;

use figment::providers::Serialized;
use figment::value::{Dict, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Deserialize;
use toml::Spanned;
use toml::de::{self, DeTable};

use crate::pipeline::file::deserialize_problem;
use crate::pipeline::problem::{Problem, SourceTexts};
use crate::pipeline::settings::{PATH_SETTING_KEYS, RunSettings, SETTING_KEYS};

/// The environment variable of a setting.
fn environment_variable(key: &str) -> String {
    format!("RUNNER_{}", key.to_uppercase())
}

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

/// Merges the layers: `file` is the pipeline's `[run]` table, `overrides` the `--set run.…`
/// arguments, each with its table. A layer with a mistake is left out.
pub fn layer_settings(
    file: Option<&Spanned<DeTable<'_>>>,
    overrides: &[(String, Spanned<DeTable<'_>>)],
    sources: &mut SourceTexts,
    problems: &mut Vec<Problem>,
) -> LayeredSettings {
    let mut figment = Figment::from(Serialized::defaults(RunSettings::default()));
    if let Some(layer) =
        file.and_then(|table| parse_layer("the pipeline", table, sources, problems))
    {
        figment = figment.merge(layer);
    }
    for layer in environment_layers() {
        figment = figment.merge(layer);
    }
    for (argument, table) in overrides {
        if let Some(layer) = parse_layer(argument, table, sources, problems) {
            figment = figment.merge(layer);
        }
    }
    let run: RunSettings = match figment.extract() {
        Ok(run) => run,
        Err(errors) => {
            // The other layers were checked before, so only environment variables can be wrong.
            for error in errors {
                problems.push(environment_problem(&error, sources));
            }
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

/// A table of settings as a layer; None if a key or a value is wrong.
fn parse_layer(
    name: &str,
    table: &Spanned<DeTable<'_>>,
    sources: &SourceTexts,
    problems: &mut Vec<Problem>,
) -> Option<SettingsLayer> {
    let deserializer = || de::Deserializer::from(table.clone());
    // figment drops the spans of values, so the table is first deserialised without it.
    if let Err(error) = RunSettings::deserialize(deserializer()) {
        let span = error.span().unwrap_or(table.span());
        problems.push(deserialize_problem(
            sources,
            span,
            error.message(),
            "`[run]`",
        ));
        return None;
    }
    let values = Dict::deserialize(deserializer()).ok()?;
    Some(SettingsLayer {
        name: name.to_owned(),
        values,
    })
}

/// The environment variables of settings, one layer each. Only the names of settings are looked up:
/// CI systems have `RUNNER_` variables of their own.
fn environment_layers() -> Vec<SettingsLayer> {
    let mut layers = Vec::new();
    for key in SETTING_KEYS {
        let variable = environment_variable(key);
        let text = std::env::var(&variable).unwrap_or_default();
        if text.is_empty() {
            continue;
        }
        let value = if PATH_SETTING_KEYS.contains(&key) {
            Value::from(text)
        } else {
            let Ok(parsed) = text.parse::<Value>();
            parsed
        };
        layers.push(SettingsLayer {
            name: variable,
            values: Dict::from([(key.to_owned(), value)]),
        });
    }
    layers
}

fn environment_problem(error: &figment::Error, sources: &mut SourceTexts) -> Problem {
    let key = error.path.first().cloned().unwrap_or_default();
    let variable = environment_variable(&key);
    let value = std::env::var(&variable).unwrap_or_default();
    let start = sources.add_text("environment", &format!("{variable}={value}"));
    sources.problem(
        start..start + variable.len(),
        format!(
            "the environment variable {variable} is wrong: {}",
            error.kind
        ),
        "",
    )
}
