//! What `recover` trains: the factors of the adapters, on a frozen model.

use super::{Error, Options};
use crate::stages::Context;
use crate::stages::StageError;
use crate::stages::train::{
    BETA2_DEFAULT, MicroBatch, Trainable, TrainedParameter, Trainer, TrainingOptions,
    UpdateGradients,
};
use secateur_base::random::Seed;
use secateur_model::lora::Adapter;
use secateur_model::walk::{self, BackwardOptions};
use secateur_model::{Dropout, Factor, Model, ParameterId, TrainedAdapters};
use secateur_tensor::{Weight, WeightReadError};

/// The adapters of a model's matrices, in training.
pub struct AdapterTraining<'a> {
    model: &'a Model,
    adapter: Adapter,
    /// The share of the adapters' inputs that is dropped.
    dropout: f64,
    dropout_seed: Seed,
    /// Bytes that the process may use.
    memory_limit: u64,
}

impl<'a> AdapterTraining<'a> {
    /// A trainer of `updates` updates (AdamW, linear schedule, PEFT's defaults).
    pub fn trainer(
        options: &Options,
        context: &Context,
        model: &'a Model,
        adapter: Adapter,
        updates: usize,
    ) -> Trainer<Self> {
        let training = Self {
            model,
            adapter,
            dropout: options.dropout,
            dropout_seed: context.seed.derive("dropout"),
            memory_limit: context.memory_budget.bytes,
        };
        let training_options = TrainingOptions {
            activity: "recovery",
            label: "recover",
            batch: options.batch,
            micro_batch: Some(options.micro_batch.unwrap_or(options.batch)),
            learning_rate: options.schedule(updates),
            max_gradient_norm: options.clip,
            beta2: BETA2_DEFAULT,
        };
        Trainer::new(training, training_options)
    }

    pub fn into_adapter(self) -> Adapter {
        self.adapter
    }

    /// Whether every B is zero, so that the adapters change nothing.
    fn is_adapter_zero(&self) -> bool {
        let mut factors = self.adapter.factors.values();
        factors.all(|factors| factors.b.values().iter().all(|&b| b == 0.0))
    }
}

impl Trainable for AdapterTraining<'_> {
    fn parameters(&self) -> Vec<TrainedParameter> {
        let adapters = self.adapter.factors.keys();
        adapters
            .flat_map(|&(layer, tensor)| {
                [Factor::A, Factor::B].map(|factor| TrainedParameter {
                    id: ParameterId::LoraFactor(layer, tensor, factor),
                    weight_decay: 0.0,
                })
            })
            .collect()
    }

    fn weight(&self, parameter: ParameterId) -> &Weight {
        match parameter {
            ParameterId::LoraFactor(layer, tensor, factor) => {
                let factors = &self.adapter.factors[&(layer, tensor)];
                match factor {
                    Factor::A => &factors.a,
                    Factor::B => &factors.b,
                }
            }
            ParameterId::Weight(tensor) => unreachable!("{tensor:?} is frozen"),
        }
    }

    fn weight_mut(&mut self, parameter: ParameterId) -> &mut Weight {
        let ParameterId::LoraFactor(layer, tensor, factor) = parameter else {
            unreachable!("{parameter:?} is frozen")
        };
        match (self.adapter.factors.get_mut(&(layer, tensor)), factor) {
            (Some(factors), Factor::A) => &mut factors.a,
            (Some(factors), Factor::B) => &mut factors.b,
            (None, _) => unreachable!("{parameter:?} is not a parameter of these adapters"),
        }
    }

    fn loss_and_gradients(
        &self,
        batch: &MicroBatch<'_>,
        gradients: &mut UpdateGradients,
    ) -> Result<f64, WeightReadError> {
        let layers = self.adapter.factors.keys().map(|(layer, _)| *layer);
        let options = BackwardOptions {
            lowest_layer: layers.min().unwrap_or(0),
            memory_limit: Some(self.memory_limit),
            adapters: Some(TrainedAdapters {
                adapter: &self.adapter,
                dropout: Dropout {
                    probability: self.dropout,
                    seed: self.dropout_seed.derive(&batch.update.to_string()),
                    first_sequence: batch.first_sequence,
                },
            }),
            ..BackwardOptions::default()
        };
        Ok(walk::backward(self.model, batch.sequences, &options, gradients)?.mean)
    }

    fn check_update(&self, update: usize, learning_rate: f64) -> Result<(), StageError> {
        if learning_rate > 0.0 && self.is_adapter_zero() {
            return Err(Error::AdapterStillZero {
                update,
                rate: learning_rate,
            }
            .into());
        }
        Ok(())
    }
}
