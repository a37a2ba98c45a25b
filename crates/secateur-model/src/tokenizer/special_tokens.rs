//! Which special tokens the files of a model name. The rule is in the documentation of
//! [`tokenizer`](super).

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::config::json_words;
use crate::regular_file;

use super::{
    ADDED_TOKENS_FILE, CONFIG_FILE, GENERATION_CONFIG_FILE, SPECIAL_TOKENS_FILE, TokenizerError,
};

const MODEL_CONFIG_FILE: &str = "config.json";

/// The roles of special tokens, in the order in which transformers adds them to the vocabulary.
const ROLES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// Lists of special tokens without a role.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// BOS and EOS of tokenizer classes whose files need not name them.
const CLASS_DEFAULTS: [(&str, Option<&str>, &str); 5] = [
    ("LlamaTokenizer", Some("<s>"), "</s>"),
    ("GemmaTokenizer", Some("<bos>"), "<eos>"),
    ("GPTNeoXTokenizer", Some("<|endoftext|>"), "<|endoftext|>"),
    ("GPT2Tokenizer", Some("<|endoftext|>"), "<|endoftext|>"),
    ("Qwen2Tokenizer", None, "<|endoftext|>"),
];

/// The JSON files that name special tokens. A file that does not exist is an empty object.
pub(super) struct SpecialTokenFiles {
    tokenizer_config: Map<String, Value>,
    special_tokens_map: Map<String, Value>,
    added_tokens: Map<String, Value>,
    /// None: the model has no such file.
    generation_config: Option<Map<String, Value>>,
    model_config: Map<String, Value>,
}

impl SpecialTokenFiles {
    /// Reads the files in a model's folder.
    ///
    /// # Errors
    /// If a file of the tokenizer cannot be read or is not a JSON object. `config.json` is not
    /// checked here.
    pub(super) fn read(folder: &Path) -> Result<Self, TokenizerError> {
        let read = |name: &str| read_json_object(&folder.join(name));
        Ok(Self {
            tokenizer_config: read(CONFIG_FILE)?.unwrap_or_default(),
            special_tokens_map: read(SPECIAL_TOKENS_FILE)?.unwrap_or_default(),
            added_tokens: read(ADDED_TOKENS_FILE)?.unwrap_or_default(),
            generation_config: read(GENERATION_CONFIG_FILE)?,
            model_config: read(MODEL_CONFIG_FILE).ok().flatten().unwrap_or_default(),
        })
    }

    /// The added tokens that `tokenizer_config.json` lists by id. If it has this list, transformers
    /// does not read `special_tokens_map.json` and `added_tokens.json`.
    fn added_tokens_decoder(&self) -> Option<&Map<String, Value>> {
        self.tokenizer_config
            .get("added_tokens_decoder")?
            .as_object()
    }

    /// The value of a key that names special tokens. `None`: no file has the key.
    fn value(&self, key: &str) -> Option<&Value> {
        let overriding = match self.added_tokens_decoder() {
            Some(_) => None,
            None => self.special_tokens_map.get(key),
        };
        overriding.or_else(|| self.tokenizer_config.get(key))
    }

    /// The token with a role, `bos_token` or `eos_token`. `None` if a file says null, and if
    /// neither a file nor the class names one.
    pub(super) fn named_token(&self, role: &str) -> Option<String> {
        if let Some(value) = self.value(role) {
            return added_token(value).map(|token| token.content);
        }
        let class = self
            .tokenizer_config
            .get("tokenizer_class")
            .or_else(|| self.model_config.get("tokenizer_class"))?
            .as_str()?;
        let class = class.strip_suffix("Fast").unwrap_or(class);
        let (_, bos, eos) = CLASS_DEFAULTS.iter().find(|(name, ..)| *name == class)?;
        match role {
            "bos_token" => bos.map(str::to_owned),
            "eos_token" => Some((*eos).to_owned()),
            _ => None,
        }
    }

    /// Every token that a file names, in the order in which transformers adds those that
    /// `tokenizer.json` does not have.
    pub(super) fn all_tokens(&self) -> Vec<AddedToken> {
        let mut tokens = self.tokens_by_id();
        tokens.extend(
            ROLES
                .iter()
                .filter_map(|role| added_token(self.value(role)?)),
        );
        for list in LISTS {
            let values = self.value(list).and_then(Value::as_array);
            tokens.extend(values.into_iter().flatten().filter_map(added_token));
        }
        tokens
    }

    /// The tokens of `added_tokens_decoder`, else those of `added_tokens.json`, by their ids.
    fn tokens_by_id(&self) -> Vec<AddedToken> {
        let mut tokens: Vec<(u64, AddedToken)> = match self.added_tokens_decoder() {
            Some(decoder) => decoder
                .iter()
                .filter_map(|(id, token)| Some((id.parse().ok()?, added_token(token)?)))
                .collect(),
            None => self
                .added_tokens
                .iter()
                .filter_map(|(content, id)| Some((id.as_u64()?, self.plain_token(content))))
                .collect(),
        };
        tokens.sort_by_key(|(id, _)| *id);
        tokens.into_iter().map(|(_, token)| token).collect()
    }

    /// A token of `added_tokens.json`: special if it has a role.
    fn plain_token(&self, content: &str) -> AddedToken {
        let has_role = |role: &&str| {
            let token = self.value(role).and_then(added_token);
            token.is_some_and(|token| token.content == content)
        };
        AddedToken::from(content, ROLES.iter().any(has_role))
    }

    /// The ids that end a generated text: `eos_token_id` of `generation_config.json`, or of
    /// `config.json` if the model has no such file. Empty if that names none.
    pub(super) fn end_token_ids(&self) -> Vec<u32> {
        let config = self
            .generation_config
            .as_ref()
            .unwrap_or(&self.model_config);
        let ids = match config.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.as_slice(),
            Some(id) => std::slice::from_ref(id),
            None => &[],
        };
        ids.iter()
            .filter_map(|id| u32::try_from(id.as_u64()?).ok())
            .collect()
    }
}

/// A token that is written as a string, or as an object with `content`. `None` for null.
fn added_token(value: &Value) -> Option<AddedToken> {
    if let Some(content) = value.as_str() {
        return Some(AddedToken::from(content, true));
    }
    let content = value["content"].as_str()?;
    let flag = |key: &str| value[key].as_bool();
    let token = AddedToken::from(content, flag("special").unwrap_or(true))
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false));
    Some(match flag("normalized") {
        Some(normalized) => token.normalized(normalized),
        None => token,
    })
}

/// The object in a JSON file. `None` if there is no such file.
fn read_json_object(path: &Path) -> Result<Option<Map<String, Value>>, TokenizerError> {
    if !path.exists() {
        return Ok(None);
    }
    let content = regular_file::read(path).map_err(|source| TokenizerError::Read {
        path: path.to_owned(),
        source,
    })?;
    let object = serde_json::from_slice(&content).map_err(|error| TokenizerError::NotJson {
        path: path.to_owned(),
        message: json_words(&error),
    })?;
    Ok(Some(object))
}
