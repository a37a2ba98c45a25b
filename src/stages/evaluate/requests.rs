//! Requests as tokens, built as the protocols define.

use super::{Error, Options, Protocol};
use crate::stages::StageError;
use secateur_data::python::trim_end;
use secateur_data::task::{LikelihoodRequest, Task};
use secateur_model::tokenizer::{Tokenizer, TokenizerError};

/// A request as tokens.
pub(crate) struct EncodedRequest {
    /// What the model reads: context and continuation without the very last token, cut on the left
    /// to the longest allowed.
    pub input: Vec<u32>,
    /// What is scored: the last positions of the input predict it. The continuation, or the end of
    /// it that fits.
    pub continuation: Vec<u32>,
    /// Tokens of context and continuation that were cut away.
    pub truncated_tokens: usize,
    /// Of these, tokens of the continuation.
    pub truncated_choice_tokens: usize,
}

impl EncodedRequest {
    /// Encodes a request of the document with index `document` of a task; the model reads at most
    /// `limit` tokens.
    pub(crate) fn encode(
        request: &LikelihoodRequest,
        (task, document): (&Task, u64),
        options: &Options,
        tokenizer: &Tokenizer,
        limit: usize,
    ) -> Result<Self, StageError> {
        let no_token = |what| Error::NoToken {
            task: task.name.clone(),
            doc: document,
            what,
        };
        let in_document = |error| Error::Tokenizer {
            task: task.name.clone(),
            doc: document,
            error,
        };
        let encoded = match options.protocol {
            Protocol::Harness if !request.context.is_empty() => {
                encode_jointly(request, options.add_bos_token, tokenizer)
            }
            _ => encode_separately(request, tokenizer),
        };
        let (mut context, mut continuation) = encoded.map_err(in_document)?;
        if context.is_empty() {
            let prefix = tokenizer.prefix_token().map_err(in_document)?;
            let prefix = prefix.ok_or_else(|| no_token("context"))?;
            context.push(prefix);
            // A choice that begins with the prefix token is scored from the token after it.
            if options.protocol == Protocol::Harness && continuation.first() == Some(&prefix) {
                continuation.remove(0);
            }
        }
        if continuation.is_empty() {
            return Err(no_token("choice").into());
        }
        // The last token is only predicted, never read.
        let input_length = context.len() + continuation.len() - 1;
        let truncated_tokens = input_length.saturating_sub(limit);
        let truncated_choice_tokens = continuation.len().saturating_sub(limit);
        let input = context
            .iter()
            .chain(&continuation)
            .take(input_length)
            .skip(truncated_tokens)
            .copied()
            .collect();
        Ok(Self {
            input,
            continuation: continuation[truncated_choice_tokens..].to_vec(),
            truncated_tokens,
            truncated_choice_tokens,
        })
    }
}

/// The tokens of the context, and those of the continuation: context and continuation are encoded
/// as one text, from which as many tokens are removed at the start as the context alone has. White
/// space (Python's) at the end of the context belongs to the continuation, as in the harness.
fn encode_jointly(
    request: &LikelihoodRequest,
    add_special_tokens: bool,
    tokenizer: &Tokenizer,
) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
    let text = format!("{}{}", request.context, request.continuation);
    let mut all_tokens = tokenizer.encode(&text, add_special_tokens)?;
    let context = tokenizer.encode(trim_end(&request.context), add_special_tokens)?;
    let continuation = all_tokens.split_off(context.len().min(all_tokens.len()));
    Ok((context, continuation))
}

/// The tokens of the context, and those of the continuation, each encoded alone.
fn encode_separately(
    request: &LikelihoodRequest,
    tokenizer: &Tokenizer,
) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
    let context = tokenizer.encode(&request.context, false)?;
    let continuation = tokenizer.encode(&request.continuation, false)?;
    Ok((context, continuation))
}
