//! What `pretrain` trains: every weight of the model.

use super::Options;
use crate::stages::Context;
use crate::stages::train::{
    BETA2_PRETRAIN, MicroBatch, Trainable, TrainedParameter, Trainer, TrainingOptions,
    UpdateGradients,
};
use secateur_model::walk::{self, BackwardOptions};
use secateur_model::wiring::TensorId;
use secateur_model::{Model, ParameterId};
use secateur_tensor::{Weight, WeightReadError};

/// Gradients are scaled down to this global norm.
const MAX_GRADIENT_NORM: f64 = 1.0;

/// A model whose weights are all trained.
pub(crate) struct ModelTraining {
    model: Model,
    /// Decoupled weight decay of the matrices in the blocks.
    weight_decay: f64,
    /// Bytes that the process may use.
    memory_limit: u64,
}

impl ModelTraining {
    /// A trainer of the model (AdamW, cosine schedule).
    pub(crate) fn trainer(options: &Options, context: &Context, model: Model) -> Trainer<Self> {
        let training = Self {
            model,
            weight_decay: options.weight_decay,
            memory_limit: context.memory_budget.bytes,
        };
        let training_options = TrainingOptions {
            activity: "training",
            label: "pretrain",
            batch: options.batch,
            micro_batch: None,
            learning_rate: options.schedule(),
            max_gradient_norm: MAX_GRADIENT_NORM,
            beta2: BETA2_PRETRAIN,
        };
        Trainer::new(training, training_options)
    }

    pub(crate) fn into_model(self) -> Model {
        self.model
    }
}

impl Trainable for ModelTraining {
    fn parameters(&self) -> Vec<TrainedParameter> {
        let is_block_matrix =
            |id: TensorId| matches!(id, TensorId::Block(_, tensor) if tensor.is_matrix());
        let tensors = self.model.tensor_ids().into_iter();
        tensors
            .map(|tensor| TrainedParameter {
                id: ParameterId::Weight(tensor),
                weight_decay: if is_block_matrix(tensor) {
                    self.weight_decay
                } else {
                    0.0
                },
            })
            .collect()
    }

    fn weight(&self, parameter: ParameterId) -> &Weight {
        self.model.weight(model_tensor(parameter))
    }

    fn weight_mut(&mut self, parameter: ParameterId) -> &mut Weight {
        self.model.weight_mut(model_tensor(parameter))
    }

    fn loss_and_gradients(
        &self,
        batch: &MicroBatch<'_>,
        gradients: &mut UpdateGradients,
    ) -> Result<f64, WeightReadError> {
        let options = BackwardOptions {
            memory_limit: Some(self.memory_limit),
            ..BackwardOptions::default()
        };
        Ok(walk::backward(&self.model, batch.sequences, &options, gradients)?.mean)
    }
}

fn model_tensor(parameter: ParameterId) -> TensorId {
    match parameter.weight() {
        Some(tensor) => tensor,
        None => unreachable!("{parameter:?} is not a parameter of the model"),
    }
}
