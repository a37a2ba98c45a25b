//! Measures the speed of models in rounds.

use std::time::{Duration, Instant};

use super::{MIN_ROUNDS, Options};
use crate::stages::{Context, StageError};
use secateur_base::memory;
use secateur_model::Model;
use secateur_model::walk::Decoder;
use secateur_tensor::WeightReadError;

/// The least time of a measurement, in seconds: it consists of as many passes as take this long.
const MIN_MEASUREMENT_SECONDS: f64 = 0.05;

/// Passes before the first round: they fill caches, and the first one of each model measures the
/// peak of the memory that is allocated during it. Returns this peak in bytes for each model, and
/// how many passes make one measurement.
pub(super) fn warm_up(
    options: &Options,
    context: &Context,
    models: &[&Model],
) -> Result<(Vec<u64>, usize), StageError> {
    let mut peak_bytes = Vec::new();
    let mut fastest = f64::INFINITY;
    for model in models {
        context.check_interrupt()?;
        let mut first_pass = None;
        let peak = memory::peak_allocated_bytes(|| first_pass = Some(time_pass(options, model)));
        peak_bytes.push(peak);
        let mut pass = first_pass.transpose()?;
        for _ in 1..options.warm_up {
            context.check_interrupt()?;
            pass = Some(time_pass(options, model)?);
        }
        fastest = pass.map_or(fastest, |pass| fastest.min(pass.prefill + pass.decode));
    }
    let passes_per_round = (MIN_MEASUREMENT_SECONDS / fastest).ceil().max(1.0);
    Ok((peak_bytes, passes_per_round as usize))
}

/// The speeds of each model in every round. The models take turns in going first.
pub(super) fn measure_rounds(
    options: &Options,
    passes_per_round: usize,
    context: &Context,
    models: &[&Model],
) -> Result<Vec<Vec<Speed>>, StageError> {
    let mut speeds: Vec<Vec<Speed>> = vec![Vec::new(); models.len()];
    let (start, limit) = (
        Instant::now(),
        Duration::from_secs_f64(options.seconds.min(1e9)),
    );
    let bar = context.progress.bar("profile", options.repeat as u64);
    for round in 0..options.repeat {
        if round >= MIN_ROUNDS && start.elapsed() >= limit {
            break;
        }
        for turn in 0..models.len() {
            let index = (round + turn) % models.len();
            let mut total = PassSeconds::default();
            for _ in 0..passes_per_round {
                context.check_interrupt()?;
                let pass = time_pass(options, models[index])?;
                total.prefill += pass.prefill;
                total.decode += pass.decode;
            }
            speeds[index].push(Speed::of(total, passes_per_round, options));
        }
        bar.step();
    }
    Ok(speeds)
}

/// The duration of one or several passes, in seconds.
#[derive(Clone, Copy, Default)]
struct PassSeconds {
    prefill: f64,
    decode: f64,
}

/// One measurement, in tokens per second over all sequences.
#[derive(Clone, Copy)]
pub(super) struct Speed {
    pub(super) prefill: f64,
    pub(super) decode: f64,
}

impl Speed {
    /// Of passes that took `seconds` together.
    fn of(seconds: PassSeconds, passes: usize, options: &Options) -> Self {
        let tokens_per_second = |tokens: usize, seconds: f64| {
            (tokens * options.batch * passes) as f64 / seconds.max(1e-9)
        };
        Self {
            prefill: tokens_per_second(options.prefill, seconds.prefill),
            decode: tokens_per_second(options.decode, seconds.decode),
        }
    }
}

/// One prefill and the decoding after it.
fn time_pass(options: &Options, model: &Model) -> Result<PassSeconds, WeightReadError> {
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
    Ok(PassSeconds {
        prefill: prefill_seconds,
        decode: decode_start.elapsed().as_secs_f64(),
    })
}
