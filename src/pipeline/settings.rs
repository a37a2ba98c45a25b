//! Run settings, layered by figment: built-in defaults < `[run]` of the file < `RUNNER_*` environment < `--set run.…`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytesize::ByteSize;
use figment::providers::Serialized;
use figment::value::{Dict, Value};
use figment::{Figment, Metadata, Profile, Provider};
use schemars::JsonSchema;
use serde::de::Unexpected;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::Spanned;
use toml::de::{self, DeTable};

use crate::pipeline::file::deserialize_problem;
use crate::pipeline::problem::{Problem, SourceTexts};
use crate::stages::MemoryBudget;
use secateur_base::memory;
use secateur_tensor::Device;

/// Where and how a run takes place. None of it but the seed, and within rounding the device, changes a variant's numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RunSettings {
    /// Every random stream is derived from it, 0 to 9223372036854775807. Default 42.
    pub seed: u64,
    /// The folder of results. Default `results`.
    pub results: PathBuf,
    /// The folder of kept products. Default: `.cache` in the results folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// The most that kept products may take, in bytes or as "20 GiB"; beyond it the least recently used go. Default 50 GiB.
    #[schemars(with = "String")]
    pub cache_limit: ByteSize,
    /// The folder of published data sets, laid out as `<task>/<split>.jsonl`. No default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Threads, 1 to 256. Default: as many as the machine has. Results do not depend on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// How much memory the program may take, in bytes or as "4 GiB": more of it saves arithmetic, and a model that does not fit
    /// is read block by block. Default `auto`: four fifths of what is free. Results do not depend on it.
    #[schemars(with = "String")]
    pub memory: MemoryLimit,
    /// Whether blocks stay on disk and are read one at a time. Default: where the model does not fit. Results do not depend
    /// on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Where tensors live: `cpu`, `cuda` or `cuda:1` (a GPU by its number, from 0), or `auto`, a GPU if this program was built for one
    /// and finds it, else the processor. `cpu-as-gpu` is the processor with the operations of a GPU: slow, to compare.
    /// Default `auto`. Results agree to rounding, and are the same to the bit on one device.
    #[schemars(with = "String")]
    pub device: Device,
    /// How events are written to standard error. Default `text`.
    pub log: LogFormat,
    /// Refuse to run if a file that a stage reads, or the program, is not what `secateur.lock` beside the pipeline says.
    /// Default false.
    pub locked: bool,
}

/// How much memory a program may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryLimit {
    #[default]
    Auto,
    Bytes(ByteSize),
}

impl MemoryLimit {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.as_u64(),
            Self::Auto => memory::resident_bytes() + memory::available_bytes() / 5 * 4,
        }
    }
}

impl Serialize for MemoryLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Bytes(bytes) => bytes.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for MemoryLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl serde::de::Visitor<'_> for Reader {
            type Value = MemoryLimit;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`auto`, a number of bytes, or a size such as \"4 GiB\"")
            }
            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<MemoryLimit, E> {
                Ok(MemoryLimit::Bytes(ByteSize(bytes)))
            }
            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<MemoryLimit, E> {
                let unsigned = u64::try_from(bytes);
                unsigned
                    .map_err(|_| E::invalid_value(Unexpected::Signed(bytes), &self))
                    .and_then(|bytes| self.visit_u64(bytes))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<MemoryLimit, E> {
                match text {
                    "auto" => Ok(MemoryLimit::Auto),
                    size => size
                        .parse()
                        .map(MemoryLimit::Bytes)
                        .map_err(|_| E::invalid_value(Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// The form of events on standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

impl Default for RunSettings {
    fn default() -> Self {
        Self {
            seed: 42,
            results: "results".into(),
            cache: None,
            cache_limit: ByteSize::gib(50),
            data: None,
            threads: None,
            memory: MemoryLimit::Auto,
            stream: None,
            device: Device::Auto,
            log: LogFormat::Text,
            locked: false,
        }
    }
}

impl RunSettings {
    /// How much memory the stages have.
    pub fn budget(&self) -> MemoryBudget {
        MemoryBudget {
            bytes: self.memory.bytes(),
            stream_override: self.stream,
        }
    }

    /// The folder of kept products.
    pub fn cache_folder(&self) -> PathBuf {
        self.cache
            .clone()
            .unwrap_or_else(|| self.results.join(".cache"))
    }
}

/// Every setting's name.
pub const SETTING_KEYS: [&str; 11] = [
    "seed",
    "results",
    "cache",
    "cache_limit",
    "data",
    "threads",
    "memory",
    "stream",
    "device",
    "log",
    "locked",
];

/// Those that are paths, whatever they look like.
const PATH_SETTING_KEYS: [&str; 3] = ["results", "cache", "data"];

/// The environment variable of a setting.
fn environment_variable(key: &str) -> String {
    format!("RUNNER_{}", key.to_uppercase())
}

/// The settings and, for each, which layer it comes from.
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

/// Layers the settings. `sets`: `run.` overrides as one-key tables with the text each was given as.
pub fn layer_settings(
    file: Option<&Spanned<DeTable<'_>>>,
    sets: &[(String, Spanned<DeTable<'_>>)],
    sources: &mut SourceTexts,
    problems: &mut Vec<Problem>,
) -> LayeredSettings {
    let mut figment = Figment::from(Serialized::defaults(RunSettings::default()));
    let tables = file
        .map(|table| ("the pipeline".to_owned(), table))
        .into_iter()
        .chain(sets.iter().map(|(name, table)| (name.clone(), table)));
    let mut layers = Vec::new();
    for (name, table) in tables {
        let deserializer = || de::Deserializer::from(table.clone());
        // First with the places of the values, then for the layer.
        if let Err(error) = RunSettings::deserialize(deserializer()) {
            problems.push(deserialize_problem(
                sources,
                error.span().unwrap_or(table.span()),
                error.message(),
                "`[run]`",
            ));
            continue;
        }
        layers
            .extend(Dict::deserialize(deserializer()).map(|values| SettingsLayer { name, values }));
    }
    let sets = layers.split_off(usize::from(file.is_some()).min(layers.len()));
    for layer in layers {
        figment = figment.merge(layer);
    }
    // Only the settings' own names: CI systems have RUNNER_ variables of their own.
    for key in SETTING_KEYS {
        let variable = environment_variable(key);
        let Ok(text) = std::env::var(&variable) else {
            continue;
        };
        if text.is_empty() {
            continue;
        }
        let Ok(read) = text.parse::<Value>();
        let value = if PATH_SETTING_KEYS.contains(&key) {
            Value::from(text)
        } else {
            read
        };
        figment = figment.merge(SettingsLayer {
            name: variable,
            values: Dict::from([(key.to_owned(), value)]),
        });
    }
    for layer in sets {
        figment = figment.merge(layer);
    }
    let run: RunSettings = match figment.extract() {
        Ok(run) => run,
        Err(errors) => {
            for error in errors {
                let key = error.path.first().cloned().unwrap_or_default();
                let variable = environment_variable(&key);
                let start = sources.add_text(
                    "environment",
                    &format!(
                        "{variable}={}",
                        std::env::var(&variable).unwrap_or_default()
                    ),
                );
                problems.push(sources.problem(
                    start..start + variable.len(),
                    format!(
                        "the environment variable {variable} is wrong: {}",
                        error.kind
                    ),
                    "",
                ));
            }
            return LayeredSettings::default();
        }
    };
    let provenance = SETTING_KEYS.iter().filter_map(|key| {
        let name = figment.find_metadata(key)?.name.to_string();
        let name = if name.contains("RunSettings") {
            "default".to_owned()
        } else {
            name.replace('`', "")
        };
        Some(((*key).to_owned(), name))
    });
    LayeredSettings {
        provenance: provenance.collect(),
        run,
    }
}
