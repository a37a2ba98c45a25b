//! Stages in the lists of a pipeline: as written, and unrolled.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::context::RepeatPosition;
use super::environment::{OptionFault, UnusedOption};
use super::stage::Stage;

/// A stage of the unrolled list.
#[derive(Clone, Debug)]
pub struct Step {
    /// Position in the unrolled list, from 0.
    pub position: u32,
    pub stage: Arc<dyn Stage>,
    /// The iteration of the `repeat` that contains the stage; None outside of one, and for stages
    /// whose outcome does not depend on it.
    pub repeat_position: Option<RepeatPosition>,
    /// Number of earlier stages of this type. The stage's random streams are derived from it.
    pub occurrence: u32,
    /// Where its `type` is written.
    pub span: Range<usize>,
    /// Where the values of its options are written, by key.
    pub key_spans: BTreeMap<String, Range<usize>>,
    /// The options whose values in the file are wrong or missing. The stage has other values in
    /// their place, so that the check can go on; a stage that runs has none.
    pub replaced_keys: BTreeSet<String>,
    /// Options that have no effect after the stages before this one.
    pub unused_options: Vec<UnusedOption>,
}

/// Whether a fault of a stage is reported. In a stage with replaced options only faults of other
/// options that are written are: a fault of the whole stage, or a warning, may come from a value
/// that is not in the file.
pub(crate) fn is_reported(
    fault: &OptionFault,
    replaced_keys: &BTreeSet<String>,
    key_spans: &BTreeMap<String, Range<usize>>,
) -> bool {
    let option = fault.option();
    replaced_keys.is_empty()
        || !fault.is_warning && !replaced_keys.contains(option) && key_spans.contains_key(option)
}

impl Step {
    /// Whether a fault of this stage is reported.
    pub(crate) fn reports(&self, fault: &OptionFault) -> bool {
        is_reported(fault, &self.replaced_keys, &self.key_spans)
    }

    /// All that defines the outcome of the step besides its inputs: the type, the occurrence (which
    /// defines the random streams), the iteration of a repeat, and every option. The ids of
    /// variants are hashes of it.
    pub fn identity(&self) -> Value {
        let mut identity = Map::new();
        identity.insert("type".to_owned(), self.stage.tag().into());
        identity.insert("occurrence".to_owned(), self.occurrence.into());
        if let Some(repeat) = self.repeat_position {
            let position = format!("{}/{}", repeat.iteration, repeat.iterations);
            identity.insert("schedule".to_owned(), position.into());
        }
        identity.insert("options".to_owned(), Value::Object(self.stage.options()));
        Value::Object(identity)
    }
}

/// A stage of the unrolled list, or its type if its options could not be decoded.
pub enum UnrolledStage {
    Step(Step),
    /// The type; "" if it is not known. Later stages are checked as if this one made the values of
    /// its type.
    Invalid(String),
}

/// A stage of the list as it is written: a `repeat` holds a list of its own.
#[derive(Clone, Debug)]
pub enum ListedStage {
    Stage(Arc<dyn Stage>),
    Repeat {
        times: u32,
        stages: Vec<Arc<dyn Stage>>,
    },
}

impl ListedStage {
    /// The `[[stage]]` table, every default filled in.
    pub fn to_table(&self) -> Value {
        match self {
            ListedStage::Stage(stage) => stage_table(&**stage),
            ListedStage::Repeat { times, stages } => {
                let inner = stages.iter().map(|stage| stage_table(&**stage)).collect();
                let mut table = Map::new();
                table.insert("type".to_owned(), "repeat".into());
                table.insert("times".to_owned(), (*times).into());
                table.insert("stage".to_owned(), Value::Array(inner));
                Value::Object(table)
            }
        }
    }
}

fn stage_table(stage: &dyn Stage) -> Value {
    let mut table = Map::new();
    table.insert("type".to_owned(), stage.tag().into());
    table.extend(stage.options());
    Value::Object(table)
}
