//! The tokenizer of a checkpoint, through the `tokenizers` crate: `tokenizer.json` in, ids out, and a byte-level BPE
//! learned from text for models trained here.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, ModelWrapper, TokenizerBuilder};

/// Files that make up a tokenizer, beside `tokenizer.json`; an export hands them on as they came.
const FILE_NAMES: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "generation_config.json",
];

/// The files of a folder's tokenizer, as far as they are there.
pub fn tokenizer_files(folder: &Path) -> Vec<PathBuf> {
    FILE_NAMES
        .iter()
        .map(|name| folder.join(name))
        .filter(|path| path.exists())
        .collect()
}

/// Begins every document; token 0 of a tokenizer trained here.
const BOS: &str = "<s>";
/// Ends a document; token 1 of a tokenizer trained here.
const EOS: &str = "</s>";

/// Text to ids.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    files: Vec<(String, Vec<u8>)>,
}

/// A tokenizer is broken or does not fit.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("cannot read `{}`: {source}", .path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("`{}` is not a tokenizer: {message}", .path.display())]
    Invalid { path: PathBuf, message: String },
    #[error("the tokenizer has ids up to {largest}, the model's vocabulary has {vocab} entries")]
    IdOutOfVocabulary { largest: usize, vocab: usize },
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
    #[error("the tokenizer cannot be trained: {0}")]
    Train(String),
}

impl Tokenizer {
    /// Reads a folder's tokenizer; None if it has none.
    pub fn load(folder: &Path) -> Result<Option<Self>, TokenizerError> {
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            return Ok(None);
        }
        let mut files = Vec::new();
        for path in self::tokenizer_files(folder) {
            let name = path
                .file_name()
                .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            files.push((
                name,
                std::fs::read(&path).map_err(|source| TokenizerError::Read { path, source })?,
            ));
        }
        let broken = |e: tokenizers::Error| TokenizerError::Invalid {
            path: path.clone(),
            message: e.to_string(),
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(&files[0].1).map_err(broken)?;
        // What a training script left in the file must not cut or pad a text, or split it at random.
        inner.with_truncation(None).map_err(broken)?;
        inner.with_padding(None);
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some()
        {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            inner.with_model(bpe);
        }
        Ok(Some(Self { inner, files }))
    }

    /// Learns a byte-level BPE (Radford et al. 2019) of `vocabulary` entries from documents; `<s>` stands before every
    /// text. The same documents give the same tokenizer.
    pub fn train(
        documents: impl Iterator<Item = String> + Send,
        vocabulary: usize,
    ) -> Result<Self, TokenizerError> {
        let failed = |e: &dyn std::fmt::Display| TokenizerError::Train(e.to_string());
        let bytes = ByteLevel::new(false, true, true);
        let template = TemplateProcessing::builder()
            .try_single("<s> $A")
            .map_err(|e| failed(&e))?
            .special_tokens(vec![(BOS, 0)])
            .build()
            .map_err(|e| failed(&e))?;
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocabulary)
            .show_progress(false)
            .special_tokens(vec![
                AddedToken::from(BOS, true),
                AddedToken::from(EOS, true),
            ])
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut learned = TokenizerBuilder::<
            BPE,
            tokenizers::normalizers::NFC,
            ByteLevel,
            TemplateProcessing,
            ByteLevel,
        >::new()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(bytes))
        .with_post_processor(Some(template))
        .with_decoder(Some(bytes))
        .build()
        .map_err(|e| failed(&e))?;
        learned
            .train(&mut trainer, documents)
            .map_err(|e| failed(&e))?;
        let text = learned.to_string(true).map_err(|e| failed(&e))?;
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "add_bos_token": true,
            "clean_up_tokenization_spaces": false, "model_max_length": 512,
        });
        let config = serde_json::to_string_pretty(&config).map_err(|e| failed(&e))? + "\n";
        let files = vec![
            (FILE_NAMES[0].to_owned(), text.clone().into_bytes()),
            (FILE_NAMES[1].to_owned(), config.into_bytes()),
        ];
        let inner = tokenizers::Tokenizer::from_bytes(text.as_bytes()).map_err(|e| failed(&e))?;
        Ok(Self { inner, files })
    }

    /// The ids of a text; `special`: with what the tokenizer puts around every text, usually BOS in front.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizerError> {
        self.inner
            .encode_fast(text, special)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|e| TokenizerError::Encode(e.to_string()))
    }

    /// The text of ids, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner
            .decode(ids, true)
            .map_err(|e| TokenizerError::Encode(e.to_string()))
    }

    /// What stands before a text that has nothing before it: BOS, or EOS where there is none (lm-evaluation-harness's
    /// `prefix_token_id`).
    pub fn prefix_token(&self) -> Option<u32> {
        self.special_token_id("bos_token")
            .or_else(|| self.special_token_id("eos_token"))
    }

    /// The tokens that end a text: EOS, and those that `generation_config.json` names.
    pub fn end_tokens(&self) -> Vec<u32> {
        let config = self
            .files
            .iter()
            .find(|(name, _)| name == "generation_config.json");
        let config: Value = config
            .and_then(|(_, bytes)| serde_json::from_slice(bytes).ok())
            .unwrap_or_default();
        let named = match &config["eos_token_id"] {
            Value::Array(ids) => ids.clone(),
            one => vec![one.clone()],
        };
        let named = named
            .into_iter()
            .filter_map(|id| u32::try_from(id.as_u64()?).ok());
        named.chain(self.special_token_id("eos_token")).collect()
    }

    /// A special token as `tokenizer_config.json` or `special_tokens_map.json` names it.
    fn special_token_id(&self, role: &str) -> Option<u32> {
        let named = |(name, bytes): &(String, Vec<u8>)| {
            let map: Value = match name.as_str() {
                "tokenizer_config.json" | "special_tokens_map.json" => {
                    serde_json::from_slice(bytes).ok()?
                }
                _ => return None,
            };
            let token = &map[role];
            self.inner
                .token_to_id(token.as_str().or_else(|| token["content"].as_str())?)
        };
        self.files.iter().find_map(named)
    }

    /// Entries: the largest id and one.
    pub fn vocabulary_size(&self) -> usize {
        self.inner
            .get_vocab(true)
            .values()
            .max()
            .map_or(0, |&id| id as usize + 1)
    }

    /// # Errors
    /// If an id lies outside a model's vocabulary: of a token, or of what is put around every text.
    pub fn check_fits_vocabulary(&self, vocab: usize) -> Result<(), TokenizerError> {
        let around = self.encode("", true)?.into_iter().max().unwrap_or(0) as usize;
        let largest = self.vocabulary_size().saturating_sub(1).max(around);
        if largest >= vocab {
            Err(TokenizerError::IdOutOfVocabulary { largest, vocab })
        } else {
            Ok(())
        }
    }

    /// Its files, by name, as they came.
    pub fn files(&self) -> &[(String, Vec<u8>)] {
        &self.files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trained_tokenizer_round_trips_bytes_and_repeats() {
        let text = || {
            ["the cat sat on the mat", "the dog sat on the log"]
                .map(str::to_owned)
                .into_iter()
        };
        let tokenizer = Tokenizer::train(text(), 280).expect("it trains");
        assert_eq!(
            tokenizer.files(),
            Tokenizer::train(text(), 280).expect("it trains").files()
        );
        let ids = tokenizer
            .encode("the cat é", true)
            .expect("bytes cover everything");
        assert_eq!(ids[0], 0, "BOS stands in front");
        assert_eq!(
            tokenizer.inner.decode(&ids, true).expect("ids decode"),
            "the cat é"
        );
        assert!(
            tokenizer.vocabulary_size() <= 280
                && tokenizer.check_fits_vocabulary(279).is_err()
                    == (tokenizer.vocabulary_size() == 280)
        );
    }
}
