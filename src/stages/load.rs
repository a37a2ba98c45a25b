//! `load`: a Hugging Face folder → the Model that the following stages work on.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Budget, Fault, Input, World};
use crate::model::{Checkpoint, CheckpointError, Model, checkpoint, tokenizer};
use crate::tensor::{Precision, gpu};

/// Reads a checkpoint: `config.json`, one or several safetensors files, and `tokenizer.json` where there is one.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// A folder as transformers writes it, relative to the working directory. `hf://owner/name@revision` is reserved.
    pub model: String,
    /// The element in which a GPU holds the weights and multiplies by them: `float32`, or `float16`, which takes half the room. Products
    /// accumulate in float32; norms, softmax, adapters and logits are float32. Default `float32`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub precision: Precision,
}

fn is_default(precision: &Precision) -> bool {
    *precision == Precision::default()
}

/// The model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot load the model: {0}")]
    Checkpoint(#[from] CheckpointError),
    #[error("models from a hub (`hf://`) are not supported yet")]
    Hub,
    #[error(
        "the GPU cannot compute in float16: its kernel does not compile, for which NVRTC and libnvrtc-builtins must be found: {0}"
    )]
    Halves(String),
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
                world.precision = self.precision;
                world.holds_weights(1);
                let misplaced = self.precision == Precision::Float16 && !world.on_gpu;
                let help = "leave the line out, or compute on a GPU";
                misplaced.then(|| Fault::new("precision", "the processor computes in float32 alone", help)).into_iter().collect()
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
    if options.precision == Precision::Float16 {
        gpu::try_halves().map_err(Error::Halves)?;
    }
    let model = model(Path::new(&options.model), budget)?.held_in(options.precision);
    let streamed = model.embedding.is_on_disk();
    tracing::info!(model = options.model, parameters = model.parameters(), layers = model.blocks.len(), streamed, "loaded");
    Ok(model)
}

/// The model of a folder, in memory or on disk as the budget asks for.
pub fn model(folder: &Path, budget: Budget) -> Result<Model, Error> {
    let needed = Checkpoint::open(folder)?.parameters() * size_of::<f32>() as u64;
    Ok(if budget.streams(needed) { Model::stream(folder)? } else { Model::load(folder)? })
}
