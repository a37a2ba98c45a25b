//! One trainer for every stage that trains. The stage provides a [`Trainable`]: the parameters, and
//! the loss and gradients of a micro-batch. The trainer makes batches, accumulates and clips
//! gradients, updates by AdamW with a learning rate schedule, reports progress, writes its state to
//! disk, and checks for NaN.

mod gradients;
mod optimizer;
mod schedule;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::products::UpdateRow;
use super::{Context, StageError};
use crate::progress::format_significant;
use optimizer::{AdamMoments, AdamStep, clip_factor};
use secateur_data::row_sampler::RowSampler;
use secateur_model::ParameterId;
use secateur_model::walk::Sequence;
use secateur_tensor::{Weight, WeightReadError};

pub use gradients::UpdateGradients;
pub use optimizer::{BETA2_DEFAULT, BETA2_PRETRAIN};
pub use schedule::{Decay, LearningRateSchedule};

/// What a stage trains.
pub trait Trainable {
    /// The trained parameters. The list is the same in every run of the stage.
    fn parameters(&self) -> Vec<TrainedParameter>;

    fn weight(&self, parameter: ParameterId) -> &Weight;

    fn weight_mut(&mut self, parameter: ParameterId) -> &mut Weight;

    /// The mean loss over the targets of a micro-batch. Its gradients are added to `gradients`,
    /// which is the visitor of a backward walk.
    fn loss_and_gradients(
        &self,
        batch: &MicroBatch<'_>,
        gradients: &mut UpdateGradients,
    ) -> Result<f64, WeightReadError>;

    /// Called after each update, counted from 1, that was made with this learning rate.
    fn check_update(&self, _update: usize, _learning_rate: f64) -> Result<(), StageError> {
        Ok(())
    }
}

/// A trained parameter.
#[derive(Clone, Copy, Debug)]
pub struct TrainedParameter {
    pub id: ParameterId,
    /// Decoupled weight decay; 0: none.
    pub weight_decay: f64,
}

/// Sequences whose activations are in memory at once.
pub struct MicroBatch<'a> {
    pub sequences: &'a [Sequence],
    /// The number of the first one in its update.
    pub first_sequence: usize,
    /// The number of the update, from 0.
    pub update: usize,
}

/// How to train.
#[derive(Clone, Copy, Debug)]
pub struct TrainingOptions {
    /// What the stage does, in log messages: `recovery`.
    pub activity: &'static str,
    /// The stage's name at its progress bar.
    pub label: &'static str,
    /// Sequences of an update.
    pub batch: usize,
    /// Sequences of a micro-batch: the gradients and the loss are means over micro-batches, each
    /// with the weight of its targets. None: the update is one micro-batch and its loss is taken as
    /// it is; as a weighted mean, loss · n / n, it would be rounded differently.
    pub micro_batch: Option<usize>,
    pub learning_rate: LearningRateSchedule,
    /// Gradients are scaled down to this global norm.
    pub max_gradient_norm: f64,
    /// The decay rate of AdamW's second moment.
    pub beta2: f32,
}

/// Training has diverged.
#[derive(Debug, thiserror::Error)]
pub enum Divergence {
    #[error(
        "the loss of update {update} is {loss}: training has diverged; lower `learning_rate`, or \
         lengthen `warmup`"
    )]
    NonFiniteLoss { update: usize, loss: f64 },
    #[error(
        "a weight is no number after the last update: training has diverged; lower \
         `learning_rate`, or lengthen `warmup`"
    )]
    NonFiniteWeight,
}

/// Training in progress: a trainable, the state of its optimizer, and a row for each update so far.
pub struct Trainer<T> {
    trainable: T,
    options: TrainingOptions,
    parameters: Vec<TrainedParameter>,
    moments: BTreeMap<ParameterId, AdamMoments>,
    update_rows: Vec<UpdateRow>,
}

/// The state that an interrupted run leaves on disk. `weights` are those of the parameters, in
/// their order.
#[derive(Deserialize)]
struct TrainingState {
    weights: Vec<Weight>,
    moments: BTreeMap<ParameterId, AdamMoments>,
    update_rows: Vec<UpdateRow>,
}

/// [`TrainingState`] with borrowed fields, for writing. Both have the same encoding.
#[derive(Serialize)]
struct TrainingStateRef<'a> {
    weights: Vec<&'a Weight>,
    moments: &'a BTreeMap<ParameterId, AdamMoments>,
    update_rows: &'a [UpdateRow],
}

impl<T: Trainable> Trainer<T> {
    /// Training before its first update.
    pub fn new(trainable: T, options: TrainingOptions) -> Self {
        let parameters = trainable.parameters();
        let moments = parameters.iter().map(|parameter| {
            let len = trainable.weight(parameter.id).len();
            (parameter.id, AdamMoments::zeros(len))
        });
        Self {
            options,
            moments: moments.collect(),
            parameters,
            trainable,
            update_rows: Vec::new(),
        }
    }

    /// Makes all updates, or those that an interrupted run left to do. Returns what was trained,
    /// and a row for each update.
    ///
    /// # Errors
    /// If the run is interrupted (the state is then on disk), training diverges, or a check of the
    /// stage fails.
    pub fn run(
        mut self,
        rows: &mut RowSampler,
        context: &Context,
    ) -> Result<(T, Vec<UpdateRow>), StageError> {
        if let Some(state) = context.checkpoint.read::<TrainingState>() {
            self.resume(state);
            rows.skip(self.update_rows.len() * self.options.batch);
            tracing::info!(
                updates = self.update_rows.len(),
                "{} goes on where it was interrupted",
                self.options.activity
            );
        }
        let updates = self.options.learning_rate.updates;
        let bar = context.progress.bar(self.options.label, updates as u64);
        bar.skip(self.update_rows.len() as u64);
        while self.update_rows.len() < updates {
            context.checkpoint_or_stop(|| self.state())?;
            let batch = next_batch(rows, self.options.batch);
            let loss = self.run_update(&batch)?;
            bar.set_note(format_args!("loss {}", format_significant(loss)));
            bar.step();
        }
        Ok((self.trainable, self.update_rows))
    }

    /// Makes one update from a batch. Returns the mean loss before it.
    ///
    /// # Errors
    /// If a weight on disk cannot be read, training diverges or a check of the stage fails.
    pub fn run_update(&mut self, batch: &[Sequence]) -> Result<f64, StageError> {
        let update = self.update_rows.len();
        let (loss, gradients) = self.batch_gradients(batch, update)?;
        let norm = gradients.global_norm();
        if !loss.is_finite() || !norm.is_finite() {
            let update = update + 1;
            return Err(Divergence::NonFiniteLoss { update, loss }.into());
        }
        let learning_rate = self.options.learning_rate.rate(update);
        self.apply_gradients(gradients, norm, learning_rate);
        self.trainable.check_update(update + 1, learning_rate)?;
        self.update_rows.push(UpdateRow {
            update: update as u32 + 1,
            loss,
            grad_norm: norm,
            lr: learning_rate,
            tokens: target_count(batch) as u64,
        });
        Ok(loss)
    }

    /// The mean loss of a batch and its gradients, one micro-batch at a time.
    fn batch_gradients(
        &self,
        batch: &[Sequence],
        update: usize,
    ) -> Result<(f64, UpdateGradients), WeightReadError> {
        let mut gradients =
            UpdateGradients::new(self.parameters.iter().map(|parameter| parameter.id));
        let Some(micro_batch) = self.options.micro_batch else {
            let whole = MicroBatch {
                sequences: batch,
                first_sequence: 0,
                update,
            };
            let loss = self.trainable.loss_and_gradients(&whole, &mut gradients)?;
            return Ok((loss, gradients));
        };
        // loss = Σ over micro-batches i of loss_i · targets_i / targets, and the same for gradients
        let batch_targets = target_count(batch);
        let mut loss = 0.0;
        for (index, sequences) in batch.chunks(micro_batch).enumerate() {
            let targets = target_count(sequences);
            if targets == 0 {
                continue;
            }
            let part = MicroBatch {
                sequences,
                first_sequence: index * micro_batch,
                update,
            };
            gradients.set_share(targets as f32 / batch_targets as f32);
            let part_loss = self.trainable.loss_and_gradients(&part, &mut gradients)?;
            loss += part_loss * targets as f64 / batch_targets as f64;
        }
        Ok((loss, gradients))
    }

    /// Clips the gradients and updates every parameter that has one.
    fn apply_gradients(&mut self, gradients: UpdateGradients, norm: f64, learning_rate: f64) {
        let clip = clip_factor(norm, self.options.max_gradient_norm);
        let step = AdamStep::new(
            self.options.beta2,
            self.update_rows.len() + 1,
            learning_rate,
        );
        let mut gradients = gradients.into_gradients();
        for &TrainedParameter { id, weight_decay } in &self.parameters {
            let (Some(mut gradient), Some(moments)) =
                (gradients.remove(&id), self.moments.get_mut(&id))
            else {
                continue;
            };
            gradient.iter_mut().for_each(|g| *g *= clip);
            self.trainable
                .weight_mut(id)
                .update(|weights| step.apply(weights, &gradient, moments, weight_decay));
        }
    }

    fn state(&self) -> TrainingStateRef<'_> {
        let weight = |parameter: &TrainedParameter| self.trainable.weight(parameter.id);
        TrainingStateRef {
            weights: self.parameters.iter().map(weight).collect(),
            moments: &self.moments,
            update_rows: &self.update_rows,
        }
    }

    fn resume(&mut self, state: TrainingState) {
        for (parameter, weight) in self.parameters.iter().zip(state.weights) {
            *self.trainable.weight_mut(parameter.id) = weight;
        }
        self.moments = state.moments;
        self.update_rows = state.update_rows;
    }
}

fn next_batch(rows: &mut RowSampler, batch: usize) -> Vec<Sequence> {
    (0..batch)
        .map(|_| rows.next_row())
        .map(|row| Sequence::new(row.ids, &row.loss_mask))
        .collect()
}

/// The number of predictions that count.
fn target_count(sequences: &[Sequence]) -> usize {
    sequences
        .iter()
        .map(|sequence| sequence.targets.len())
        .sum()
}
