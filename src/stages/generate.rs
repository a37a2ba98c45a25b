//! `generate`: model and prompts → the text that the model continues them with, greedy or sampled,
//! with a KV cache.

use std::path::Path;

use rand::Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::environment::{Environment, OptionFault, UnusedOption, positive_faults, size_faults};
use super::error::StageError;
use super::facts::EarlierStages;
use super::stage::{Stage, StageOutput, StageType, describe_options};
use super::values::{MODEL, StageValues, ValueKind};
use super::{Context, InputFile};
use secateur_base::random::Seed;
use secateur_data::corpus::{self, CorpusError, CorpusSource};
use secateur_model::Model;
use secateur_model::tokenizer::{Tokenizer, TokenizerError};
use secateur_model::walk::Decoder;
use secateur_model::wiring::BlockTensor;
use secateur_store::tables::Table;
use secateur_tensor as tensor;

mod sampling;
use sampling::choose_token;

pub static TYPE: StageType = StageType {
    needs: &[ValueKind::Model],
    summary: |options| describe_options(options, &["prompts", "file"]),
    ..StageType::new::<Options>("generate")
};

/// Continues prompts with the model. If a pipeline does so before and after pruning, the sweep's
/// `generations.parquet` shows both side by side.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Texts to continue.
    pub prompts: Vec<String>,
    /// A file with more prompts, after these: a text file with one per line, or JSON, CSV or
    /// Parquet with a field `text`.
    pub file: Option<String>,
    /// The most tokens that are generated after each prompt, 1 to 1048576; fewer if the model's
    /// positions end earlier. Default 64.
    pub max_new_tokens: usize,
    /// 0: always the most likely token (greedy). Above 0: tokens are drawn from softmax(logits /
    /// temperature). Default 0.
    pub temperature: f64,
    /// Draws only from this many most likely tokens, at least 1. Default: all.
    pub top_k: Option<usize>,
    /// Draws only from the most likely tokens that together reach this probability, above 0 to 1
    /// (nucleus sampling, Holtzman et al. 2020). Default 1.
    pub top_p: f64,
    /// Seed of the draws. It does not depend on `run.seed` or on the place in the pipeline, so two
    /// models draw the same random numbers. Default 0.
    pub seed: u64,
    /// Whether to continue after a token that ends a text: `eos_token_id` of
    /// `generation_config.json`, a number or a list (without that file, of `config.json`); if it
    /// names none, the EOS token of the tokenizer. Default false.
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
        let mut prompts = self.prompts.clone();
        if let Some(path) = &self.file {
            prompts.extend(corpus::read_prompts(path.as_ref())?);
        }
        Ok(prompts)
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
                "there are no prompts",
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
                "with 0 candidates no token can be drawn",
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
        faults
    }

    fn unused_options(&self, _: &EarlierStages) -> Vec<UnusedOption> {
        if self.temperature != 0.0 {
            return Vec::new();
        }
        let reason = "a `temperature` of 0 always takes the most likely token";
        UnusedOption::all(&["top_k", "top_p", "seed"], reason).collect()
    }

    fn environment_faults(&self, environment: &mut Environment) -> Vec<OptionFault> {
        environment.add_weights(1);
        let model = environment.model.as_ref();
        let positions = model.map_or(usize::MAX, |model| model.max_positions);
        let lacking = model.filter(|model| !model.has_tokenizer);
        let tokenizer_help = lacking.map(|model| model.missing_tokenizer_help.clone());
        let longest = self.max_new_tokens.min(positions);
        environment.add_forward_pass(MAX_BATCH_SIZE, longest);
        environment.add_kv_cache(1, longest);
        if let Some(source) = self.prompt_source() {
            let faults = environment.check_corpus("file", &source);
            if !faults.is_empty() {
                return faults;
            }
            if environment.holds_token_ids(&source) {
                return vec![OptionFault::new(
                    "file",
                    "its rows are token ids, and prompts are text",
                    "give rows with a field `text`",
                )];
            }
        }
        let key = if self.prompts.is_empty() {
            "file"
        } else {
            "prompts"
        };
        let Some(tokenizer_help) = tokenizer_help else {
            return environment.check_special_tokens(key).into_iter().collect();
        };
        vec![OptionFault::new(
            key,
            "prompts are text, and the model's folder has no tokenizer.json",
            tokenizer_help,
        )]
    }

    fn run(&self, context: &Context, inputs: &StageValues) -> Result<StageOutput, StageError> {
        Ok(run(self, context, inputs.require(MODEL)?)?.into())
    }
}

/// One row of `generate.parquet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateRow {
    /// Index of the prompt, from 0.
    pub prompt: u32,
    /// The prompt.
    pub input: String,
    /// The text that the model generated after it.
    pub output: String,
    /// The same as token ids.
    pub ids: Vec<u32>,
    /// Whether the model ended the text itself.
    pub finished: bool,
}

/// The prompts could not be continued.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("prompts are text, and the model's folder has no tokenizer.json")]
    NoTokenizer,
    #[error(
        "prompt {prompt} has {tokens} tokens, which leaves no room in the model's {positions} \
         positions"
    )]
    PromptTooLong {
        prompt: u32,
        tokens: usize,
        positions: usize,
    },
    #[error("prompt {prompt}: {error}")]
    Tokenizer { prompt: u32, error: TokenizerError },
    #[error("prompt {0} is empty, and the tokenizer names neither a BOS nor an EOS token")]
    EmptyPrompt(u32),
    #[error(
        "prompt {prompt}: a logit is {value}: the weights of the model, or of an adapter in it, \
         hold or give numbers that are not finite"
    )]
    NotFinite { prompt: u32, value: f32 },
}

/// The largest number of prompts that are continued in one batch.
const MAX_BATCH_SIZE: usize = 32;

/// How many prompts are continued together: as many as their keys and values fit into a quarter of
/// the memory, at most [`MAX_BATCH_SIZE`]. On a GPU the last bits of a result depend on this
/// number, so it is computed from the GPU's total memory, not from its free memory.
fn batch_size(texts: &[Continuation], context: &Context, model: &Model) -> usize {
    let longest = texts
        .iter()
        .map(Continuation::max_tokens)
        .max()
        .unwrap_or(1);
    let values_per_token: usize = model
        .blocks
        .iter()
        .map(|block| block[BlockTensor::K].rows() + block[BlockTensor::V].rows())
        .sum();
    let bytes_per_text = (longest * values_per_token * size_of::<f32>()) as u64;
    let memory = tensor::selected_gpu_memory().unwrap_or(context.memory_budget.bytes);
    (memory / 4 / bytes_per_text.max(1)).clamp(1, MAX_BATCH_SIZE as u64) as usize
}

/// Continues every prompt.
pub fn run(options: &Options, context: &Context, model: &Model) -> Result<Vec<Table>, StageError> {
    let tokenizer = model.tokenizer.as_deref().ok_or(Error::NoTokenizer)?;
    let prompts = options.read_prompts()?;
    let bar = context.progress.bar("generate", prompts.len() as u64);
    let mut texts: Vec<Continuation> = Vec::new();
    for (prompt, input) in (0..).zip(&prompts) {
        texts.push(Continuation::new(prompt, input, tokenizer, model, options)?);
    }
    // Batches are formed from all prompts, so that a resumed run has the same ones.
    let batch_size = batch_size(&texts, context, model);
    let mut rows: Vec<GenerateRow> = context.checkpoint.read().unwrap_or_default();
    bar.skip(rows.len() as u64);
    texts.drain(..rows.len().min(texts.len()));
    let end_tokens = if options.ignore_eos {
        &[]
    } else {
        tokenizer.end_tokens()
    };
    for batch in texts.chunks_mut(batch_size) {
        context.checkpoint_or_stop(|| &rows)?;
        let result = generate_batch(batch, options, context, model, end_tokens);
        if result.as_ref().is_err_and(StageError::is_interrupted) {
            context.checkpoint.write(&rows);
        }
        result?;
        for text in batch {
            rows.push(text.to_row(tokenizer)?);
            bar.step();
        }
    }
    tracing::info!(texts = rows.len(), "generated");
    Ok(vec![Table::from_rows("generate", &rows)?])
}

/// A prompt and the tokens generated after it.
struct Continuation {
    /// Index of the prompt.
    prompt: u32,
    input: String,
    prompt_ids: Vec<u32>,
    output_ids: Vec<u32>,
    /// The most tokens that may be generated.
    max_output_tokens: usize,
    /// Whether the model has generated an end token.
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
        let in_prompt = |error| Error::Tokenizer { prompt, error };
        let mut prompt_ids = tokenizer.encode(input, true).map_err(in_prompt)?;
        if prompt_ids.is_empty() {
            let prefix = tokenizer.prefix_token().map_err(in_prompt)?;
            prompt_ids.push(prefix.ok_or(Error::EmptyPrompt(prompt))?);
        }
        let (tokens, positions) = (prompt_ids.len(), model.config.max_positions);
        if tokens >= positions {
            return Err(Error::PromptTooLong {
                prompt,
                tokens,
                positions,
            }
            .into());
        }
        let seed = Seed::from_u64(options.seed).derive(&format!("generate {prompt}"));
        Ok(Self {
            prompt,
            input: input.to_owned(),
            prompt_ids,
            output_ids: Vec::new(),
            max_output_tokens: options.max_new_tokens.min(positions - tokens),
            is_finished: false,
            rng: Box::new(seed.rng()),
        })
    }

    /// Tokens of the prompt and of the longest output.
    fn max_tokens(&self) -> usize {
        self.prompt_ids.len() + self.max_output_tokens
    }

    fn is_active(&self) -> bool {
        !self.is_finished && self.output_ids.len() < self.max_output_tokens
    }

    /// The row of the table. The output is what decoding prompt and output together adds to the
    /// decoded prompt, so that it includes the space between them; it is decoded alone if the
    /// decoded prompt is not a prefix.
    fn to_row(&self, tokenizer: &Tokenizer) -> Result<GenerateRow, StageError> {
        let all_ids = [&self.prompt_ids[..], &self.output_ids[..]].concat();
        let decoded_prompt = tokenizer.decode(&self.prompt_ids)?;
        let decoded_all = tokenizer.decode(&all_ids)?;
        let output = match decoded_all.strip_prefix(&decoded_prompt) {
            Some(output) => output.to_owned(),
            None => tokenizer.decode(&self.output_ids)?,
        };
        Ok(GenerateRow {
            prompt: self.prompt,
            input: self.input.clone(),
            output,
            ids: self.output_ids.clone(),
            finished: self.is_finished,
        })
    }
}

/// Continues all texts of a batch, one token of each at a time.
fn generate_batch(
    texts: &mut [Continuation],
    options: &Options,
    context: &Context,
    model: &Model,
    end_tokens: &[u32],
) -> Result<(), StageError> {
    let longest = texts
        .iter()
        .map(Continuation::max_tokens)
        .max()
        .unwrap_or(0);
    let mut decoder = Decoder::new(model, texts.len(), longest);
    // The next inputs of the model: for each active text its index and its new tokens, at first
    // those of the prompt.
    let mut next_inputs: Vec<(usize, Vec<u32>)> = texts
        .iter()
        .map(|text| text.prompt_ids.clone())
        .enumerate()
        .collect();
    while !next_inputs.is_empty() {
        context.check_interrupt()?;
        let all_logits = decoder.extend_sequences(&next_inputs)?;
        for ((index, ids), logits) in next_inputs.iter_mut().zip(all_logits) {
            let text = &mut texts[*index];
            if let Some(&value) = logits.iter().find(|logit| !logit.is_finite()) {
                let prompt = text.prompt;
                return Err(Error::NotFinite { prompt, value }.into());
            }
            let id = choose_token(&logits, options, &mut text.rng);
            text.is_finished = end_tokens.contains(&id);
            if !text.is_finished {
                text.output_ids.push(id);
            }
            *ids = vec![id];
        }
        next_inputs.retain(|(index, _)| texts[*index].is_active());
    }
    Ok(())
}
