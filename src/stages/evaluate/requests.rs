//! Requests in tokens, as the protocols put them together.

use super::{Error, Options, Protocol};
use crate::stages::StageError;
use secateur_data::task::{LikelihoodRequest, Task};
use secateur_model::tokenizer::Tokenizer;

/// A request in tokens.
pub struct EncodedRequest {
    /// What the model reads: the last tokens that fit, without the very last.
    pub input: Vec<u32>,
    /// What is scored, predicted by the last positions of the input: the choice, or as much of its end as fits.
    pub continuation: Vec<u32>,
    /// Tokens that did not fit.
    pub truncated_tokens: usize,
    /// Of these, tokens of the choice.
    pub truncated_choice_tokens: usize,
}

impl EncodedRequest {
    /// A request of document `doc` of a task; `limit`: tokens that the model reads at most.
    pub fn encode(
        request: &LikelihoodRequest,
        (task, doc): (&Task, u64),
        options: &Options,
        tokenizer: &Tokenizer,
        limit: usize,
    ) -> Result<Self, StageError> {
        let no_token = |what| Error::NoToken {
            task: task.name.clone(),
            doc,
            what,
        };
        let (mut context, continuation) = match options.protocol {
            Protocol::Harness => encode_jointly(request, options.add_bos_token, tokenizer)?,
            Protocol::LlmPruner => (
                tokenizer.encode(&request.context, false)?,
                tokenizer.encode(&request.continuation, false)?,
            ),
        };
        if context.is_empty() {
            context.push(
                tokenizer
                    .prefix_token()
                    .ok_or_else(|| no_token("context"))?,
            );
        }
        if continuation.is_empty() {
            return Err(no_token("choice"));
        }
        let whole = context.len() + continuation.len() - 1;
        let (cut, cut_choice) = (
            whole.saturating_sub(limit),
            continuation.len().saturating_sub(limit),
        );
        let input = context
            .iter()
            .chain(&continuation)
            .take(whole)
            .skip(cut)
            .copied()
            .collect();
        Ok(Self {
            input,
            continuation: continuation[cut_choice..].to_vec(),
            truncated_tokens: cut,
            truncated_choice_tokens: cut_choice,
        })
    }
}

/// Context and continuation are encoded together, and the context alone; the continuation's tokens are those of the whole after
/// as many as the context has. White space at the context's end belongs to the continuation.
fn encode_jointly(
    request: &LikelihoodRequest,
    special: bool,
    tokenizer: &Tokenizer,
) -> Result<(Vec<u32>, Vec<u32>), StageError> {
    let mut whole = tokenizer.encode(
        &format!("{}{}", request.context, request.continuation),
        special,
    )?;
    let context = tokenizer.encode(request.context.trim_end(), special)?;
    let continuation = whole.split_off(context.len().min(whole.len()));
    Ok((context, continuation))
}
