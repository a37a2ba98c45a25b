//! `load`: a Hugging Face folder → the Model that the following stages work on.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Environment, InputFile, MemoryBudget, OptionFault};
use secateur_model::{Checkpoint, CheckpointError, Model, checkpoint, tokenizer};
use secateur_tensor::{Precision, gpu};

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
    HubNotSupported,
    #[error(
        "the GPU cannot compute in float16: its kernel does not compile, for which NVRTC and libnvrtc-builtins must be found: {0}"
    )]
    Float16NotAvailable(String),
}

impl Options {
    /// What the stage reads.
    pub fn inputs(&self, _: Option<&Path>) -> Vec<InputFile> {
        let folder = Path::new(&self.model);
        checkpoint::checkpoint_files(folder)
            .into_iter()
            .chain(tokenizer::tokenizer_files(folder))
            .map(InputFile::OnDisk)
            .collect()
    }

    pub fn faults(&self) -> Vec<OptionFault> {
        if self.model.is_empty() {
            vec![OptionFault::new(
                "model",
                "the model has no name",
                "write the path of a folder",
            )]
        } else {
            Vec::new()
        }
    }

    pub fn environment_faults(&self, world: &mut Environment) -> Vec<OptionFault> {
        world.model = None;
        if self.model.starts_with("hf://") {
            return vec![OptionFault::new(
                "model",
                "models from a hub are not supported yet",
                "download the folder and write its path",
            )];
        }
        match world.read_header(Path::new(&self.model)) {
            Ok(header) => {
                world.model = Some(header);
                world.precision = self.precision;
                world.add_weights(1);
                let misplaced = self.precision == Precision::Float16 && !world.is_on_gpu;
                let help = "leave the line out, or compute on a GPU";
                misplaced
                    .then(|| {
                        OptionFault::new(
                            "precision",
                            "the processor computes in float32 alone",
                            help,
                        )
                    })
                    .into_iter()
                    .collect()
            }
            Err(message) => vec![OptionFault::new(
                "model",
                message,
                "a model is a folder with config.json and safetensors files, relative to the working directory",
            )],
        }
    }
}

/// Loads the model.
pub fn run(options: &Options, budget: MemoryBudget) -> Result<Model, Error> {
    if options.model.starts_with("hf://") {
        return Err(Error::HubNotSupported);
    }
    if options.precision == Precision::Float16 {
        gpu::check_half_precision().map_err(Error::Float16NotAvailable)?;
    }
    let model =
        load_model(Path::new(&options.model), budget)?.with_gpu_precision(options.precision);
    let streamed = model.embedding.is_on_disk();
    tracing::info!(
        model = options.model,
        parameters = model.parameter_count(),
        layers = model.blocks.len(),
        streamed,
        "loaded"
    );
    Ok(model)
}

/// The model of a folder, in memory or on disk as the budget asks for.
pub fn load_model(folder: &Path, budget: MemoryBudget) -> Result<Model, Error> {
    let needed = Checkpoint::open(folder)?.parameter_count() * size_of::<f32>() as u64;
    Ok(if budget.should_stream(needed) {
        Model::open_streaming(folder)?
    } else {
        Model::load(folder)?
    })
}
