//! `generate`: Model, prompts → what the model writes on, greedy or sampled, with a cache of keys and values.

use std::path::Path;

use rand::{Rng, RngExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::environment::{Environment, OptionFault, positive_faults, size_faults};
use super::error::StageError;
use super::stage::{Stage, StageOutput, StageType, describe_options};
use super::values::{MODEL, StageValues, ValueKind};
use super::{Context, InputFile};
use secateur_base::random::Seed;
use secateur_data::corpus::{self, CorpusError, CorpusSource};
use secateur_model::Model;
use secateur_model::tokenizer::Tokenizer;
use secateur_model::walk::Decoder;
use secateur_model::wiring::BlockTensor;
use secateur_store::tables::Table;
use secateur_tensor as tensor;

pub static TYPE: StageType = StageType {
    needs: &[ValueKind::Model],
    summary: |options| describe_options(options, &["prompts", "file"]),
    ..StageType::new::<Options>("generate")
};

/// Lets the model write on. Before and after pruning, the sweep's `generations.parquet` puts both side by side.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Texts to be continued.
    pub prompts: Vec<String>,
    /// More of them, after these: a text file with one on each line, or JSONL rows with a field `text`.
    pub file: Option<String>,
    /// Tokens that are written at most, behind each prompt, 1 to 1048576; it ends earlier where the model's positions do.
    /// Default 64.
    pub max_new_tokens: usize,
    /// 0: the likeliest token every time (greedy). Above: tokens are drawn from softmax(logits / temperature). Default 0.
    pub temperature: f64,
    /// Only so many of the likeliest tokens are drawn from, at least 1. Default: all.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together have this probability are drawn from, above 0 to 1 (nucleus sampling, Holtzman
    /// et al. 2020). Default 1.
    pub top_p: f64,
    /// Of the draws; the same in every `generate`, so that two models are asked for the same luck. Default 0.
    pub seed: u64,
    /// Whether to write on behind the token that ends a text. Default false.
    pub ignore_eos: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            file: None,
            max_new_tokens: 64,
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            seed: 0,
            ignore_eos: false,
        }
    }
}

impl Options {
    fn prompt_source(&self) -> Option<CorpusSource> {
        self.file
            .as_ref()
            .map(|path| CorpusSource::from_path(path.as_ref()))
    }

    /// All prompts, in their order.
    fn read_prompts(&self) -> Result<Vec<String>, CorpusError> {
        let mut all = self.prompts.clone();
        match self.prompt_source() {
            Some(source) if source.is_jsonl() => all.extend(corpus::read_text_documents(&source)?),
            Some(source) => {
                let text = corpus::read_text(&source.path)?;
                all.extend(
                    text.lines()
                        .filter(|line| !line.trim().is_empty())
                        .map(str::to_owned),
                );
            }
            None => {}
        }
        Ok(all)
    }
}

impl Stage for Options {
    fn stage_type(&self) -> &'static StageType {
        &TYPE
    }

    /// The file of prompts.
    fn input_files(&self, _: Option<&Path>) -> Vec<InputFile> {
        self.file
            .iter()
            .map(|path| InputFile::OnDisk(path.into()))
            .collect()
    }

    fn option_faults(&self) -> Vec<OptionFault> {
        let mut faults = size_faults([("max_new_tokens", self.max_new_tokens)]);
        if self.prompts.is_empty() && self.file.is_none() {
            faults.push(OptionFault::new(
                "",
                "nothing to write on from",
                "add `prompts = [\"…\"]`, `file = \"…\"`, or both",
            ));
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            let message = format!("{} is not a temperature", self.temperature);
            faults.push(OptionFault::new(
                "temperature",
                message,
                "write 0 for greedy, or a number above it",
            ));
        }
        if self.top_k == Some(0) {
            faults.push(OptionFault::new(
                "top_k",
                "there is nothing to draw from 0 tokens",
                "write at least 1, or remove the line",
            ));
        }
        faults.extend(positive_faults([("top_p", self.top_p)]));
        if self.top_p > 1.0 {
            faults.push(OptionFault::new(
                "top_p",
                format!("{} is not a probability", self.top_p),
                "write a number above 0, up to 1",
            ));
        }
        let draws = [("top_k", self.top_k.is_some()), ("top_p", self.top_p < 1.0)];
        for (key, _) in draws
            .into_iter()
            .filter(|(_, is_given)| *is_given && self.temperature == 0.0)
        {
            faults.push(OptionFault::new(
                key,
                "a greedy choice draws nothing",
                "write a `temperature` above 0, or remove the line",
            ));
        }
        faults
    }

    fn environment_faults(&self, environment: &mut Environment) -> Vec<OptionFault> {
        environment.add_weights(1);
        let positions = environment
            .model
            .as_ref()
            .map_or(usize::MAX, |model| model.max_positions);
        let longest = self.max_new_tokens.min(positions);
        environment.add_forward_pass(MAX_BATCH_SIZE, longest);
        environment.add_kv_cache(1, longest);
        let mut faults: Vec<OptionFault> = self
            .prompt_source()
            .map_or_else(Vec::new, |source| environment.check_corpus("file", &source));
        if faults.is_empty()
            && self
                .prompt_source()
                .is_some_and(|source| !source.needs_tokenizer())
        {
            faults.push(OptionFault::new(
                "file",
                "its rows are token ids, and prompts are text",
                "give rows with a field `text`",
            ));
        }
        if faults.is_empty()
            && environment
                .model
                .as_ref()
                .is_some_and(|model| !model.has_tokenizer)
        {
            let message = "prompts are text, and the model's folder has no tokenizer.json";
            faults.push(OptionFault::new(
                if self.prompts.is_empty() {
                    "file"
                } else {
                    "prompts"
                },
                message,
                "put the tokenizer beside the model",
            ));
        }
        faults
    }

    fn run(&self, context: &Context, inputs: &StageValues) -> Result<StageOutput, StageError> {
        Ok(run(self, context, inputs.require(MODEL)?)?.into())
    }
}

/// One row of `generate.parquet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateRow {
    /// Its number, from 0.
    pub prompt: u32,
    /// The prompt.
    pub input: String,
    /// What the model wrote behind it.
    pub output: String,
    /// The same in tokens.
    pub ids: Vec<u32>,
    /// Whether the model ended the text itself.
    pub finished: bool,
}

/// Nothing could be generated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("prompts are text, and the model's folder has no tokenizer.json")]
    NoTokenizer,
    #[error(
        "prompt {prompt} has {tokens} tokens, which leaves no room in the model's {positions} positions"
    )]
    PromptTooLong {
        prompt: u32,
        tokens: usize,
        positions: usize,
    },
    #[error("prompt {0} is empty, and the tokenizer names neither a BOS nor an EOS token")]
    EmptyPrompt(u32),
    #[error("prompt {prompt}: a logit is {value}, the model is broken")]
    NotFinite { prompt: u32, value: f32 },
}

/// Prompts that are written on together at most.
const MAX_BATCH_SIZE: usize = 32;

/// As many as have room in a quarter of the memory with their keys and values. On a GPU, where the last bits depend on how many they
/// are, it is all the memory that the GPU has, free or not.
fn batch_size(texts: &[Continuation], context: &Context, model: &Model) -> usize {
    let longest = texts
        .iter()
        .map(|text| text.prompt_ids.len() + text.max_output_tokens)
        .max()
        .unwrap_or(1);
    let numbers: usize = model
        .blocks
        .iter()
        .map(|block| block[BlockTensor::K].rows() + block[BlockTensor::V].rows())
        .sum();
    let each = (longest * numbers * size_of::<f32>()) as u64;
    (tensor::selected_gpu_memory().unwrap_or(context.memory_budget.bytes) / 4 / each.max(1))
        .clamp(1, MAX_BATCH_SIZE as u64) as usize
}

/// Writes on from every prompt.
pub fn run(options: &Options, context: &Context, model: &Model) -> Result<Vec<Table>, StageError> {
    let tokenizer = model.tokenizer.as_deref().ok_or(Error::NoTokenizer)?;
    let prompts = options.read_prompts()?;
    if let (true, Some(source)) = (prompts.is_empty(), options.prompt_source()) {
        return Err(CorpusError::Empty(source.path).into());
    }
    let bar = context.progress.bar("generate", prompts.len() as u64);
    let mut rows: Vec<GenerateRow> = context.checkpoint.read().unwrap_or_default();
    bar.skip(rows.len() as u64);
    let mut left: Vec<Continuation> = Vec::new();
    for (prompt, input) in (0..).zip(&prompts) {
        left.push(Continuation::new(prompt, input, tokenizer, model, options)?);
    }
    let ends = if options.ignore_eos {
        Vec::new()
    } else {
        tokenizer.end_tokens()
    };
    let together = batch_size(&left, context, model);
    left.drain(..rows.len().min(left.len()));
    for chunk in left.chunks_mut(together) {
        context.checkpoint_or_stop(|| &rows)?;
        generate_batch(chunk, options, context, model, &ends).inspect_err(|error| {
            if error.is_interrupted() {
                context.checkpoint.write(&rows);
            }
        })?;
        for text in chunk {
            rows.push(text.to_row(tokenizer)?);
            bar.step();
        }
    }
    tracing::info!(texts = rows.len(), "generated");
    Ok(vec![Table::from_rows("generate", &rows)?])
}

/// A prompt and what is written behind it.
struct Continuation {
    prompt: u32,
    input: String,
    /// The prompt in tokens.
    prompt_ids: Vec<u32>,
    output_ids: Vec<u32>,
    /// Tokens that may be written.
    max_output_tokens: usize,
    is_finished: bool,
    rng: Box<dyn Rng>,
}

impl Continuation {
    fn new(
        prompt: u32,
        input: &str,
        tokenizer: &Tokenizer,
        model: &Model,
        options: &Options,
    ) -> Result<Self, StageError> {
        let mut read = tokenizer.encode(input, true)?;
        if read.is_empty() {
            read.push(tokenizer.prefix_token().ok_or(Error::EmptyPrompt(prompt))?);
        }
        let (tokens, positions) = (read.len(), model.config.max_positions);
        if tokens >= positions {
            return Err(Error::PromptTooLong {
                prompt,
                tokens,
                positions,
            }
            .into());
        }
        let room = options.max_new_tokens.min(positions - tokens);
        let stream = Box::new(
            Seed::from_u64(options.seed)
                .derive(&format!("generate {prompt}"))
                .rng(),
        );
        Ok(Self {
            prompt,
            input: input.to_owned(),
            prompt_ids: read,
            output_ids: Vec::new(),
            max_output_tokens: room,
            is_finished: false,
            rng: stream,
        })
    }

    fn is_active(&self) -> bool {
        !self.is_finished && self.output_ids.len() < self.max_output_tokens
    }

    /// The output with the space, if any, between it and the prompt.
    fn to_row(&self, tokenizer: &Tokenizer) -> Result<GenerateRow, StageError> {
        let whole: Vec<u32> = self
            .prompt_ids
            .iter()
            .chain(&self.output_ids)
            .copied()
            .collect();
        let (before, whole) = (
            tokenizer.decode(&self.prompt_ids)?,
            tokenizer.decode(&whole)?,
        );
        let output = match whole.strip_prefix(&before) {
            Some(output) => output.to_owned(),
            None => tokenizer.decode(&self.output_ids)?,
        };
        let (input, ids) = (self.input.clone(), self.output_ids.clone());
        Ok(GenerateRow {
            prompt: self.prompt,
            input,
            output,
            ids,
            finished: self.is_finished,
        })
    }
}

/// Writes on in all texts, a token of each at a time.
fn generate_batch(
    texts: &mut [Continuation],
    options: &Options,
    context: &Context,
    model: &Model,
    ends: &[u32],
) -> Result<(), StageError> {
    let longest = texts
        .iter()
        .map(|text| text.prompt_ids.len() + text.max_output_tokens)
        .max()
        .unwrap_or(0);
    let mut decoder = Decoder::new(model, texts.len(), longest);
    let mut on: Vec<(usize, Vec<u32>)> = texts
        .iter()
        .map(|text| text.prompt_ids.clone())
        .enumerate()
        .collect();
    while !on.is_empty() {
        context.check_interrupt()?;
        let next = decoder.extend_sequences(&on);
        for ((at, ids), logits) in on.iter_mut().zip(next) {
            let text = &mut texts[*at];
            if let Some(&value) = logits.iter().find(|logit| !logit.is_finite()) {
                return Err(Error::NotFinite {
                    prompt: text.prompt,
                    value,
                }
                .into());
            }
            let id = choose_token(&logits, options, &mut text.rng);
            text.is_finished = ends.contains(&id);
            if !text.is_finished {
                text.output_ids.push(id);
            }
            *ids = vec![id];
        }
        on.retain(|(at, _)| texts[*at].is_active());
    }
    Ok(())
}

/// The next token: the likeliest, the first of equals; or one drawn.
fn choose_token(logits: &[f32], options: &Options, stream: &mut impl Rng) -> u32 {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let likelier = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    if options.temperature == 0.0 {
        return order.into_iter().min_by(likelier).unwrap_or(0) as u32;
    }
    order.sort_by(likelier);
    order.truncate(options.top_k.unwrap_or(order.len()));
    let most = f64::from(logits[order[0]]);
    let weights: Vec<f64> = order
        .iter()
        .map(|&id| ((f64::from(logits[id]) - most) / options.temperature).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let within = weights.iter().position(|weight| {
        sum += weight;
        sum >= options.top_p * total
    });
    let last = within.unwrap_or(weights.len() - 1);
    let drawn = stream.random_range(0.0..1.0) * weights[..=last].iter().sum::<f64>();
    let mut sum = 0.0;
    let at = weights[..=last].iter().position(|weight| {
        sum += weight;
        sum > drawn
    });
    order[at.unwrap_or(last)] as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(options: &Options) -> Vec<f64> {
        let mut stream = Seed::from_u64(1).rng();
        let logits = [0.0, 2f32.ln(), 5f32.ln(), -1000.0];
        let mut counts = vec![0.0; 4];
        (0..8000).for_each(|_| {
            counts[choose_token(&logits, options, &mut stream) as usize] += 1.0 / 8000.0
        });
        counts
    }

    #[test]
    fn sampling_follows_temperature_top_k_and_top_p() {
        let near = |options: Options, expected: [f64; 4]| {
            let found = frequencies(&options);
            assert!(
                found
                    .iter()
                    .zip(expected)
                    .all(|(a, b)| (a - b).abs() < 0.02),
                "{found:?}"
            );
        };
        let warm = Options {
            temperature: 1.0,
            ..Options::default()
        };
        near(Options::default(), [0.0, 0.0, 1.0, 0.0]);
        near(warm.clone(), [0.125, 0.25, 0.625, 0.0]);
        // squares
        near(
            Options {
                temperature: 0.5,
                ..warm.clone()
            },
            [1.0 / 30.0, 4.0 / 30.0, 25.0 / 30.0, 0.0],
        );
        near(
            Options {
                top_k: Some(2),
                ..warm.clone()
            },
            [0.0, 2.0 / 7.0, 5.0 / 7.0, 0.0],
        );
        near(
            Options {
                top_p: 0.6,
                ..warm.clone()
            },
            [0.0, 0.0, 1.0, 0.0],
        );
        near(
            Options { top_p: 0.7, ..warm },
            [0.0, 2.0 / 7.0, 5.0 / 7.0, 0.0],
        );
    }
}
