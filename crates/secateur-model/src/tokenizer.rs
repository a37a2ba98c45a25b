//! The tokenizer of a checkpoint: text ↔ token ids, through the `tokenizers` crate. For models that
//! are trained here, it can also learn a byte-level BPE tokenizer from text.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, ModelWrapper, TokenizerBuilder};

const TOKENIZER_FILE: &str = "tokenizer.json";
const CONFIG_FILE: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";
const GENERATION_CONFIG_FILE: &str = "generation_config.json";

/// The files of a tokenizer. An export copies them unchanged.
const FILE_NAMES: [&str; 6] = [
    TOKENIZER_FILE,
    CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    "added_tokens.json",
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

/// A tokenizer, with the content of its files for an export.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Name and content of each file; `tokenizer.json` comes first.
    files: Vec<(String, Vec<u8>)>,
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
    #[error("the tokenizer has ids up to {largest}, the model's vocabulary has {vocab} entries")]
    IdOutOfVocabulary { largest: usize, vocab: usize },
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
            let content =
                std::fs::read(&path).map_err(|source| TokenizerError::Read { path, source })?;
            files.push((name, content));
        }
        let invalid = |error: tokenizers::Error| TokenizerError::Invalid {
            path: tokenizer_path.clone(),
            message: error.to_string(),
        };
        // `tokenizer.json` is the first of FILE_NAMES and exists.
        let mut inner = tokenizers::Tokenizer::from_bytes(&files[0].1).map_err(invalid)?;
        remove_training_options(&mut inner).map_err(invalid)?;
        Ok(Some(Self { inner, files }))
    }

    /// Learns a byte-level BPE tokenizer (Radford et al. 2019) of `vocabulary` entries from
    /// documents. It puts `<s>` before every text. The same documents give the same tokenizer.
    ///
    /// # Errors
    /// If the `tokenizers` crate refuses the documents or the vocabulary.
    pub fn train(
        documents: impl Iterator<Item = String> + Send,
        vocabulary: usize,
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
            "model_max_length": 512,
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
        Ok(Self { inner, files })
    }

    /// Converts a text to ids. With `add_special_tokens` the tokenizer adds those that it puts
    /// around every text, usually BOS at the start.
    ///
    /// # Errors
    /// If the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        self.inner
            .encode_fast(text, add_special_tokens)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| TokenizerError::Encode(error.to_string()))
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
    /// BOS (`prefix_token_id` of lm-evaluation-harness).
    pub fn prefix_token(&self) -> Option<u32> {
        self.special_token_id("bos_token")
            .or_else(|| self.special_token_id("eos_token"))
    }

    /// The tokens that end a generated text: those that `generation_config.json` names, and EOS.
    pub fn end_tokens(&self) -> Vec<u32> {
        let generation_config = self.json_file(GENERATION_CONFIG_FILE).unwrap_or_default();
        // A single id or a list of ids.
        let configured_ids = match &generation_config["eos_token_id"] {
            Value::Array(ids) => ids.clone(),
            single => vec![single.clone()],
        };
        configured_ids
            .iter()
            .filter_map(|id| u32::try_from(id.as_u64()?).ok())
            .chain(self.special_token_id("eos_token"))
            .collect()
    }

    /// The id of the special token with this role (`bos_token`), from the first file that names a
    /// token of the vocabulary. The token is written as a string, or as an object with `content`.
    fn special_token_id(&self, role: &str) -> Option<u32> {
        [CONFIG_FILE, SPECIAL_TOKENS_FILE].iter().find_map(|file| {
            let map = self.json_file(file)?;
            let token = &map[role];
            let content = token.as_str().or_else(|| token["content"].as_str())?;
            self.inner.token_to_id(content)
        })
    }

    /// The content of one of the tokenizer's JSON files. `None` if it is missing or not JSON.
    fn json_file(&self, file_name: &str) -> Option<Value> {
        let (_, content) = self.files.iter().find(|(name, _)| name == file_name)?;
        serde_json::from_slice(content).ok()
    }

    /// The number of ids: the largest id plus one.
    pub fn vocabulary_size(&self) -> usize {
        self.inner
            .get_vocab(true)
            .values()
            .max()
            .map_or(0, |&id| id as usize + 1)
    }

    /// Checks that every id is in a model's vocabulary of `vocab` entries.
    ///
    /// # Errors
    /// If the id of a token, or of a special token that is added to every text, is outside it.
    pub fn check_fits_vocabulary(&self, vocab: usize) -> Result<(), TokenizerError> {
        // The post-processor's ids are written in the file beside their tokens and may differ from
        // those of the vocabulary. An empty text is encoded as these tokens alone.
        let largest_special = self.encode("", true)?.into_iter().max().unwrap_or(0) as usize;
        let largest = self
            .vocabulary_size()
            .saturating_sub(1)
            .max(largest_special);
        if largest >= vocab {
            Err(TokenizerError::IdOutOfVocabulary { largest, vocab })
        } else {
            Ok(())
        }
    }

    /// Name and content of the tokenizer's files, unchanged.
    pub fn files(&self) -> &[(String, Vec<u8>)] {
        &self.files
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trained_tokenizer_round_trips_text_and_is_reproducible() {
        let documents = || {
            ["the cat sat on the mat", "the dog sat on the log"]
                .map(str::to_owned)
                .into_iter()
        };
        let tokenizer = Tokenizer::train(documents(), 280).expect("it trains");
        let trained_again = Tokenizer::train(documents(), 280).expect("it trains");
        assert_eq!(tokenizer.files(), trained_again.files());
        let ids = tokenizer
            .encode("the cat é", true)
            .expect("every byte is a token");
        assert_eq!(ids[0], 0, "BOS is the first token");
        assert_eq!(
            tokenizer.decode(&ids).expect("ids of the vocabulary"),
            "the cat é"
        );
        let size = tokenizer.vocabulary_size();
        assert!(size <= 280);
        assert!(tokenizer.check_fits_vocabulary(size).is_ok());
        assert!(tokenizer.check_fits_vocabulary(size - 1).is_err());
    }
}
