//! `profile`: the model and the dense model it was made from → the costs of both: parameters, MACs,
//! bytes, tokens per second, peak memory.
//!
//! Times differ between runs, so they are not written into a table but into `profile.json`. Both
//! models are measured in rounds, one after the other, so that a change in the load of the machine
//! affects both. A measurement of a fast model is the mean of several passes. The order alternates from round to round, so that a steady change (a processor
//! that heats up) favours neither. Speeds are medians over the rounds. The ratio of two speeds is
//! the median of the ratios within the rounds. Each has a 95 % confidence interval from the ranks
//! of the values (`median.rs`). Where the interval of a ratio contains 1, the measurement is too
//! noisy to say which model is faster.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Context;
use super::environment::{Environment, OptionFault, positive_faults, size_faults};
use super::error::StageError;
use super::stage::{Stage, StageOutput, StageType, describe_options, option_text};
use super::values::{DENSE, MODEL, StageValues, ValueKind};
use secateur_base::files::write_atomic;
use secateur_model::Model;
use secateur_model::cost::{MACS_TOKENS, ModelShape};

mod measure;
mod median;
use measure::{Speed, measure_rounds, warm_up};
use median::Median;

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
    /// The most rounds, 1 to 1000; both models are measured once in each, by as many passes as take
    /// 0.05 seconds. Confidence intervals need 6 rounds. Default 20.
    pub repeat: usize,
    /// Passes of each model before the first round, 1 to 1000; their times are not used. Default 2.
    #[serde(skip_serializing_if = "is_default_warm_up")]
    pub warm_up: usize,
    /// No round begins after this many seconds of rounds, but 6 are always measured (or `repeat`, if
    /// that is fewer); above 0. Default 60.
    #[serde(skip_serializing_if = "is_default_seconds")]
    pub seconds: f64,
}

const DEFAULT_WARM_UP: usize = 2;
const DEFAULT_SECONDS: f64 = 60.0;

/// The most rounds and warm-up passes.
const MAX_ROUNDS: usize = 1000;

/// The fewest rounds that give a confidence interval.
const MIN_ROUNDS: usize = 6;

fn is_default_warm_up(warm_up: &usize) -> bool {
    *warm_up == DEFAULT_WARM_UP
}

fn is_default_seconds(seconds: &f64) -> bool {
    *seconds == DEFAULT_SECONDS
}

impl Default for Options {
    fn default() -> Self {
        Self {
            prefill: 128,
            decode: 32,
            batch: 1,
            repeat: 20,
            warm_up: DEFAULT_WARM_UP,
            seconds: DEFAULT_SECONDS,
        }
    }
}

impl Stage for Options {
    fn stage_type(&self) -> &'static StageType {
        &TYPE
    }

    fn option_faults(&self) -> Vec<OptionFault> {
        let mut faults = size_faults([
            ("prefill", self.prefill),
            ("decode", self.decode),
            ("batch", self.batch),
        ]);
        for (key, value) in [("repeat", self.repeat), ("warm_up", self.warm_up)] {
            if !(1..=MAX_ROUNDS).contains(&value) {
                let message = format!("{value} is not a number of passes");
                let help = format!("write a number from 1 to {MAX_ROUNDS}");
                faults.push(OptionFault::new(key, message, help));
            }
        }
        if (1..MIN_ROUNDS).contains(&self.repeat) {
            faults.push(OptionFault::warning(
                "repeat",
                format!(
                    "`repeat` is {}, too few rounds for a confidence interval",
                    self.repeat
                ),
                format!("write at least {MIN_ROUNDS}, or remove the line"),
            ));
        }
        faults.extend(positive_faults([("seconds", self.seconds)]));
        faults
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
                "`prefill` and `decode` are {tokens} tokens, and the model has {positions} \
                 positions"
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
struct Profile {
    #[serde(flatten)]
    size: Size,
    /// Tokens per second of the prefill, over all sequences; includes the logits of the last token.
    /// The median of the rounds.
    prefill_tokens_per_second: f64,
    /// `[low, high]`: the 95 % confidence interval of this median; null for fewer than 6 rounds.
    prefill_interval: Option<[f64; 2]>,
    /// Tokens per second of the decoding, over all sequences.
    decode_tokens_per_second: f64,
    /// As `prefill_interval`.
    decode_interval: Option<[f64; 2]>,
    /// Whether its weights stay on disk, so that its times include reading them.
    streamed: bool,
}

/// Of a model the numbers that are not times; of two models their ratios.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Size {
    /// Parameters, a tied head counted once.
    parameters: f64,
    /// Multiply-accumulates of a forward pass over 64 tokens, as LLM-Pruner counts them.
    macs: f64,
    /// Bytes of the parameters in the element type of the loaded checkpoint.
    bytes: f64,
    /// Bytes: the weights in memory plus the peak of other allocations during a pass: keys and
    /// values, activations, and the blocks of a streamed model.
    peak_memory: f64,
}

/// model / dense.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Ratio {
    #[serde(flatten)]
    size: Size,
    /// The median of the ratios within the rounds; above 1 the model is faster.
    prefill_tokens_per_second: f64,
    /// `[low, high]`: the 95 % confidence interval of this median; null for fewer than 6 rounds.
    prefill_interval: Option<[f64; 2]>,
    prefill_verdict: Verdict,
    decode_tokens_per_second: f64,
    decode_interval: Option<[f64; 2]>,
    decode_verdict: Verdict,
}

/// What the confidence interval of a ratio of speeds says about the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Verdict {
    /// The interval is above 1.
    #[serde(rename = "faster")]
    Faster,
    /// The interval is below 1.
    #[serde(rename = "slower")]
    Slower,
    /// The interval contains 1.
    #[serde(rename = "too noisy to say")]
    TooNoisy,
    /// There is no interval.
    #[serde(rename = "too few rounds to say")]
    TooFewRounds,
}

impl Verdict {
    fn of(interval: Option<[f64; 2]>) -> Self {
        match interval {
            None => Self::TooFewRounds,
            Some([low, _]) if low > 1.0 => Self::Faster,
            Some([_, high]) if high < 1.0 => Self::Slower,
            Some(_) => Self::TooNoisy,
        }
    }
}

/// `profile.json`.
#[derive(Clone, Debug, Serialize)]
struct ProfileReport<'a> {
    #[serde(flatten)]
    options: &'a Options,
    threads: usize,
    /// Rounds that were measured.
    rounds: usize,
    /// Passes of each model in a round; their mean is one measurement.
    passes_per_round: usize,
    /// The model at this place of the pipeline.
    model: Profile,
    /// The model that was loaded; null if it is the same.
    dense: Option<Profile>,
    /// model / dense; also null if only one of them is streamed.
    ratio: Option<Ratio>,
}

/// Measures both models. `dense`: None if it is the model itself.
fn run(
    options: &Options,
    context: &Context,
    model: &Model,
    dense: Option<&Model>,
) -> Result<(), StageError> {
    let models: Vec<&Model> = std::iter::once(model).chain(dense).collect();
    let (peak_bytes, passes_per_round) = warm_up(options, context, &models)?;
    let speeds = measure_rounds(options, passes_per_round, context, &models)?;
    let profile = |index: usize| build_profile(models[index], &speeds[index], peak_bytes[index]);
    let model_profile = profile(0);
    let dense_profile = dense.map(|_| profile(1));
    let comparable = dense_profile.filter(|dense| dense.streamed == model_profile.streamed);
    if dense_profile.is_some() && comparable.is_none() {
        tracing::warn!(
            "one model is in memory and the other on disk, so no ratio is given; set \
             `[run] memory` or `stream`"
        );
    }
    let ratio = comparable
        .map(|dense| Ratio::new((&model_profile.size, &speeds[0]), (&dense.size, &speeds[1])));
    if let Some(ratio) = &ratio {
        tracing::info!(
            "relative to the dense model: {:.3} parameters; {:.2} prefill ({}), {:.2} decode ({}) \
             tokens per second",
            ratio.size.parameters,
            ratio.prefill_tokens_per_second,
            option_text(&ratio.prefill_verdict),
            ratio.decode_tokens_per_second,
            option_text(&ratio.decode_verdict),
        );
    }
    let report = ProfileReport {
        options,
        threads: rayon::current_num_threads(),
        rounds: speeds[0].len(),
        passes_per_round,
        model: model_profile,
        dense: dense_profile,
        ratio,
    };
    let path = context.output_path("profile", ".json");
    Ok(write_atomic(&path, &serde_json::to_vec_pretty(&report)?)?)
}

/// The profile of a model. `peak_bytes`: the peak of the memory that was allocated during a pass.
fn build_profile(model: &Model, speeds: &[Speed], peak_bytes: u64) -> Profile {
    let shape = ModelShape::from_model(model);
    let f32_bytes = (shape.parameter_count() * size_of::<f32>() as u64) as f64;
    let streamed = model.blocks.iter().any(|block| block.is_on_disk());
    let resident_weights = if streamed { 0.0 } else { f32_bytes };
    let prefill = Median::of(speeds.iter().map(|speed| speed.prefill));
    let decode = Median::of(speeds.iter().map(|speed| speed.decode));
    Profile {
        size: Size {
            parameters: shape.parameter_count() as f64,
            macs: shape.macs(MACS_TOKENS) as f64,
            bytes: model.stored_bytes() as f64,
            peak_memory: peak_bytes as f64 + resident_weights,
        },
        prefill_tokens_per_second: prefill.median,
        prefill_interval: prefill.interval,
        decode_tokens_per_second: decode.median,
        decode_interval: decode.interval,
        streamed,
    }
}

impl Ratio {
    /// Sizes are divided; of speeds, those of the same round are.
    fn new((size, speeds): (&Size, &[Speed]), (dense, dense_speeds): (&Size, &[Speed])) -> Self {
        let rounds = || speeds.iter().zip(dense_speeds);
        let prefill = Median::of(rounds().map(|(model, dense)| model.prefill / dense.prefill));
        let decode = Median::of(rounds().map(|(model, dense)| model.decode / dense.decode));
        Self {
            size: Size {
                parameters: size.parameters / dense.parameters,
                macs: size.macs / dense.macs,
                bytes: size.bytes / dense.bytes,
                peak_memory: size.peak_memory / dense.peak_memory,
            },
            prefill_tokens_per_second: prefill.median,
            prefill_interval: prefill.interval,
            prefill_verdict: Verdict::of(prefill.interval),
            decode_tokens_per_second: decode.median,
            decode_interval: decode.interval,
            decode_verdict: Verdict::of(decode.interval),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_decides_whether_a_difference_is_said() {
        let size = Size {
            parameters: 2.0,
            macs: 2.0,
            bytes: 2.0,
            peak_memory: 3.0,
        };
        let dense: Vec<Speed> = (0..8)
            .map(|round| Speed {
                prefill: 100.0 + f64::from(round * round),
                decode: 10.0,
            })
            .collect();
        // Prefill is always 1.5 times as fast, although the load of the machine changes between
        // rounds; decode is faster in one half of the rounds and slower in the other.
        let model: Vec<Speed> = (0..8)
            .zip(&dense)
            .map(|(round, dense)| Speed {
                prefill: 1.5 * dense.prefill,
                decode: if round % 2 == 0 { 11.0 } else { 9.5 },
            })
            .collect();
        let ratio = Ratio::new((&size, &model), (&size, &dense));
        assert_eq!(ratio.prefill_tokens_per_second, 1.5);
        assert_eq!(ratio.prefill_interval, Some([1.5, 1.5]));
        assert_eq!(ratio.prefill_verdict, Verdict::Faster);
        assert_eq!(ratio.decode_tokens_per_second, 1.025);
        assert_eq!(ratio.decode_verdict, Verdict::TooNoisy);
        let slower = Ratio::new((&size, &dense), (&size, &model));
        assert_eq!(slower.prefill_verdict, Verdict::Slower);
        let few = Ratio::new((&size, &model[..5]), (&size, &dense[..5]));
        assert_eq!(few.prefill_verdict, Verdict::TooFewRounds);
    }
}
