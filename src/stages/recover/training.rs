//! Training: one update after another, each from the mean loss of a batch (AdamW, linear schedule, PEFT's defaults).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Error, Options};
use crate::stages::Context;
use crate::stages::products::UpdateRow;
use crate::stages::train::adam::{
    AdamMoments, BETA2_DEFAULT, clip_factor, global_norm, linear_schedule,
};
use secateur_base::random::Seed;
use secateur_model::Model;
use secateur_model::lora::{Adapter, Dropout, LoraFactors, LoraHooks};
use secateur_model::walk::{self, GradientVisitor, Pack, Sequence};
use secateur_model::wiring::BlockTensor;

/// How far training has come; an interrupted run goes on from it.
#[derive(Serialize, Deserialize)]
pub struct AdapterTraining {
    adapter: Adapter,
    moments: FactorPairs<AdamMoments>,
    update_rows: Vec<UpdateRow>,
}

impl AdapterTraining {
    /// Before the first update.
    pub fn new(adapter: Adapter) -> Self {
        let moments = |f: &LoraFactors| {
            (
                AdamMoments::new(f.a.len(), BETA2_DEFAULT),
                AdamMoments::new(f.b.len(), BETA2_DEFAULT),
            )
        };
        let moments = adapter
            .factors
            .iter()
            .map(|(&at, f)| (at, moments(f)))
            .collect();
        Self {
            adapter,
            moments,
            update_rows: Vec::new(),
        }
    }

    /// Updates that are done.
    pub fn completed_updates(&self) -> usize {
        self.update_rows.len()
    }

    /// One update of as many as there will be. Returns the loss before it.
    pub fn run_update(
        &mut self,
        options: &Options,
        context: &Context,
        model: &Model,
        batch: &[Sequence],
        updates: usize,
    ) -> Result<f64, Error> {
        let update = self.update_rows.len();
        let (loss, mut gradients) =
            batch_gradients(options, context, model, &self.adapter, batch, update);
        let norm = global_norm(gradients.values().flat_map(|(a, b)| [&a[..], &b[..]]));
        if !loss.is_finite() || !norm.is_finite() {
            return Err(Error::NonFiniteLoss {
                update: update + 1,
                loss,
            });
        }
        let (clip, rate) = (
            clip_factor(norm, options.clip),
            options.learning_rate * linear_schedule(update, options.warmup, updates),
        );
        for (at, factors) in &mut self.adapter.factors {
            let (Some((a, b)), Some((moments_a, moments_b))) =
                (gradients.get_mut(at), self.moments.get_mut(at))
            else {
                continue;
            };
            for (gradient, moments, weight) in [
                (a, moments_a, &mut factors.a),
                (b, moments_b, &mut factors.b),
            ] {
                gradient.iter_mut().for_each(|g| *g *= clip);
                weight.update(|w| moments.step(w, gradient, update + 1, rate, 0.0));
            }
        }
        if rate > 0.0
            && self
                .adapter
                .factors
                .values()
                .all(|f| f.b.values().iter().all(|&b| b == 0.0))
        {
            return Err(Error::AdapterStillZero {
                update: update + 1,
                rate,
            });
        }
        let tokens = batch.iter().map(|s| s.targets.len() as u64).sum();
        self.update_rows.push(UpdateRow {
            update: update as u32 + 1,
            loss,
            grad_norm: norm,
            lr: rate,
            tokens,
        });
        Ok(loss)
    }

    /// What was learned, and how it went.
    pub fn into_adapter_and_rows(self) -> (Adapter, Vec<UpdateRow>) {
        (self.adapter, self.update_rows)
    }
}

/// Something of A and of B beside each matrix.
type FactorPairs<T> = BTreeMap<(usize, BlockTensor), (T, T)>;

/// Gradients of the factors.
type FactorGradients = FactorPairs<Vec<f32>>;

/// The mean loss of a batch and the gradients of every factor, a micro-batch at a time.
fn batch_gradients(
    options: &Options,
    context: &Context,
    model: &Model,
    adapter: &Adapter,
    batch: &[Sequence],
    update: usize,
) -> (f64, FactorGradients) {
    let total: usize = batch.iter().map(|s| s.targets.len()).sum();
    let lowest = adapter
        .factors
        .keys()
        .map(|(layer, _)| *layer)
        .min()
        .unwrap_or(0);
    let dropout = (
        options.dropout,
        context.seed.derive("dropout").derive(&update.to_string()),
    );
    let mut sums = FactorGradientSums {
        adapter,
        dropout,
        first_sequence: 0,
        target_share: 1.0,
        memory_bytes: context.memory_budget.bytes,
        sums: BTreeMap::new(),
    };
    let micro = options.micro_batch.unwrap_or(options.batch);
    let mut loss = 0.0;
    for (i, micro_batch) in batch.chunks(micro).enumerate() {
        let own: usize = micro_batch.iter().map(|s| s.targets.len()).sum();
        if own > 0 {
            (sums.first_sequence, sums.target_share) = (i * micro, own as f32 / total as f32);
            loss += walk::backward(model, micro_batch, lowest, &mut sums).mean * own as f64
                / total as f64;
        }
    }
    (loss, sums.sums)
}

/// Adds up the factors' gradients over the sequences of an update.
struct FactorGradientSums<'a> {
    adapter: &'a Adapter,
    /// The share that is dropped, and this update's seed.
    dropout: (f64, Seed),
    /// Number, in the update, of the micro-batch's first sequence, and the micro-batch's share of all targets.
    first_sequence: usize,
    target_share: f32,
    memory_bytes: u64,
    sums: FactorGradients,
}

impl<'a> GradientVisitor for FactorGradientSums<'a> {
    type Hooks = LoraHooks<'a>;

    fn hooks(&self, layer: usize, pack: &Pack) -> LoraHooks<'a> {
        let numbers = pack.sequence_range.clone().map(|i| {
            self.dropout
                .1
                .derive(&(self.first_sequence + i).to_string())
        });
        let sequences = numbers
            .zip(pack.layout.spans.iter().map(|span| span.rows.len()))
            .collect();
        LoraHooks::new(
            self.adapter,
            layer,
            Dropout {
                probability: self.dropout.0,
                sequences,
            },
        )
    }

    fn visit_block(&mut self, layer: usize, _: &Pack, lens: LoraHooks<'a>) {
        let add = |sum: &mut Vec<f32>, gradient: Vec<f32>, share: f32| {
            sum.resize(gradient.len(), 0.0);
            sum.iter_mut()
                .zip(gradient)
                .for_each(|(s, g)| *s += g * share);
        };
        for (part, a, b) in lens.into_gradients() {
            let (sum_a, sum_b) = self.sums.entry((layer, part)).or_default();
            add(sum_a, a, self.target_share);
            add(sum_b, b, self.target_share);
        }
    }

    fn memory_limit(&self) -> Option<u64> {
        Some(self.memory_bytes)
    }
}
