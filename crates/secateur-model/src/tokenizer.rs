//! The tokenizer of a checkpoint: text ↔ token ids, through the `tokenizers` crate. For models that
//! are trained here, it can also learn a byte-level BPE tokenizer from text.
//!
//! # Special tokens
//!
//! They come from the files that transformers 5 reads, in its order:
//!
//! - **Tokens around a text**, usually BOS at the start: the post-processor in `tokenizer.json`
//!   alone. `add_bos_token` and `add_eos_token` in `tokenizer_config.json` have no effect beside a
//!   `tokenizer.json`. (transformers 4 rebuilt the post-processor from them for some classes, such
//!   as `LlamaTokenizerFast`.)
//! - **BOS and EOS** by role, where one is needed without a text: `bos_token` and `eos_token` of
//!   `tokenizer_config.json`. If that file has no `added_tokens_decoder`, the keys of
//!   `special_tokens_map.json` replace its keys. A token is a string or an object with `content`;
//!   null means that there is none. If no file has the key, the class in `tokenizer_class` (also of
//!   `config.json`) has defaults: `<s>` and `</s>` for `LlamaTokenizer`, `<|endoftext|>` as EOS and
//!   no BOS for `Qwen2Tokenizer`, …
//! - **Prefix token**, from which the first token of a text is predicted if nothing stands before
//!   it: BOS, or EOS where there is no BOS (`prefix_token_id` of lm-evaluation-harness).
//! - **A text that begins with the text of the prefix token** gets no tokens around it, so BOS never
//!   stands twice. lm-evaluation-harness 0.4.13 does so for contexts and texts. Here it holds for
//!   every text: corpora, prompts and training rows too. (`tokenizer(text)` of transformers, which
//!   LLM-Pruner calls for its corpora, puts a second BOS there.)
//! - **The ids that end a generated text**: `eos_token_id` of `generation_config.json`, a number or
//!   a list. Without that file: `eos_token_id` of `config.json`. If this names none, transformers
//!   generates up to the limit; here the EOS of the tokenizer ends the text.
//! - **Tokens that these files name and `tokenizer.json` lacks** are added to it with the next free
//!   ids: those of `added_tokens_decoder` (or of `added_tokens.json`), those with a role, then
//!   `additional_special_tokens`.
//!
//! A tokenizer may have ids beyond the model's vocabulary, such as an unused padding token. Only a
//! text that contains one is refused ([`TokenizerError::IdOutOfVocabulary`]).
//!
//! A folder without `tokenizer.json` has no tokenizer. Such a model reads rows of token ids, which
//! are taken as they are.

use std::path::{Path, PathBuf};

use secateur_base::git_lfs::{GIT_LFS_HELP, is_git_lfs_pointer};
use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, ModelWrapper, TokenizerBuilder};

use crate::regular_file;

mod special_tokens;
#[cfg(test)]
mod tests;
use special_tokens::SpecialTokenFiles;

const TOKENIZER_FILE: &str = "tokenizer.json";
const CONFIG_FILE: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";
const ADDED_TOKENS_FILE: &str = "added_tokens.json";
const GENERATION_CONFIG_FILE: &str = "generation_config.json";

/// The files of a tokenizer. An export copies them unchanged.
const FILE_NAMES: [&str; 6] = [
    TOKENIZER_FILE,
    CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    ADDED_TOKENS_FILE,
    "tokenizer.model",
    GENERATION_CONFIG_FILE,
];

/// Begins every document; token 0 of a tokenizer trained here.
const BOS: &str = "<s>";
/// Ends a document; token 1 of a tokenizer trained here.
const EOS: &str = "</s>";

/// The tokenizer files that exist in a model's folder.
pub fn tokenizer_files(folder: &Path) -> Vec<PathBuf> {
    FILE_NAMES
        .iter()
        .map(|name| folder.join(name))
        .filter(|path| path.exists())
        .collect()
}

/// What to do about a folder without `tokenizer.json` where text is read.
pub(crate) fn missing_tokenizer_help(folder: &Path) -> String {
    /// Files of tokenizers in forms that are not read.
    const OTHER_FORMS: [&str; 7] = [
        "tokenizer.model",
        "spiece.model",
        "ice_text.model",
        "tekken.json",
        "qwen.tiktoken",
        "tokenizer.tiktoken",
        "vocab.json",
    ];
    match OTHER_FORMS.iter().find(|name| folder.join(name).exists()) {
        None => "put the tokenizer beside the model".to_owned(),
        Some(name) => format!(
            "its `{name}` is not read; convert it: python -c \"from transformers import \
             AutoTokenizer as T; T.from_pretrained('{0}').save_pretrained('{0}')\"",
            folder.display()
        ),
    }
}

/// A tokenizer, with the content of its files for an export.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Name and content of each file; `tokenizer.json` comes first.
    files: Vec<(String, Vec<u8>)>,
    prefix_token: Option<PrefixToken>,
    end_tokens: Vec<u32>,
    /// Entries of the model's vocabulary. Larger than every id if the tokenizer has no model.
    model_vocabulary: usize,
}

/// The token from which the first token of a text is predicted.
struct PrefixToken {
    id: u32,
    text: String,
}

/// Special tokens that a tokenizer uses and the model's vocabulary lacks, as messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokenFaults {
    /// Of the tokens that are put around every text.
    pub around_text: Option<String>,
    /// Of the prefix token.
    pub prefix: Option<String>,
}

/// A tokenizer that is damaged or does not fit its model.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("cannot read `{}`: {source}", .path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("`{}` is not a tokenizer: {message}", .path.display())]
    Invalid { path: PathBuf, message: String },
    #[error("`{}`: {message}", .path.display())]
    NotJson { path: PathBuf, message: String },
    #[error("{token} is outside the model's vocabulary, which has the ids 0 to {}", vocab - 1)]
    IdOutOfVocabulary {
        /// The token's text and id.
        token: String,
        /// Entries of the model's vocabulary.
        vocab: usize,
    },
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
    #[error("the tokenizer cannot be trained: {0}")]
    Train(String),
}

impl Tokenizer {
    /// Reads the tokenizer in a model's folder. `None` if the folder has no `tokenizer.json`.
    ///
    /// # Errors
    /// If a file cannot be read or `tokenizer.json` is not a tokenizer.
    pub fn load(folder: &Path) -> Result<Option<Self>, TokenizerError> {
        let tokenizer_path = folder.join(TOKENIZER_FILE);
        if !tokenizer_path.exists() {
            return Ok(None);
        }
        let mut files = Vec::new();
        for path in tokenizer_files(folder) {
            let name = path
                .file_name()
                .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            let content = regular_file::read(&path)
                .map_err(|source| TokenizerError::Read { path, source })?;
            files.push((name, content));
        }
        let invalid = |error: tokenizers::Error| TokenizerError::Invalid {
            path: tokenizer_path.clone(),
            message: error.to_string(),
        };
        // `tokenizer.json` is the first of FILE_NAMES and exists.
        if is_git_lfs_pointer(&files[0].1) {
            return Err(TokenizerError::Invalid {
                path: tokenizer_path,
                message: format!("it is a pointer of Git LFS to the file; {GIT_LFS_HELP}"),
            });
        }
        let mut inner = tokenizers::Tokenizer::from_bytes(&files[0].1).map_err(invalid)?;
        remove_training_options(&mut inner).map_err(invalid)?;
        let special_tokens = SpecialTokenFiles::read(folder)?;
        add_missing_tokens(&mut inner, special_tokens.all_tokens());
        let id_of = |role| inner.token_to_id(&special_tokens.named_token(role)?);
        let (bos, eos) = (id_of("bos_token"), id_of("eos_token"));
        let mut end_tokens = special_tokens.end_token_ids();
        if end_tokens.is_empty() {
            end_tokens.extend(eos);
        }
        Ok(Some(Self {
            prefix_token: PrefixToken::new(bos.or(eos), &inner)?,
            end_tokens,
            model_vocabulary: usize::MAX,
            inner,
            files,
        }))
    }

    /// The same tokenizer for a model whose vocabulary has `entries` ids: a text with a larger id
    /// is refused.
    pub fn for_vocabulary(self, entries: usize) -> Self {
        Self {
            model_vocabulary: entries,
            ..self
        }
    }

    /// Learns a byte-level BPE tokenizer (Radford et al. 2019) of `vocabulary` entries from
    /// documents. It puts `<s>` before every text. The same documents give the same tokenizer.
    /// `max_length`: the positions of its model, which the tokenizer's config states.
    ///
    /// # Errors
    /// If the `tokenizers` crate refuses the documents or the vocabulary.
    pub fn train(
        documents: impl Iterator<Item = String> + Send,
        vocabulary: usize,
        max_length: usize,
    ) -> Result<Self, TokenizerError> {
        let failed = |error: &dyn std::fmt::Display| TokenizerError::Train(error.to_string());
        // add_prefix_space = false: no space before the first word. trim_offsets = true: the
        // default; offsets are not used here. use_regex = true: GPT-2's expression separates words.
        let byte_level = ByteLevel::new(false, true, true);
        let bos_template = TemplateProcessing::builder()
            .try_single("<s> $A")
            .map_err(|error| failed(&error))?
            .special_tokens(vec![(BOS, 0)])
            .build()
            .map_err(|error| failed(&error))?;
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocabulary)
            .show_progress(false)
            .special_tokens(vec![
                AddedToken::from(BOS, true),
                AddedToken::from(EOS, true),
            ])
            // All 256 bytes are tokens, so every text can be encoded without an unknown token.
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        // The type parameters are model, normaliser (none is set), pre-tokenizer, post-processor
        // and decoder.
        let mut learned =
            TokenizerBuilder::<BPE, NFC, ByteLevel, TemplateProcessing, ByteLevel>::new()
                .with_model(BPE::default())
                .with_pre_tokenizer(Some(byte_level))
                .with_post_processor(Some(bos_template))
                .with_decoder(Some(byte_level))
                .build()
                .map_err(|error| failed(&error))?;
        learned
            .train(&mut trainer, documents)
            .map_err(|error| failed(&error))?;
        let tokenizer_json = learned.to_string(true).map_err(|error| failed(&error))?;
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "add_bos_token": true,
            "clean_up_tokenization_spaces": false,
            "model_max_length": max_length,
        });
        let config_json =
            serde_json::to_string_pretty(&config).map_err(|error| failed(&error))? + "\n";
        // Reading the JSON back gives the general tokenizer type that `load` gives.
        let inner = tokenizers::Tokenizer::from_bytes(tokenizer_json.as_bytes())
            .map_err(|error| failed(&error))?;
        let files = vec![
            (TOKENIZER_FILE.to_owned(), tokenizer_json.into_bytes()),
            (CONFIG_FILE.to_owned(), config_json.into_bytes()),
        ];
        Ok(Self {
            prefix_token: PrefixToken::new(inner.token_to_id(BOS), &inner)?,
            end_tokens: inner.token_to_id(EOS).into_iter().collect(),
            model_vocabulary: usize::MAX,
            inner,
            files,
        })
    }

    /// Converts a text to ids. With `add_special_tokens` the tokenizer adds those that it puts
    /// around every text, usually BOS at the start, unless the text begins with the text of the
    /// prefix token.
    ///
    /// # Errors
    /// If the tokenizer has no token for a part of the text, or an id is outside the model's
    /// vocabulary.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let begins_with_prefix = self
            .prefix_token
            .as_ref()
            .is_some_and(|prefix| text.starts_with(&prefix.text));
        let ids = self
            .inner
            .encode_fast(text, add_special_tokens && !begins_with_prefix)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| TokenizerError::Encode(error.to_string()))?;
        ids.iter().try_for_each(|&id| self.check_id(id))?;
        Ok(ids)
    }

    fn check_id(&self, id: u32) -> Result<(), TokenizerError> {
        if (id as usize) < self.model_vocabulary {
            return Ok(());
        }
        Err(TokenizerError::IdOutOfVocabulary {
            token: match self.inner.id_to_token(id) {
                Some(text) => format!("the token `{text}` with the id {id}"),
                None => format!("the token id {id}"),
            },
            vocab: self.model_vocabulary,
        })
    }

    /// Converts ids to text, without special tokens.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner
            .decode(ids, true)
            .map_err(|error| TokenizerError::Encode(error.to_string()))
    }

    /// The token from which the first token of a text is predicted: BOS, or EOS where there is no
    /// BOS. `None` if the tokenizer has neither.
    ///
    /// # Errors
    /// If its id is outside the model's vocabulary.
    pub fn prefix_token(&self) -> Result<Option<u32>, TokenizerError> {
        let Some(prefix) = &self.prefix_token else {
            return Ok(None);
        };
        self.check_id(prefix.id)?;
        Ok(Some(prefix.id))
    }

    /// The ids that end a generated text.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// The number of ids: the largest id plus one.
    pub fn vocabulary_size(&self) -> usize {
        self.inner
            .get_vocab(true)
            .values()
            .max()
            .map_or(0, |&id| id as usize + 1)
    }

    /// The special tokens that are outside the model's vocabulary.
    pub fn special_token_faults(&self) -> SpecialTokenFaults {
        let message = |error: TokenizerError| error.to_string();
        SpecialTokenFaults {
            // An empty text is encoded as the tokens that are put around every text.
            around_text: self.encode("", true).err().map(message),
            prefix: self.prefix_token().err().map(message),
        }
    }

    /// Name and content of the tokenizer's files, unchanged.
    pub fn files(&self) -> &[(String, Vec<u8>)] {
        &self.files
    }
}

impl PrefixToken {
    fn new(
        id: Option<u32>,
        tokenizer: &tokenizers::Tokenizer,
    ) -> Result<Option<Self>, TokenizerError> {
        let Some(id) = id else { return Ok(None) };
        let text = tokenizer
            .decode(&[id], false)
            .map_err(|error| TokenizerError::Encode(error.to_string()))?;
        Ok(Some(Self { id, text }))
    }
}

/// Adds the tokens that are not among the tokenizer's added tokens. One that is in its vocabulary
/// keeps its id; another one gets the next free id.
fn add_missing_tokens(tokenizer: &mut tokenizers::Tokenizer, tokens: Vec<AddedToken>) {
    let known = tokenizer.get_added_vocabulary().get_vocab().clone();
    let missing: Vec<AddedToken> = tokens
        .into_iter()
        .filter(|token| !known.contains_key(&token.content))
        .collect();
    if !missing.is_empty() {
        tokenizer.add_tokens(&missing);
    }
}

/// Removes options that a training script may have left in `tokenizer.json`: truncation, padding,
/// and BPE dropout, which divides words at random.
fn remove_training_options(tokenizer: &mut tokenizers::Tokenizer) -> tokenizers::Result<()> {
    tokenizer.with_truncation(None)?;
    tokenizer.with_padding(None);
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        tokenizer.with_model(bpe);
    }
    Ok(())
}
