//! `load`: a Hugging Face folder → the Model that the following stages work on.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Budget, Fault, Input, World};
use crate::model::{Checkpoint, CheckpointError, Model, checkpoint, tokenizer};

/// Reads a checkpoint: `config.json`, one or several safetensors files, and `tokenizer.json` where there is one.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// A folder as transformers writes it, relative to the working directory. `hf://owner/name@revision` is reserved.
    pub model: String,
}

/// The model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot load the model: {0}")]
    Checkpoint(#[from] CheckpointError),
    #[error("models from a hub (`hf://`) are not supported yet")]
    Hub,
}

impl Options {
    /// What the stage reads.
    pub fn inputs(&self, _: Option<&Path>) -> Vec<Input> {
        let folder = Path::new(&self.model);
        checkpoint::files(folder).into_iter().chain(tokenizer::files(folder)).map(Input::File).collect()
    }

    pub fn faults(&self) -> Vec<Fault> {
        if self.model.is_empty() {
            vec![Fault::new("model", "the model has no name", "write the path of a folder")]
        } else {
            Vec::new()
        }
    }

    pub fn world(&self, world: &mut World) -> Vec<Fault> {
        world.model = None;
        if self.model.starts_with("hf://") {
            return vec![Fault::new(
                "model",
                "models from a hub are not supported yet",
                "download the folder and write its path",
            )];
        }
        match world.header(Path::new(&self.model)) {
            Ok(header) => {
                world.model = Some(header);
                world.holds_weights(1);
                Vec::new()
            }
            Err(message) => vec![Fault::new(
                "model",
                message,
                "a model is a folder with config.json and safetensors files, relative to the working directory",
            )],
        }
    }
}

/// Loads the model.
pub fn run(options: &Options, budget: Budget) -> Result<Model, Error> {
    if options.model.starts_with("hf://") {
        return Err(Error::Hub);
    }
    let model = model(Path::new(&options.model), budget)?;
    let streamed = model.embedding.is_on_disk();
    tracing::info!(model = options.model, parameters = model.parameters(), layers = model.blocks.len(), streamed, "loaded");
    Ok(model)
}

/// The model of a folder, in memory or on disk as the budget asks for.
pub fn model(folder: &Path, budget: Budget) -> Result<Model, Error> {
    let needed = Checkpoint::open(folder)?.parameters() * size_of::<f32>() as u64;
    Ok(if budget.streams(needed) { Model::stream(folder)? } else { Model::load(folder)? })
}
