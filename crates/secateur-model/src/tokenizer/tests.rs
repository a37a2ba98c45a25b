//! The special tokens that files name. The expected values are those of transformers 5.23.

use std::path::Path;

use serde_json::{Value, json};

use super::*;

/// A tokenizer of words with `<s>` before every text.
fn word_tokenizer() -> Value {
    let added = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [added(0, "<s>"), added(1, "</s>")],
        "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                { "SpecialToken": { "id": "<s>", "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } },
            ],
            "pair": [
                { "Sequence": { "id": "A", "type_id": 0 } },
                { "Sequence": { "id": "B", "type_id": 0 } },
            ],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] } },
        },
        "decoder": null,
        "model": {
            "type": "WordLevel",
            "vocab": { "<s>": 0, "</s>": 1, "hi": 2, "ho": 3 },
            "unk_token": "ho",
        },
    })
}

/// Loads the tokenizer of words from a folder with these other files.
fn load(files: &[(&str, Value)]) -> Tokenizer {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write(folder.path(), TOKENIZER_FILE, &word_tokenizer());
    for (name, content) in files {
        write(folder.path(), name, content);
    }
    Tokenizer::load(folder.path())
        .expect("the files are valid")
        .expect("there is a tokenizer.json")
}

fn write(folder: &Path, name: &str, content: &Value) {
    std::fs::write(folder.join(name), content.to_string()).expect("the folder is writable");
}

fn prefix(files: &[(&str, Value)]) -> Option<u32> {
    load(files).prefix_token().expect("there is no model")
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, true).expect("every word has an id")
}

#[test]
fn bos_and_eos_come_from_the_files_of_transformers_in_its_order() {
    let config = |value: Value| ("tokenizer_config.json", value);
    let map = |value: Value| ("special_tokens_map.json", value);
    assert_eq!(prefix(&[]), None, "no file names a token");
    assert_eq!(prefix(&[config(json!({"bos_token": "<s>"}))]), Some(0));
    let object = json!({"bos_token": {"__type": "AddedToken", "content": "<s>"}});
    assert_eq!(prefix(&[config(object)]), Some(0));
    assert_eq!(
        prefix(&[map(json!({"bos_token": {"content": "<s>"}}))]),
        Some(0)
    );
    // EOS in place of BOS, where there is no BOS.
    let without_bos = json!({"bos_token": null, "eos_token": "</s>"});
    assert_eq!(prefix(&[config(without_bos.clone())]), Some(1));
    // The map replaces the config, key by key, also with null …
    let named = json!({"bos_token": "<s>", "eos_token": "</s>"});
    assert_eq!(
        prefix(&[config(named.clone()), map(json!({"bos_token": null}))]),
        Some(1)
    );
    assert_eq!(
        prefix(&[
            config(without_bos.clone()),
            map(json!({"bos_token": "<s>"}))
        ]),
        Some(0)
    );
    // … but is not read beside `added_tokens_decoder`.
    let mut with_decoder = without_bos;
    with_decoder["added_tokens_decoder"] = json!({"0": {"content": "<s>", "special": true}});
    assert_eq!(
        prefix(&[config(with_decoder), map(json!({"bos_token": "<s>"}))]),
        Some(1)
    );
    // Defaults of classes.
    for class in ["LlamaTokenizer", "LlamaTokenizerFast"] {
        let files = [config(json!({"tokenizer_class": class}))];
        assert_eq!(prefix(&files), Some(0), "{class}");
    }
    assert_eq!(
        prefix(&[("config.json", json!({"tokenizer_class": "LlamaTokenizer"}))]),
        Some(0)
    );
    let fast = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
    assert_eq!(prefix(&[config(fast)]), None);
    let null = json!({"tokenizer_class": "LlamaTokenizer", "bos_token": null, "eos_token": null});
    assert_eq!(prefix(&[config(null)]), None);
}

#[test]
fn the_post_processor_alone_puts_tokens_around_a_text_and_bos_never_stands_twice() {
    for class in ["LlamaTokenizerFast", "PreTrainedTokenizerFast"] {
        let config = json!({
            "tokenizer_class": class, "bos_token": "<s>", "eos_token": "</s>",
            "add_bos_token": false, "add_eos_token": true,
        });
        let tokenizer = load(&[("tokenizer_config.json", config)]);
        assert_eq!(encode(&tokenizer, "hi ho"), [0, 2, 3], "{class}");
        assert_eq!(encode(&tokenizer, "<s>hi"), [0, 2]);
        assert_eq!(encode(&tokenizer, "</s>hi"), [0, 1, 2]);
        assert_eq!(encode(&tokenizer, "hi <s>"), [0, 2, 0]);
    }
    // Without a BOS, EOS is the prefix token.
    let config = json!({"eos_token": "</s>"});
    let tokenizer = load(&[("tokenizer_config.json", config)]);
    assert_eq!(encode(&tokenizer, "</s>hi"), [1, 2]);
    assert_eq!(encode(&tokenizer, "<s>hi"), [0, 0, 2]);
}

#[test]
fn end_tokens_come_from_the_generation_config_then_the_config_then_eos() {
    let end_tokens = |files: &[(&str, Value)]| load(files).end_tokens().to_vec();
    let eos = ("tokenizer_config.json", json!({"eos_token": "</s>"}));
    let generation = |ids: Value| ("generation_config.json", json!({"eos_token_id": ids}));
    let config = |ids: Value| ("config.json", json!({"eos_token_id": ids}));
    let [two, list] = [json!(2), json!([2, 3])];
    assert_eq!(end_tokens(&[eos.clone(), generation(two.clone())]), [2]);
    assert_eq!(
        end_tokens(&[eos.clone(), generation(list.clone()), config(json!(0))]),
        [2, 3]
    );
    assert_eq!(end_tokens(&[eos.clone(), config(two)]), [2]);
    assert_eq!(end_tokens(&[eos.clone(), config(list.clone())]), [2, 3]);
    assert_eq!(end_tokens(&[eos.clone(), config(Value::Null)]), [1]);
    // config.json does not count beside a generation_config.json.
    assert_eq!(
        end_tokens(&[eos, generation(Value::Null), config(list)]),
        [1]
    );
    assert!(end_tokens(&[]).is_empty());
}

#[test]
fn tokens_that_only_other_files_name_are_added_and_refuse_only_texts_that_have_them() {
    let role = json!({"bos_token": "<s>", "pad_token": "[P]"});
    let list = json!({"bos_token": "<s>", "additional_special_tokens": ["[P]"]});
    let decoder = json!({
        "bos_token": "<s>",
        "added_tokens_decoder": {
            "0": {"content": "<s>", "special": true},
            "40": {"content": "[P]", "special": true},
        },
    });
    for config in [role, list, decoder] {
        let tokenizer = load(&[("tokenizer_config.json", config)]);
        assert_eq!(encode(&tokenizer, "hi[P]"), [0, 2, 4]);
        let tokenizer = tokenizer.for_vocabulary(4);
        assert_eq!(
            tokenizer.special_token_faults(),
            SpecialTokenFaults::default()
        );
        assert_eq!(encode(&tokenizer, "hi ho"), [0, 2, 3]);
        assert_eq!(
            tokenizer
                .encode("hi [P]", true)
                .expect_err("id 4")
                .to_string(),
            "the token `[P]` with the id 4 is outside the model's vocabulary, which has the ids 0 \
             to 3"
        );
    }
    let added = ("added_tokens.json", json!({"[P]": 4}));
    assert_eq!(encode(&load(&[added]), "hi[P]"), [0, 2, 4]);

    let bos = ("tokenizer_config.json", json!({"bos_token": "[B]"}));
    let tokenizer = load(&[bos]).for_vocabulary(4);
    let faults = tokenizer.special_token_faults();
    assert_eq!(faults.around_text, None, "the post-processor adds <s>");
    assert!(
        faults
            .prefix
            .is_some_and(|fault| fault.contains("`[B]` with the id 4"))
    );
    assert!(tokenizer.prefix_token().is_err());
}

#[test]
fn files_that_are_not_json_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write(folder.path(), TOKENIZER_FILE, &word_tokenizer());
    let path = folder.path().join(CONFIG_FILE);
    std::fs::write(&path, "{").expect("the folder is writable");
    let error = Tokenizer::load(folder.path()).err().expect("not JSON");
    assert!(error.to_string().contains("tokenizer_config.json`: it is"));
}

#[test]
fn a_trained_tokenizer_round_trips_text_and_is_reproducible() {
    let documents = || {
        ["the cat sat on the mat", "the dog sat on the log"]
            .map(str::to_owned)
            .into_iter()
    };
    let tokenizer = Tokenizer::train(documents(), 280, 512).expect("it trains");
    let trained_again = Tokenizer::train(documents(), 280, 512).expect("it trains");
    assert_eq!(tokenizer.files(), trained_again.files());
    let ids = tokenizer
        .encode("the cat é", true)
        .expect("every byte is a token");
    assert_eq!(ids[0], 0, "BOS is the first token");
    assert_eq!(
        tokenizer.decode(&ids).expect("ids of the vocabulary"),
        "the cat é"
    );
    assert!(tokenizer.vocabulary_size() <= 280);
    assert_eq!(
        tokenizer.prefix_token().expect("there is no model"),
        Some(0)
    );
    assert_eq!(tokenizer.end_tokens(), [1]);
}
