//! `load`: a Hugging Face folder → the model that the following stages work on.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::environment::{Environment, HeaderFault, OptionFault};
use super::error::{RestoreError, StageError};
use super::stage::{Stage, StageOutput, StageType, describe_options};
use super::values::{StageValues, ValueKind};
use super::{Context, InputFile, MemoryBudget};
use secateur_model::source::carried_files;
use secateur_model::{CheckpointError, Model, checkpoint};
use secateur_store::cache::StoredProduct;
use secateur_tensor::{Precision, gpu};

mod location;

pub static TYPE: StageType = StageType {
    makes: &[ValueKind::Model, ValueKind::Dense],
    spends: &[
        ValueKind::Graph,
        ValueKind::Scores,
        ValueKind::GroupScores,
        ValueKind::Plan,
        ValueKind::Adapter,
    ],
    model_stays_in_inputs: true,
    summary: |options| describe_options(options, &["model"]),
    ..StageType::new::<Options>("load")
};

/// Reads a checkpoint: `config.json`, one or several safetensors files, and `tokenizer.json` if
/// there is one. An export copies the other files that belong to the model.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// A folder as transformers writes it, relative to the working directory. Weights are read from
    /// `model.safetensors`, else from the shards that `model.safetensors.index.json` names, else
    /// from the only safetensors file. `hf://owner/name@revision` is reserved.
    pub model: String,
    /// The element type in which a GPU holds the weights and multiplies by them: `float32`, or
    /// `float16`, which takes half the memory. Products accumulate in float32; norms, softmax,
    /// adapters and logits are float32. Default `float32`.
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
    #[error(
        "the GPU cannot compute in float16: its kernel does not compile, which needs NVRTC and \
         libnvrtc-builtins: {0}"
    )]
    Float16NotAvailable(String),
}

impl Stage for Options {
    fn stage_type(&self) -> &'static StageType {
        &TYPE
    }

    fn input_files(&self, _: Option<&Path>) -> Vec<InputFile> {
        let folder = Path::new(&self.model);
        checkpoint::checkpoint_files(folder)
            .into_iter()
            .chain(carried_files(folder))
            .map(InputFile::OnDisk)
            .collect()
    }

    fn option_faults(&self) -> Vec<OptionFault> {
        if !self.model.is_empty() {
            return Vec::new();
        }
        vec![OptionFault::new(
            "model",
            "the model has no name",
            "write the path of a folder",
        )]
    }

    fn environment_faults(&self, environment: &mut Environment) -> Vec<OptionFault> {
        environment.model = None;
        if self.model.is_empty() {
            // The option's own check refuses it.
            return Vec::new();
        }
        if let Some(fault) = location::fault(&self.model) {
            return vec![fault];
        }
        let header = match environment.read_header(Path::new(&self.model)) {
            Ok(header) => header,
            Err(HeaderFault { message, help }) => {
                return vec![OptionFault::new("model", message, help)];
            }
        };
        let warnings = header.warnings.iter();
        let mut faults: Vec<OptionFault> = warnings
            .map(|warning| OptionFault::warning("model", warning, ""))
            .collect();
        environment.model = Some(header);
        environment.precision = self.precision;
        environment.add_weights(1);
        if self.precision == Precision::Float16 && !environment.is_on_gpu {
            faults.push(OptionFault::new(
                "precision",
                "the CPU computes in float32 only",
                "remove the line, or compute on a GPU",
            ));
        }
        faults
    }

    fn run(&self, context: &Context, _: &StageValues) -> Result<StageOutput, StageError> {
        let model = run(self, context.memory_budget)?;
        Ok(StageValues::from_dense_model(model).into())
    }

    /// Reads the checkpoint again: the product holds no weights.
    fn restore_model(
        &self,
        _: &StoredProduct,
        _: &StageValues,
        memory_budget: MemoryBudget,
    ) -> Result<StageValues, RestoreError> {
        Ok(StageValues::from_dense_model(run(self, memory_budget)?))
    }
}

/// Loads the model, in memory or with its blocks on disk.
pub fn run(options: &Options, memory_budget: MemoryBudget) -> Result<Model, Error> {
    if options.precision == Precision::Float16 {
        gpu::check_half_precision().map_err(Error::Float16NotAvailable)?;
    }
    let mut model = memory_budget
        .open_model(Path::new(&options.model))?
        .with_gpu_precision(options.precision);
    model.source.name = Some(options.model.clone());
    let streamed = model.embedding.is_on_disk();
    tracing::info!(
        model = options.model,
        parameters = model.parameter_count(),
        layers = model.blocks.len(),
        dtype = model.source.dtype.torch_name(),
        streamed,
        "loaded"
    );
    Ok(model)
}
