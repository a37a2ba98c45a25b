//! The one list of stages: for each `type` its options, what it needs, makes and spends.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::{Map, Value};
use toml::de::Deserializer;

use crate::stages::{
    Environment, InputFile, OptionFault, aggregate, dependencies, evaluate, export, generate,
    importance, load, pretrain, profile, prune, recover,
};

/// A value that one stage hands to a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ValueKind {
    Model,
    /// The model as it was loaded.
    Dense,
    Graph,
    Scores,
    GroupScores,
    Plan,
    Adapter,
}

impl ValueKind {
    pub const ALL: &[ValueKind] = &[
        ValueKind::Model,
        ValueKind::Dense,
        ValueKind::Graph,
        ValueKind::Scores,
        ValueKind::GroupScores,
        ValueKind::Plan,
        ValueKind::Adapter,
    ];

    /// In few words.
    pub fn label(self) -> &'static str {
        match self {
            ValueKind::Model => "model",
            ValueKind::Dense => "dense model",
            ValueKind::Graph => "set of groups",
            ValueKind::Scores => "set of scores",
            ValueKind::GroupScores => "set of scores of units",
            ValueKind::Plan => "pruning plan",
            ValueKind::Adapter => "adapter",
        }
    }

    /// As a message says it, and the stage that makes it.
    pub fn phrase_and_maker(self) -> (&'static str, &'static str) {
        match self {
            ValueKind::Model => ("a model", "load"),
            ValueKind::Dense => ("the dense model", "load"),
            ValueKind::Graph => ("the groups", "dependencies"),
            ValueKind::Scores => ("scores", "importance"),
            ValueKind::GroupScores => ("scores of units", "aggregate"),
            ValueKind::Plan => ("a pruning plan", "prune"),
            ValueKind::Adapter => ("an adapter", "recover"),
        }
    }
}

macro_rules! stages {
    ($( $tag:literal => $variant:ident($options:ty) needs [$($need:ident)*] uses [$($use:ident)*] makes [$($make:ident)*] spends [$($spend:ident)*] draws $draws:literal; )+) => {
        /// A stage with its options.
        #[derive(Clone, Debug)]
        pub enum Stage { $( $variant($options) ),+ }

        impl Stage {
            /// Every `type`, in the order of a usual pipeline. `repeat` is unrolled before there is a Stage.
            pub const TAGS: &[&str] = &[$($tag),+];

            /// Reads the options of a `type`; None if there is no such type.
            pub fn decode(tag: &str, options: Deserializer<'_>) -> Option<Result<Self, toml::de::Error>> {
                match tag { $( $tag => Some(<$options>::deserialize(options).map(Stage::$variant)), )+ _ => None }
            }
            pub fn tag(&self) -> &'static str { match self { $( Stage::$variant(_) => $tag ),+ } }
            /// What stages of a `type` make, whatever their options.
            pub fn outputs_of_type(tag: &str) -> &'static [ValueKind] { match tag { $( $tag => &[$(ValueKind::$make),*], )+ _ => ValueKind::ALL } }
            /// What earlier stages must have made.
            pub fn needs(&self) -> &'static [ValueKind] { match self { $( Stage::$variant(_) => &[$(ValueKind::$need),*] ),+ } }
            /// What it takes of what was made: all that it needs, and what it uses where it is there.
            pub fn all_inputs(&self) -> impl Iterator<Item = ValueKind> {
                let uses: &[ValueKind] = match self { $( Stage::$variant(_) => &[$(ValueKind::$use),*] ),+ };
                self.needs().iter().chain(uses).copied()
            }
            /// Whether its outcome depends on the seed.
            pub fn uses_seed(&self) -> bool { match self { $( Stage::$variant(_) => $draws ),+ } }
            /// What later stages can use.
            pub fn makes(&self) -> &'static [ValueKind] { match self { $( Stage::$variant(_) => &[$(ValueKind::$make),*] ),+ } }
            /// What no longer fits the model afterwards.
            pub fn spends(&self) -> &'static [ValueKind] { match self { $( Stage::$variant(_) => &[$(ValueKind::$spend),*] ),+ } }
            /// Mistakes in the options' values.
            pub fn option_faults(&self) -> Vec<OptionFault> { match self { $( Stage::$variant(options) => options.faults() ),+ } }
            /// What it reads; `data` is `run.data`.
            pub fn input_files(&self, data: Option<&Path>) -> Vec<InputFile> { match self { $( Stage::$variant(options) => options.inputs(data) ),+ } }
            /// Mistakes that show when files and earlier stages are looked at.
            pub fn environment_faults(&self, world: &mut Environment) -> Vec<OptionFault> { match self { $( Stage::$variant(options) => options.environment_faults(world) ),+ } }
            /// The options, every default filled in; one that is not given and has none is left out.
            pub fn options(&self) -> Map<String, Value> {
                let value = match self { $( Stage::$variant(options) => serde_json::to_value(options) ),+ };
                let Ok(Value::Object(mut options)) = value else { return Map::new() };
                options.retain(|_, value| !value.is_null());
                options
            }
            /// The JSON Schema of each type's options.
            pub fn option_schemas(generator: &mut SchemaGenerator) -> Vec<(&'static str, Schema)> {
                vec![$( ($tag, <$options>::json_schema(generator)) ),+]
            }
        }
    };
}

stages! {
    "load"         => Load(load::Options)                 needs []                        uses []     makes [Model Dense]   spends [Graph Scores GroupScores Plan Adapter] draws false;
    "pretrain"     => Pretrain(pretrain::Options)         needs []                        uses []     makes [Model Dense]   spends [Graph Scores GroupScores Plan Adapter] draws true;
    "dependencies" => Dependencies(dependencies::Options) needs [Model]                   uses []     makes [Graph]         spends [Scores GroupScores] draws false;
    "importance"   => Importance(importance::Options)     needs [Model Graph]             uses []     makes [Scores]        spends [GroupScores] draws true;
    "aggregate"    => Aggregate(aggregate::Options)       needs [Model Graph Scores]      uses []     makes [GroupScores]   spends [] draws false;
    "prune"        => Prune(prune::Options)               needs [Model Graph GroupScores] uses [Plan] makes [Model Plan]    spends [Graph Scores GroupScores Adapter] draws false;
    "recover"      => Recover(recover::Options)           needs [Model]                   uses []     makes [Model Adapter] spends [Scores GroupScores] draws true;
    "evaluate"     => Evaluate(evaluate::Options)         needs [Model]                   uses []     makes []              spends [] draws false;
    "generate"     => Generate(generate::Options)         needs [Model]                   uses []     makes []              spends [] draws false;
    "profile"      => Profile(profile::Options)           needs [Model Dense]             uses []     makes []              spends [] draws false;
    "export"       => Export(export::Options)             needs [Model]                   uses [Plan] makes []              spends [] draws false;
}

/// The options that say what a stage does, in few words.
pub fn summary(options: &Map<String, Value>) -> String {
    const SUMMARY_KEYS: [&str; 18] = [
        "model", "grouping", "method", "taylor", "with", "level", "ratio", "scope", "rank",
        "duration", "tasks", "corpora", "formats", "updates", "prompts", "file", "prefill",
        "shots",
    ];
    let has_form = options
        .get("method")
        .is_some_and(|method| method == "taylor");
    let tells = |key: &str| SUMMARY_KEYS.contains(&key) && (key != "taylor" || has_form);
    let words = options
        .iter()
        .filter(|(key, value)| tells(key) && value.as_array().is_none_or(|list| !list.is_empty()));
    let word = |(key, value): (&String, &Value)| {
        format!(
            " {key}={}",
            value
                .as_str()
                .map_or_else(|| value.to_string().replace('"', ""), str::to_owned)
        )
    };
    words.map(word).collect()
}

/// A stage of the unrolled list.
#[derive(Clone, Debug)]
pub struct Step {
    /// Position in the unrolled list, from 0.
    pub position: u32,
    pub stage: Stage,
    /// Inside a `repeat`: which of its times this is.
    pub schedule: Option<prune::RepeatPosition>,
    /// How many stages of this type stand before it: names its random streams.
    pub occurrence: u32,
    /// Where its `type` is written.
    pub span: Range<usize>,
    /// Where the values of its options are written, by key.
    pub key_spans: BTreeMap<String, Range<usize>>,
}

impl Step {
    /// What makes two steps the same: the type, every option, its place in a repeat, and its random streams.
    pub fn identity(&self) -> Value {
        let mut identity = Map::new();
        identity.insert("type".to_owned(), self.stage.tag().into());
        identity.insert("occurrence".to_owned(), self.occurrence.into());
        if let Some(schedule) = self.schedule {
            identity.insert(
                "schedule".to_owned(),
                format!("{}/{}", schedule.iteration, schedule.iterations).into(),
            );
        }
        identity.insert("options".to_owned(), Value::Object(self.stage.options()));
        Value::Object(identity)
    }
}

/// A stage of the unrolled list, as far as it could be read.
#[expect(
    clippy::large_enum_variant,
    reason = "there are a few for each variant, and none is kept"
)]
pub enum UnrolledStage {
    Step(Step),
    /// A stage with a mistake in it, by its type; "" if that is the mistake. Later stages may count on it.
    Invalid(String),
}

/// The list as it is written: `repeat` keeps its own.
#[derive(Clone, Debug)]
pub enum ListedStage {
    Stage(Stage),
    Repeat { times: u32, stages: Vec<Stage> },
}

impl ListedStage {
    /// As a `[[stage]]` table, every default filled in.
    pub fn to_table(&self) -> Value {
        let tagged = |tag: &str, options: Map<String, Value>| {
            let mut table = Map::new();
            table.insert("type".to_owned(), tag.into());
            table.extend(options);
            Value::Object(table)
        };
        match self {
            ListedStage::Stage(stage) => tagged(stage.tag(), stage.options()),
            ListedStage::Repeat { times, stages } => {
                let inner = stages
                    .iter()
                    .map(|stage| tagged(stage.tag(), stage.options()))
                    .collect();
                tagged(
                    "repeat",
                    [
                        ("times".to_owned(), (*times).into()),
                        ("stage".to_owned(), Value::Array(inner)),
                    ]
                    .into_iter()
                    .collect(),
                )
            }
        }
    }
}
