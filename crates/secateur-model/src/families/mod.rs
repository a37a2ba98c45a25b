//! The supported families of models: one file each, and one line in `FAMILIES`.

mod gpt_neox;
mod llama;
mod qwen2;

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::family::{Family, ModelClass};

/// Every family.
static FAMILIES: [&Family; 3] = [&llama::LLAMA, &qwen2::QWEN2, &gpt_neox::GPT_NEOX];

/// The family of a `model_type`, and the class that has it.
pub fn find(model_type: &str) -> Option<(&'static Family, &'static ModelClass)> {
    FAMILIES.iter().find_map(|&family| {
        let class = family
            .classes
            .iter()
            .find(|class| class.model_type == model_type)?;
        Some((family, class))
    })
}

/// Every `model_type` that can be read.
pub(crate) fn model_types() -> impl Iterator<Item = &'static str> {
    FAMILIES
        .iter()
        .flat_map(|family| family.classes)
        .map(|class| class.model_type)
}

/// The family of the models that are trained from scratch.
pub fn default_family() -> &'static Family {
    &llama::LLAMA
}

/// A family is written as its first `model_type`.
impl Serialize for Family {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let model_type = self.classes.first().map_or("", |class| class.model_type);
        serializer.serialize_str(model_type)
    }
}

impl<'de> Deserialize<'de> for &'static Family {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let model_type = Cow::<'_, str>::deserialize(deserializer)?;
        find(&model_type)
            .map(|(family, _)| family)
            .ok_or_else(|| serde::de::Error::custom(format!("no family `{model_type}`")))
    }
}
