//! `profile`: Model, and the dense model that it was → what both cost: parameters, MACs, bytes, tokens per second, peak memory.
//!
//! Times differ between runs, so they never stand in a table: `profile.json` holds them, and the ratios that are worth something,
//! because both models were measured in turns.

use std::path::Path;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Context, Environment, InputFile, Interrupted, OptionFault, size_faults};
use secateur_base::files::{FileError, write_atomic};
use secateur_base::memory;
use secateur_model::Model;
use secateur_model::cost::ModelShape;
use secateur_model::walk::Decoder;

/// Measures the model at this place of the pipeline beside the one that was loaded.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Tokens that are read at once (prefill), at least 1; with `decode` no more than the model's positions. Default 128.
    pub prefill: usize,
    /// Tokens that are then read one by one (decode), at least 1. Default 32.
    pub decode: usize,
    /// Sequences that are read together. Default 1.
    pub batch: usize,
    /// How often both models are measured, in turns; medians count. Default 5.
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

impl Options {
    /// What the stage reads: nothing.
    pub fn inputs(&self, _: Option<&Path>) -> Vec<InputFile> {
        Vec::new()
    }

    pub fn faults(&self) -> Vec<OptionFault> {
        size_faults([
            ("prefill", self.prefill),
            ("decode", self.decode),
            ("batch", self.batch),
            ("repeat", self.repeat),
        ])
    }

    pub fn environment_faults(&self, world: &mut Environment) -> Vec<OptionFault> {
        let all = self.prefill.saturating_add(self.decode);
        world.add_weights(2);
        world.add_forward_pass(self.batch, self.prefill);
        world.add_kv_cache(self.batch, all);
        let Some(positions) = world.model.as_ref().map(|model| model.max_positions) else {
            return Vec::new();
        };
        let message = format!(
            "`prefill` and `decode` are {all} tokens, and the model has {positions} positions"
        );
        let key = if self.prefill < positions {
            "decode"
        } else {
            "prefill"
        };
        let help = format!("write numbers that are {positions} together at most");
        (all > positions)
            .then(|| OptionFault::new(key, message, help))
            .into_iter()
            .collect()
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
    /// Tokens per second that are read at once, of all sequences together; the logits of the last included.
    pub prefill_tokens_per_second: f64,
    /// Tokens per second that are read one by one, of all sequences together.
    pub decode_tokens_per_second: f64,
    /// Bytes: the weights in memory, and what was allocated besides while the model was at work, at its most: keys and values,
    /// activations, and of a streamed model its blocks.
    pub peak_memory: f64,
    /// Whether its weights stay on disk, so that its times are the disk's.
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
    /// The one that was loaded; null where it is the same.
    dense: Option<Profile>,
    /// model / dense; null, too, where one of them is streamed and the other is not.
    ratio: Option<Profile>,
}

/// The profile could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the profile cannot be written: {0}")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Measures both models in turns. `dense`: None where it is the model itself.
pub fn run(
    options: &Options,
    context: &Context,
    model: &Model,
    dense: Option<&Model>,
) -> Result<(), Error> {
    let models: Vec<&Model> = std::iter::once(model).chain(dense).collect();
    // the first round warms up, and its memory is watched
    let mut at_work = Vec::new();
    for model in &models {
        context.check_interrupt()?;
        at_work.push(memory::peak_allocated_bytes(|| {
            _ = time_pass(options, model)
        }));
    }
    let mut seen: Vec<Vec<PassTimes>> = vec![Vec::new(); models.len()];
    for _ in 0..options.repeat {
        for (model, seen) in models.iter().zip(&mut seen) {
            context.check_interrupt()?;
            seen.push(time_pass(options, model));
        }
    }
    let mut profiles = models
        .iter()
        .zip(&seen)
        .zip(at_work)
        .map(|((model, seen), at_work)| build_profile(options, model, seen, at_work));
    let (model, dense) = (
        profiles
            .next()
            .unwrap_or_else(|| unreachable!("one model at least")),
        profiles.next(),
    );
    let alike = dense.filter(|dense| dense.streamed == model.streamed);
    if dense.is_some() && alike.is_none() {
        tracing::warn!(
            "one model is in memory and the other on disk, so no ratio is given; set `[run] memory` or `stream`"
        );
    }
    let ratio = alike.map(|dense| model.ratio_to(&dense));
    let report = ProfileReport {
        options,
        threads: rayon::current_num_threads(),
        model,
        dense,
        ratio,
    };
    if let Some(ratio) = &report.ratio {
        let Profile {
            parameters,
            prefill_tokens_per_second: prefill,
            decode_tokens_per_second: decode,
            ..
        } = ratio;
        tracing::info!(
            "of the dense model: {parameters:.3} parameters; {prefill:.2} prefill, {decode:.2} decode tokens per second"
        );
    }
    Ok(write_atomic(
        &context.output_path("profile", ".json"),
        &serde_json::to_vec_pretty(&report)?,
    )?)
}

/// One measurement, in seconds.
#[derive(Clone, Copy)]
struct PassTimes {
    prefill_seconds: f64,
    decode_seconds: f64,
}

fn time_pass(options: &Options, model: &Model) -> PassTimes {
    let mut decoder = Decoder::new(model, options.batch, options.prefill + options.decode);
    // which tokens these are does not matter
    let ids = |from: usize, n: usize| {
        (from..from + n)
            .map(|i| (i * 7919 % model.config.vocab) as u32)
            .collect::<Vec<u32>>()
    };
    let on = |from: usize, n: usize| {
        (0..options.batch)
            .map(|i| (i, ids(from + i, n)))
            .collect::<Vec<_>>()
    };
    let began = Instant::now();
    std::hint::black_box(decoder.extend_sequences(&on(0, options.prefill)));
    let prefill = began.elapsed().as_secs_f64();
    let began = Instant::now();
    for step in 0..options.decode {
        std::hint::black_box(decoder.extend_sequences(&on(options.prefill + step, 1)));
    }
    let decode = began.elapsed().as_secs_f64();
    PassTimes {
        prefill_seconds: prefill,
        decode_seconds: decode,
    }
}

fn build_profile(options: &Options, model: &Model, passes: &[PassTimes], at_work: u64) -> Profile {
    let shape = ModelShape::from_model(model);
    let median = |of: fn(&PassTimes) -> f64| {
        let mut all: Vec<f64> = passes.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let tokens = |n: usize| (n * options.batch) as f64;
    let bytes = (shape.parameter_count() * size_of::<f32>() as u64) as f64;
    let streamed = model.blocks.iter().any(|block| block.is_on_disk());
    Profile {
        parameters: shape.parameter_count() as f64,
        macs: shape.macs(64) as f64,
        bytes,
        prefill_tokens_per_second: tokens(options.prefill) / median(|pass| pass.prefill_seconds),
        decode_tokens_per_second: tokens(options.decode) / median(|pass| pass.decode_seconds),
        peak_memory: at_work as f64 + if streamed { 0.0 } else { bytes },
        streamed,
    }
}

impl Profile {
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
