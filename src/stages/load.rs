//! `load`: a Hugging Face folder → the Model that the following stages work on.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fault, World};
use crate::model::ModelHeader;

/// Reads a checkpoint: `config.json`, one or several safetensors files, and `tokenizer.json` where there is one.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// A folder as transformers writes it, relative to the working directory. `hf://owner/name@revision` is reserved.
    pub model: String,
}

impl Options {
    pub fn faults(&self) -> Vec<Fault> {
        Vec::new()
    }

    pub fn world(&self, world: &mut World) -> Vec<Fault> {
        let _ = (ModelHeader::read as fn(&std::path::Path) -> _, PathBuf::new());
        let _ = world;
        Vec::new()
    }
}
