//! The one list of stages. A new stage is its file, its `mod` line in `mod.rs`, and its line here.

use serde_json::{Map, Value};

use super::stage::StageType;
use super::values::ValueKind;
use super::{
    aggregate, dependencies, evaluate, export, generate, importance, load, pretrain, profile,
    prune, recover,
};

/// Every `type`, in the order of a usual pipeline. `repeat` is not one of them: the pipeline
/// unrolls it.
pub static STAGE_TYPES: &[&StageType] = &[
    &load::TYPE,
    &pretrain::TYPE,
    &dependencies::TYPE,
    &importance::TYPE,
    &aggregate::TYPE,
    &prune::TYPE,
    &recover::TYPE,
    &evaluate::TYPE,
    &generate::TYPE,
    &profile::TYPE,
    &export::TYPE,
];

/// The names of all types.
pub fn tags() -> impl Iterator<Item = &'static str> {
    STAGE_TYPES.iter().map(|stage_type| stage_type.tag)
}

/// The type of this name.
pub fn find(tag: &str) -> Option<&'static StageType> {
    STAGE_TYPES
        .iter()
        .find(|stage_type| stage_type.tag == tag)
        .copied()
}

/// What stages of a type make; all kinds if there is no such type.
pub fn outputs_of_type(tag: &str) -> &'static [ValueKind] {
    find(tag).map_or(ValueKind::ALL, |stage_type| stage_type.makes)
}

/// The type that usually makes values of this kind: the first of the list that does.
pub fn usual_maker(kind: ValueKind) -> &'static str {
    let maker = STAGE_TYPES
        .iter()
        .find(|stage_type| stage_type.makes.contains(&kind));
    maker.map_or("", |stage_type| stage_type.tag)
}

/// Options of a stage of this type in a few words; empty, or begins with a space.
pub fn summary(tag: &str, options: &Map<String, Value>) -> String {
    find(tag).map_or_else(String::new, |stage_type| (stage_type.summary)(options))
}
