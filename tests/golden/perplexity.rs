//! Perplexities in both protocols against transformers and lm-evaluation-harness.

use std::path::Path;

use arrow::array::{Array, AsArray};
use arrow::datatypes::UInt64Type;
use secateur::stages::evaluate::{self, Options};
use secateur_model::Model;

use super::evaluation::{context, corpora, floats, rows, tasks};
use crate::support::{self, json, shared};

/// Writes a task file for a text of TinyStories, and returns its path. `options` are the lines of
/// the task's `[rows]` table after the file's name.
fn stories(folder: &Path, file: &str, options: &str, metrics: &str) -> String {
    let data = shared("data");
    std::fs::copy(data.join("tinystories").join(file), folder.join(file)).unwrap();
    let path = folder.join(format!("{metrics}.toml"));
    let text = format!(
        "name = \"{metrics}\"\nversion = 1\nsplit = \"head\"\nmetrics = [{metrics:?}]\n\
         [rows]\nbeside = {file:?}\n{options}"
    );
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Stories between separators; the last one is incomplete and left out.
const STORIES: &str = r#"separator = "<|endoftext|>"
terminated = true
[text]
row = "{{ text.strip() }}"
"#;

test!(
    windowed_perplexities_equal_transformers,
    needs = [
        Shared("models/stories260K"),
        Shared("golden/perplexity.json"),
        Shared("data")
    ]
);
fn windowed_perplexities_equal_transformers() {
    let (folder, golden, data) = (
        shared("models/stories260K"),
        shared("golden/perplexity.json"),
        shared("data"),
    );
    let golden = &json(&golden)["windowed"];
    let temporary = tempfile::tempdir().unwrap();
    let train = format!("{STORIES}join = \"\\n\\n\"\n");
    let train = stories(
        temporary.path(),
        "tinystories_train_head.txt",
        &train,
        "perplexity",
    );
    let model = Model::load(&folder).unwrap();
    for window in [128, 512] {
        let valid = data.join("tinystories/tinystories_valid_head.txt");
        let options = Options {
            window: Some(window),
            corpora: vec![valid.display().to_string()],
            ..tasks(&["wikitext2", &train], None)
        };
        let tables = evaluate::run(&options, &context(Some(data.clone())), &model).unwrap();
        let (found, documents) = (
            rows(&tables, "evaluate"),
            rows(&tables, "evaluate_documents"),
        );
        assert_eq!(
            support::text(&found["task"]),
            ["wikitext2", "perplexity", "tinystories_valid_head"]
        );
        for (row, name) in [
            "wikitext2_test",
            "tinystories_train_head",
            "tinystories_valid_head",
        ]
        .into_iter()
        .enumerate()
        {
            let golden = golden[name]["windows"]
                .as_array()
                .unwrap()
                .iter()
                .find(|entry| entry["seq_len"] == window)
                .unwrap();
            assert_eq!(support::text(&found["metric"])[row], "perplexity");
            assert_eq!(support::text(&found["protocol"])[row], "llm-pruner");
            assert_eq!(
                found["n"].as_primitive::<UInt64Type>().value(row),
                golden["n_predicted_tokens"].as_u64().unwrap()
            );
            assert!(found["stderr"].is_null(row) && found["chance"].is_null(row));
            let value = floats(found, "value")[row];
            let difference = (value / golden["perplexity"].as_f64().unwrap() - 1.0).abs();
            note!("{name}, windows of {window}: relative difference {difference:.1e}");
            assert!(difference < 1e-6, "{name}: {value}");
            // The mean of the windows' values is the perplexity.
            let document_tasks = support::text(&documents["task"]);
            let task = support::text(&found["task"])[row].clone();
            let window_values: Vec<f64> = floats(documents, "value")
                .into_iter()
                .zip(document_tasks)
                .filter(|(_, document_task)| *document_task == task)
                .map(|(value, _)| value)
                .collect();
            assert_eq!(
                window_values.len() as u64,
                golden["n_windows"].as_u64().unwrap()
            );
            assert!(
                (window_values.iter().sum::<f64>() / window_values.len() as f64 / value - 1.0)
                    .abs()
                    < 1e-12
            );
        }
    }
}

test!(
    rolling_perplexities_equal_the_harness,
    needs = [
        Shared("models/stories260K"),
        Shared("golden/perplexity.json"),
        Shared("data")
    ]
);
fn rolling_perplexities_equal_the_harness() {
    let (folder, golden, data) = (
        shared("models/stories260K"),
        shared("golden/perplexity.json"),
        shared("data"),
    );
    let golden = &json(&golden)["rolling"];
    let model = Model::load(&folder).unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let metrics = "word_perplexity\", \"byte_perplexity\", \"bits_per_byte";
    let task = |file: &str, options: &str| {
        let path = stories(temporary.path(), file, options, "rolling");
        let text = std::fs::read_to_string(&path).unwrap().replace(
            "metrics = [\"rolling\"]",
            &format!("metrics = [\"{metrics}\"]"),
        );
        let path = path.replace("rolling.toml", &format!("{file}.toml"));
        std::fs::write(&path, text).unwrap();
        path
    };
    let cases = [
        ("wikitext2", "wikitext".to_owned(), None),
        (
            "tinystories_train_head_200",
            task("tinystories_train_head.txt", STORIES),
            Some(200),
        ),
        (
            "tinystories_valid_head",
            task("tinystories_valid_head.txt", "[text]\n"),
            None,
        ),
    ];
    for (name, task, limit) in cases {
        for (variant, add_bos_token) in [("bos_scored", true), ("no_bos", false)] {
            let golden = &golden[name][variant];
            let options = Options {
                add_bos_token,
                ..tasks(&[&task], limit)
            };
            let tables = evaluate::run(&options, &context(Some(data.clone())), &model).unwrap();
            let found = rows(&tables, "evaluate");
            assert_eq!(
                support::text(&found["metric"]),
                ["word_perplexity", "byte_perplexity", "bits_per_byte"]
            );
            for (row, metric) in support::text(&found["metric"]).into_iter().enumerate() {
                assert_eq!(
                    support::text(&found["protocol"])[row],
                    if add_bos_token {
                        "harness"
                    } else {
                        "harness, no BOS"
                    }
                );
                assert_eq!(
                    found["n"].as_primitive::<UInt64Type>().value(row),
                    golden["scored_tokens"].as_u64().unwrap()
                );
                let difference =
                    (floats(found, "value")[row] / golden[&metric].as_f64().unwrap() - 1.0).abs();
                note!("{name}, {variant}, {metric}: relative difference {difference:.1e}");
                assert!(difference < 1e-6);
            }
            assert_eq!(
                rows(&tables, "evaluate_documents").num_rows() as u64,
                3 * golden["documents"].as_u64().unwrap()
            );
        }
    }
}

test!(
    token_rows_need_no_tokenizer_and_masked_tokens_do_not_count,
    needs = [Shared("models/stories260K")]
);
fn token_rows_need_no_tokenizer_and_masked_tokens_do_not_count() {
    let folder = shared("models/stories260K");
    let mut model = Model::load(&folder).unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let measured = |model: &Model, name: &str, rows: &str| {
        let path = temporary.path().join(name);
        std::fs::write(&path, rows).unwrap();
        evaluate::run(&corpora(&[&path], Some(4)), &context(None), model)
    };
    let text = "Once upon a time there was a little girl";
    let ids = model
        .tokenizer
        .as_ref()
        .unwrap()
        .encode(text, true)
        .unwrap();
    let of_text = measured(&model, "a.txt", text).unwrap();
    model.tokenizer = None;
    let of_ids = measured(
        &model,
        "a.jsonl",
        &format!("{{\"ids\": {ids:?}}}\n{{\"ids\": [5]}}\n"),
    )
    .unwrap();
    assert_eq!(rows(&of_text, "evaluate"), rows(&of_ids, "evaluate"));
    assert!(
        measured(&model, "a.txt", text)
            .unwrap_err()
            .to_string()
            .contains("no tokenizer.json")
    );

    let masked = measured(
        &model,
        "m.jsonl",
        "{\"ids\": [1, 403, 407], \"labels\": [-100, -100, 407]}",
    )
    .unwrap();
    assert_eq!(
        rows(&masked, "evaluate")["n"]
            .as_primitive::<UInt64Type>()
            .value(0),
        1
    );
    let nothing = measured(&model, "n.jsonl", "{\"ids\": [1]}")
        .unwrap_err()
        .to_string();
    assert!(
        nothing.ends_with("has nothing to predict: every row has one token, or none that counts"),
        "{nothing}"
    );
}
