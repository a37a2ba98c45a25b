//! Stages in the lists of a pipeline: as written, and unrolled.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::context::RepeatPosition;
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
}

impl Step {
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
