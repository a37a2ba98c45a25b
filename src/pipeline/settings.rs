//! Run settings: `[run]`, their checks, and where each is written. `layers` merges their sources.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::de::Unexpected;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::Spanned;
use toml::de::DeTable;

use crate::pipeline::problem::{Problem, SourceTexts};
use crate::stages::MemoryBudget;
use secateur_base::memory;
use secateur_tensor::Device;

/// Where and how a run takes place. Only the seed and, within rounding, the device change numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RunSettings {
    /// The seed from which every random stream is derived, 0 to 9223372036854775807. Default 42.
    pub seed: u64,
    /// The folder of results. Default `results`.
    pub results: PathBuf,
    /// The folder of stored products. Default: `.cache` in the results folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// The disk space for stored products, in bytes or as "20 GiB"; beyond it the least recently
    /// used are removed. Default 50 GiB.
    #[schemars(with = "String", extend("type" = ["integer", "string"], "format" = "size"))]
    #[serde(deserialize_with = "read_size")]
    pub cache_limit: ByteSize,
    /// The folder of published data sets, laid out as `<task>/<split>.jsonl`. No default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// The number of threads, 1 to 256. Default: as many as the machine has. Results do not depend
    /// on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// The memory that the program may take, in bytes or as "4 GiB": more memory saves arithmetic,
    /// and a model that does not fit is read block by block. Default `auto`: four fifths of what is
    /// free. Results do not depend on it.
    #[schemars(with = "String", extend("type" = ["integer", "string"], "format" = "size"))]
    pub memory: MemoryLimit,
    /// Whether blocks stay on disk and are read one at a time. Default: if the model does not fit.
    /// Results do not depend on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// The device of the tensors: `cpu`, `cuda` or `cuda:1` (a GPU by its number, from 0), or
    /// `auto`: a GPU if this program was built for one and finds it, else the CPU. `cpu-as-gpu` is
    /// the CPU with the operations of a GPU: slow, for comparisons. Default `auto`. Results of two
    /// devices agree within rounding; on one device they are equal to the bit.
    #[schemars(with = "String")]
    pub device: Device,
    /// How events are written to standard error. Default `text`.
    pub log: LogFormat,
    /// Refuse to run if a file that a stage reads, or the program, is not the one in
    /// `secateur.lock` beside the pipeline. Default false.
    pub locked: bool,
}

/// The memory that the program may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryLimit {
    /// The memory that the program has at this moment, and four fifths of the free memory.
    #[default]
    Auto,
    Bytes(ByteSize),
}

impl MemoryLimit {
    /// The limit in bytes. `Auto` is measured at each call.
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
        struct LimitVisitor;
        impl serde::de::Visitor<'_> for LimitVisitor {
            type Value = MemoryLimit;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`auto`, a number of bytes, or a size such as \"4 GiB\"")
            }
            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<MemoryLimit, E> {
                Ok(MemoryLimit::Bytes(ByteSize(bytes)))
            }
            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<MemoryLimit, E> {
                match u64::try_from(bytes) {
                    Ok(bytes) => self.visit_u64(bytes),
                    Err(_) => Err(E::invalid_value(Unexpected::Signed(bytes), &self)),
                }
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
        deserializer.deserialize_any(LimitVisitor)
    }
}

/// Reads a number of bytes or a size.
fn read_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    let expected = "expected a number of bytes, or a size such as \"4 GiB\"";
    ByteSize::deserialize(deserializer).map_err(|_| serde::de::Error::custom(expected))
}

/// The format of events on standard error.
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
    /// The memory that the stages may take.
    pub fn budget(&self) -> MemoryBudget {
        MemoryBudget {
            bytes: self.memory.bytes(),
            stream_override: self.stream,
        }
    }

    /// The folder of stored products.
    pub fn cache_folder(&self) -> PathBuf {
        self.cache
            .clone()
            .unwrap_or_else(|| self.results.join(".cache"))
    }

    /// Checks the values that their types do not restrict enough.
    pub(crate) fn check(
        &self,
        spans: &SettingSpans,
        sources: &SourceTexts,
        problems: &mut Vec<Problem>,
    ) {
        let mut refuse = |key: &str, message: String, help: &str| {
            problems.push(sources.problem(spans.get(key), message, help));
        };
        for (key, path) in [
            ("results", Some(&self.results)),
            ("cache", self.cache.as_ref()),
            ("data", self.data.as_ref()),
        ] {
            if path.is_some_and(|path| path.as_os_str().is_empty()) {
                let help = "write a folder, or leave the line out";
                refuse(key, format!("`{key}` is empty"), help);
            }
        }
        if let Some(threads) = self.threads
            && !(1..=256).contains(&threads)
        {
            let help = "write threads = 1 to 256, or leave the line out";
            refuse("threads", format!("{threads} threads cannot work"), help);
        }
        if i64::try_from(self.seed).is_err() {
            let message = "the seed is larger than a whole number of TOML".to_owned();
            let help = "write a seed of at most 9223372036854775807";
            refuse("seed", message, help);
        }
    }
}

/// Overrides of run settings, by environment variables and by `--set`: a table with one key each,
/// with the name of the layer.
pub(crate) type RunOverrides<'t> = Vec<(String, Spanned<DeTable<'t>>)>;

/// Where each run setting is written, by key; `[run]` itself has the key "".
pub(crate) struct SettingSpans {
    by_key: BTreeMap<String, Range<usize>>,
}

impl SettingSpans {
    /// The spans of the file's `[run]` table and of the overrides, which replace it.
    pub(crate) fn new(file: Option<&Spanned<DeTable<'_>>>, overrides: &RunOverrides<'_>) -> Self {
        let mut by_key = BTreeMap::new();
        by_key.insert(String::new(), file.map_or(0..0, Spanned::span));
        let override_tables = overrides.iter().map(|(_, table)| table);
        for table in file.into_iter().chain(override_tables) {
            for (key, value) in table.get_ref() {
                by_key.insert(key.get_ref().to_string(), value.span());
            }
        }
        Self { by_key }
    }

    pub(crate) fn insert(&mut self, key: &str, span: Range<usize>) {
        self.by_key.insert(key.to_owned(), span);
    }

    /// The place of a setting, or of `[run]` if the setting is not written.
    pub(crate) fn get(&self, key: &str) -> Range<usize> {
        let written = self.by_key.get(key).or(self.by_key.get(""));
        written.cloned().unwrap_or(0..0)
    }
}

/// The name of every setting.
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
