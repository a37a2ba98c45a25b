//! The interface of a stage. The options of each `type` implement [`Stage`] in that type's file; a
//! static [`StageType`] in the same file says what holds for all stages of the type. `registry.rs`
//! lists the types.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use toml::de::Deserializer;

use super::context::{Context, MemoryBudget};
use super::environment::{Environment, OptionFault, UnusedOption};
use super::error::{RestoreError, StageError};
use super::facts::EarlierStages;
use super::values::{StageValues, ValueKind};
use secateur_data::InputFile;
use secateur_store::cache::{ProductDraft, StoredProduct};
use secateur_store::tables::Table;

/// What holds for every stage of one `type`, whatever its options.
#[derive(Debug)]
pub struct StageType {
    /// The `type` in a pipeline; also the name of the stage's file and of its first table.
    pub tag: &'static str,
    /// Values that earlier stages must have made. A stage may need more, depending on its options
    /// ([`Stage::needs`]).
    pub needs: &'static [ValueKind],
    /// Values that the stage reads if an earlier stage made them.
    pub uses: &'static [ValueKind],
    /// Values that later stages can use.
    pub makes: &'static [ValueKind],
    /// Values that no longer fit the model afterwards.
    pub spends: &'static [ValueKind],
    /// Whether the outcome depends on `run.seed`.
    pub uses_seed: bool,
    /// Whether the outcome depends on the iteration of the `repeat` that contains the stage.
    pub uses_repeat_position: bool,
    /// Whether the outcome depends on the number of threads and the memory settings, as a
    /// measurement of time does.
    pub depends_on_machine: bool,
    /// Whether the model that the stage makes may read its weights from the input files after the
    /// stage has finished.
    pub model_stays_in_inputs: bool,
    /// Describes the options in a few words, for logs, the plan and the listing of the cache; empty
    /// or begins with a space.
    pub summary: fn(&Map<String, Value>) -> String,
    /// Reads the options of a `[[stage]]` table without its `type`.
    pub decode: fn(Deserializer<'_>) -> Result<Arc<dyn Stage>, toml::de::Error>,
    /// The JSON Schema of the options.
    pub option_schema: fn(&mut SchemaGenerator) -> Schema,
}

impl StageType {
    /// The type that reads options of type `O`. Every other field has the value of most stages:
    /// none, false, no summary.
    pub const fn new<O>(tag: &'static str) -> Self
    where
        O: Stage + DeserializeOwned + JsonSchema + 'static,
    {
        Self {
            tag,
            needs: &[],
            uses: &[],
            makes: &[],
            spends: &[],
            uses_seed: false,
            uses_repeat_position: false,
            depends_on_machine: false,
            model_stays_in_inputs: false,
            summary: |_| String::new(),
            decode: decode_options::<O>,
            option_schema: O::json_schema,
        }
    }
}

fn decode_options<O>(options: Deserializer<'_>) -> Result<Arc<dyn Stage>, toml::de::Error>
where
    O: Stage + DeserializeOwned + 'static,
{
    Ok(Arc::new(O::deserialize(options)?))
}

/// ` key=value` for each of these options that is set to something other than an empty list, in the
/// order of the options. Keys are those of `--set`, such as `duration.updates`.
pub fn describe_options(options: &Map<String, Value>, keys: &[&str]) -> String {
    let mut text = String::new();
    for (key, value) in options {
        if keys.contains(&key.as_str()) {
            push_option(&mut text, key, value);
        }
    }
    text
}

fn push_option(text: &mut String, key: &str, value: &Value) {
    match value {
        Value::Array(values) if values.is_empty() => {}
        Value::Object(options) => {
            for (inner_key, value) in options {
                push_option(text, &format!("{key}.{inner_key}"), value);
            }
        }
        _ => text.push_str(&format!(" {key}={}", value_text(value))),
    }
}

/// The value of an option as it is written in TOML, without quotes and on one line.
pub(crate) fn option_text(value: &impl Serialize) -> String {
    serde_json::to_value(value).map_or_else(|_| String::new(), |value| value_text(&value))
}

fn value_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.replace('\n', "\\n"),
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(value_text).collect();
            format!("[{}]", values.join(","))
        }
        other => other.to_string(),
    }
}

/// A stage with its options: one `[[stage]]` of a pipeline.
///
/// A stage has access to its options, its [`Context`] and its input values, and to nothing else:
/// not to other stages, the tree of variants, or the folder of results.
pub trait Stage: OptionTable {
    fn stage_type(&self) -> &'static StageType;

    /// Values that earlier stages must have made. Default: those of the type.
    fn needs(&self) -> Vec<ValueKind> {
        self.stage_type().needs.to_vec()
    }

    /// The files whose content the outcome depends on. `data_folder`: `run.data`. Default: none.
    fn input_files(&self, _data_folder: Option<&Path>) -> Vec<InputFile> {
        Vec::new()
    }

    /// Mistakes in the values of the options that can be found from the options alone. Default:
    /// none.
    fn option_faults(&self) -> Vec<OptionFault> {
        Vec::new()
    }

    /// Options that do not fit the stages before this one. Default: none.
    fn faults_after(&self, _earlier: &EarlierStages) -> Vec<OptionFault> {
        Vec::new()
    }

    /// Options that have no effect beside these values of the others. Those that are written are
    /// warned of, unless the same line has an effect in another variant or stage. Default: none.
    fn unused_options(&self, _earlier: &EarlierStages) -> Vec<UnusedOption> {
        Vec::new()
    }

    /// Records facts that checks of later stages use. Default: nothing.
    fn state_facts(&self, _facts: &mut EarlierStages) {}

    /// Mistakes that are found when files and headers are read. Also adds the stage's estimate of
    /// memory and disk to the environment, and replaces the header of the model if the stage makes
    /// another one.
    fn environment_faults(&self, environment: &mut Environment) -> Vec<OptionFault>;

    /// Runs the stage. `inputs` holds every value that it needs, and those that it uses as far as
    /// earlier stages made them.
    fn run(&self, context: &Context, inputs: &StageValues) -> Result<StageOutput, StageError>;

    /// Writes into the product what [`Stage::restore`] and [`Stage::restore_model`] need to return
    /// the same values again. A model that is rebuilt faster than it is read is not written.
    /// Default: nothing.
    fn store(&self, _values: &StageValues, _draft: &ProductDraft) -> Result<(), StageError> {
        Ok(())
    }

    /// Reads the values other than models from a stored product; they are small, so this happens
    /// even if no later stage needs them. Default: there are none.
    fn restore(&self, _stored: &StoredProduct) -> Result<StageValues, RestoreError> {
        Ok(StageValues::default())
    }

    /// The inputs from which [`Stage::restore_model`] rebuilds the model. Default: none.
    fn restore_model_inputs(&self) -> &'static [ValueKind] {
        &[]
    }

    /// Rebuilds the models that the stage made, when a later stage needs one: from the stored
    /// product, the input files, or [`Stage::restore_model_inputs`]. Default: the stage makes no
    /// model.
    fn restore_model(
        &self,
        _stored: &StoredProduct,
        _inputs: &StageValues,
        _memory_budget: MemoryBudget,
    ) -> Result<StageValues, RestoreError> {
        Ok(StageValues::default())
    }
}

/// The result of a stage.
#[derive(Default)]
pub struct StageOutput {
    /// Values for later stages.
    pub values: StageValues,
    /// Measurements; each table becomes a Parquet file.
    pub tables: Vec<Table>,
}

impl From<Vec<Table>> for StageOutput {
    fn from(tables: Vec<Table>) -> Self {
        Self {
            tables,
            ..Self::default()
        }
    }
}

impl From<StageValues> for StageOutput {
    fn from(values: StageValues) -> Self {
        Self {
            values,
            ..Self::default()
        }
    }
}

/// Options as a table. Implemented for every serialisable type.
pub trait OptionTable: Debug + Send + Sync {
    /// The options, every default filled in; an option that is not set and has no default is left
    /// out. Variants and products are identified by this table, so neither its keys nor their order
    /// may change.
    fn options(&self) -> Map<String, Value>;
}

impl<T: Serialize + Debug + Send + Sync> OptionTable for T {
    fn options(&self) -> Map<String, Value> {
        let Ok(Value::Object(mut options)) = serde_json::to_value(self) else {
            return Map::new();
        };
        options.retain(|_, value| !value.is_null());
        options
    }
}

impl dyn Stage + '_ {
    /// The stage's `type`.
    pub fn tag(&self) -> &'static str {
        self.stage_type().tag
    }

    /// Every value that the stage reads if it was made: what it needs, then what it uses.
    pub fn all_inputs(&self) -> Vec<ValueKind> {
        let mut inputs = self.needs();
        for &kind in self.stage_type().uses {
            if !inputs.contains(&kind) {
                inputs.push(kind);
            }
        }
        inputs
    }

    /// Values that later stages can use.
    pub fn makes(&self) -> &'static [ValueKind] {
        self.stage_type().makes
    }

    /// Values that no longer fit the model afterwards.
    pub fn spends(&self) -> &'static [ValueKind] {
        self.stage_type().spends
    }

    /// The options in a few words; empty or begins with a space.
    pub fn summary(&self) -> String {
        (self.stage_type().summary)(&self.options())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_described_as_toml_has_them() {
        let options = serde_json::json!({
            "method": "taylor",
            "tasks": ["a", "b"],
            "corpora": [],
            "duration": { "updates": 60 },
            "separator": "\n---\n",
            "ratio": 0.25,
            "seed": 7,
        });
        let options = options.as_object().expect("an object");
        let keys = [
            "method",
            "tasks",
            "corpora",
            "duration",
            "separator",
            "ratio",
        ];
        assert_eq!(
            describe_options(options, &keys),
            " method=taylor tasks=[a,b] duration.updates=60 separator=\\n---\\n ratio=0.25"
        );
    }
}
