//! `profile`: the model and the dense model it was made from → what both cost: parameters, MACs,
//! bytes, tokens per second, peak memory.
//!
//! Times differ between runs, so they are not written into a table but into `profile.json`. Both
//! models are measured alternately, so that a change in the load of the machine affects both, and
//! the ratios between them are meaningful.

use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Context;
use super::environment::{Environment, OptionFault, size_faults};
use super::error::StageError;
use super::stage::{Stage, StageOutput, StageType, describe_options};
use super::values::{DENSE, MODEL, StageValues, ValueKind};
use secateur_base::files::write_atomic;
use secateur_base::memory;
use secateur_model::Model;
use secateur_model::cost::ModelShape;
use secateur_model::walk::Decoder;
use secateur_tensor::WeightReadError;

pub static TYPE: StageType = StageType {
    needs: &[ValueKind::Model, ValueKind::Dense],
    depends_on_machine: true,
    summary: |options| describe_options(options, &["prefill"]),
    ..StageType::new::<Options>("profile")
};

/// Measures the model at this place of the pipeline beside the one that was loaded.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Tokens that are processed at once (prefill), 1 to 1048576; with `decode` no more than the
    /// model's positions. Default 128.
    pub prefill: usize,
    /// Tokens that are then processed one by one (decode), 1 to 1048576. Default 32.
    pub decode: usize,
    /// Sequences in a batch, 1 to 1048576. Default 1.
    pub batch: usize,
    /// How often both models are measured, alternately, 1 to 1048576; the report has the medians.
    /// Default 5.
    pub repeat: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            prefill: 128,
            decode: 32,
            batch: 1,
            repeat: 5,
        }
    }
}

impl Stage for Options {
    fn stage_type(&self) -> &'static StageType {
        &TYPE
    }

    fn option_faults(&self) -> Vec<OptionFault> {
        size_faults([
            ("prefill", self.prefill),
            ("decode", self.decode),
            ("batch", self.batch),
            ("repeat", self.repeat),
        ])
    }

    fn environment_faults(&self, environment: &mut Environment) -> Vec<OptionFault> {
        let tokens = self.prefill.saturating_add(self.decode);
        environment.add_weights(2);
        environment.add_forward_pass(self.batch, self.prefill);
        environment.add_kv_cache(self.batch, tokens);
        let Some(positions) = environment.model.as_ref().map(|model| model.max_positions) else {
            return Vec::new();
        };
        if tokens <= positions {
            return Vec::new();
        }
        let key = if self.prefill < positions {
            "decode"
        } else {
            "prefill"
        };
        vec![OptionFault::new(
            key,
            format!(
                "`prefill` and `decode` are {tokens} tokens, and the model has {positions} positions"
            ),
            format!("write numbers that are {positions} together at most"),
        )]
    }

    fn run(&self, context: &Context, inputs: &StageValues) -> Result<StageOutput, StageError> {
        let (model, dense) = (inputs.require(MODEL)?, inputs.require(DENSE)?);
        let is_dense = std::ptr::eq(model, dense);
        run(self, context, model, (!is_dense).then_some(dense))?;
        Ok(StageOutput::default())
    }
}

/// What a model costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Profile {
    /// Parameters, a tied head counted once.
    pub parameters: f64,
    /// Multiply-accumulates of a forward pass over 64 tokens, as LLM-Pruner counts them.
    pub macs: f64,
    /// Bytes of the parameters as float32.
    pub bytes: f64,
    /// Tokens per second of the prefill, over all sequences; includes the logits of the last token.
    pub prefill_tokens_per_second: f64,
    /// Tokens per second of the decoding, over all sequences.
    pub decode_tokens_per_second: f64,
    /// Bytes: the weights in memory plus the peak of other allocations during a pass: keys and
    /// values, activations, and the blocks of a streamed model.
    pub peak_memory: f64,
    /// Whether its weights stay on disk, so that its times include reading them.
    pub streamed: bool,
}

/// `profile.json`.
#[derive(Clone, Debug, Serialize)]
struct ProfileReport<'a> {
    #[serde(flatten)]
    options: &'a Options,
    threads: usize,
    /// The model at this place of the pipeline.
    model: Profile,
    /// The model that was loaded; null if it is the same.
    dense: Option<Profile>,
    /// model / dense; also null if only one of them is streamed.
    ratio: Option<Profile>,
}

/// Measures both models alternately. `dense`: None if it is the model itself.
pub fn run(
    options: &Options,
    context: &Context,
    model: &Model,
    dense: Option<&Model>,
) -> Result<(), StageError> {
    let models: Vec<&Model> = std::iter::once(model).chain(dense).collect();
    // The first round warms up and measures memory; its times do not count.
    let mut peak_bytes = Vec::new();
    for model in &models {
        context.check_interrupt()?;
        let mut warm_up = None;
        let peak = memory::peak_allocated_bytes(|| warm_up = Some(time_pass(options, model)));
        warm_up.transpose()?;
        peak_bytes.push(peak);
    }
    let mut passes: Vec<Vec<PassTimes>> = vec![Vec::new(); models.len()];
    for _ in 0..options.repeat {
        for (model, model_passes) in models.iter().zip(&mut passes) {
            context.check_interrupt()?;
            model_passes.push(time_pass(options, model)?);
        }
    }
    let profile =
        |index: usize| build_profile(options, models[index], &passes[index], peak_bytes[index]);
    let model_profile = profile(0);
    let dense_profile = dense.map(|_| profile(1));
    let comparable = dense_profile.filter(|dense| dense.streamed == model_profile.streamed);
    if dense_profile.is_some() && comparable.is_none() {
        tracing::warn!(
            "one model is in memory and the other on disk, so no ratio is given; set `[run] memory` or `stream`"
        );
    }
    let ratio = comparable.map(|dense| model_profile.ratio_to(&dense));
    if let Some(ratio) = &ratio {
        tracing::info!(
            "relative to the dense model: {:.3} parameters; {:.2} prefill, {:.2} decode tokens per second",
            ratio.parameters,
            ratio.prefill_tokens_per_second,
            ratio.decode_tokens_per_second
        );
    }
    let report = ProfileReport {
        options,
        threads: rayon::current_num_threads(),
        model: model_profile,
        dense: dense_profile,
        ratio,
    };
    let path = context.output_path("profile", ".json");
    Ok(write_atomic(&path, &serde_json::to_vec_pretty(&report)?)?)
}

/// One measurement, in seconds.
#[derive(Clone, Copy)]
struct PassTimes {
    prefill_seconds: f64,
    decode_seconds: f64,
}

/// One prefill and the decoding after it.
fn time_pass(options: &Options, model: &Model) -> Result<PassTimes, WeightReadError> {
    let mut decoder = Decoder::new(model, options.batch, options.prefill + options.decode);
    // Times do not depend on the values of the ids; these spread over the vocabulary (7919 is a
    // prime).
    let vocab = model.config.vocab;
    let token_ids = |sequence: usize, start: usize, count: usize| -> Vec<u32> {
        let first = sequence + start;
        (first..first + count)
            .map(|i| (i * 7919 % vocab) as u32)
            .collect()
    };
    let batch = |start: usize, count: usize| -> Vec<(usize, Vec<u32>)> {
        (0..options.batch)
            .map(|sequence| (sequence, token_ids(sequence, start, count)))
            .collect()
    };
    let prefill_start = Instant::now();
    std::hint::black_box(decoder.extend_sequences(&batch(0, options.prefill))?);
    let prefill_seconds = prefill_start.elapsed().as_secs_f64();
    let decode_start = Instant::now();
    for step in 0..options.decode {
        std::hint::black_box(decoder.extend_sequences(&batch(options.prefill + step, 1))?);
    }
    Ok(PassTimes {
        prefill_seconds,
        decode_seconds: decode_start.elapsed().as_secs_f64(),
    })
}

/// The profile of a model from its passes. `peak_bytes`: the peak of allocations during a pass.
fn build_profile(
    options: &Options,
    model: &Model,
    passes: &[PassTimes],
    peak_bytes: u64,
) -> Profile {
    let shape = ModelShape::from_model(model);
    let median = |seconds: fn(&PassTimes) -> f64| {
        let mut sorted: Vec<f64> = passes.iter().map(seconds).collect();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    let batch_tokens = |tokens: usize| (tokens * options.batch) as f64;
    let bytes = (shape.parameter_count() * size_of::<f32>() as u64) as f64;
    let streamed = model.blocks.iter().any(|block| block.is_on_disk());
    let resident_weights = if streamed { 0.0 } else { bytes };
    Profile {
        parameters: shape.parameter_count() as f64,
        macs: shape.macs(64) as f64,
        bytes,
        prefill_tokens_per_second: batch_tokens(options.prefill)
            / median(|pass| pass.prefill_seconds),
        decode_tokens_per_second: batch_tokens(options.decode) / median(|pass| pass.decode_seconds),
        peak_memory: peak_bytes as f64 + resident_weights,
        streamed,
    }
}

impl Profile {
    /// Each number divided by that of the dense model.
    fn ratio_to(&self, dense: &Self) -> Self {
        Self {
            parameters: self.parameters / dense.parameters,
            macs: self.macs / dense.macs,
            bytes: self.bytes / dense.bytes,
            prefill_tokens_per_second: self.prefill_tokens_per_second
                / dense.prefill_tokens_per_second,
            decode_tokens_per_second: self.decode_tokens_per_second
                / dense.decode_tokens_per_second,
            peak_memory: self.peak_memory / dense.peak_memory,
            streamed: self.streamed,
        }
    }
}
