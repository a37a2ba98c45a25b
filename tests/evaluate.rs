//! Tokens, log-likelihoods, accuracies and perplexities against lm-evaluation-harness and transformers.

use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, UInt32Type, UInt64Type};
use secateur::metrics::Table;
use secateur::model::Model;
use secateur::model::tokenizer::Tokenizer;
use secateur::stages::evaluate::{self, Error, Options};
use secateur::stages::{Context, World};
use serde_json::Value;

use crate::support::{self, json, numbers, shared};

fn context(data: Option<PathBuf>) -> Context {
    Context { data, ..support::context() }
}

fn tasks(names: &[&str], limit: Option<usize>) -> Options {
    Options { tasks: names.iter().map(|name| (*name).to_owned()).collect(), limit, ..Options::default() }
}

fn corpora(paths: &[&Path], window: Option<usize>) -> Options {
    Options { corpora: paths.iter().map(|path| path.display().to_string()).collect(), window, ..Options::default() }
}

fn floats(rows: &RecordBatch, column: &str) -> Vec<f64> {
    rows[column].as_primitive::<Float64Type>().values().to_vec()
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Holds the samples of one task against the harness's first documents and returns the largest relative difference.
fn compare(samples: &RecordBatch, golden: &[Value]) -> f64 {
    let (values, tokens) = (floats(samples, "loglikelihood"), samples["tokens"].as_primitive::<UInt32Type>());
    let (docs, choices) = (samples["doc"].as_primitive::<UInt64Type>(), samples["choice"].as_primitive::<UInt32Type>());
    let (greedy, gold) = (samples["greedy"].as_boolean(), samples["gold"].as_boolean());
    let (mut worst, mut row) = (0.0, 0);
    for document in golden {
        let expected: Vec<f64> = numbers(&document["loglikelihood"]);
        for (choice, expected) in expected.iter().enumerate() {
            let here = format!("{} {} choice {choice}", document["task"], document["doc_id"]);
            assert_eq!((docs.value(row), choices.value(row)), (document["doc_id"].as_u64().unwrap(), choice as u32), "{here}");
            assert_eq!(u64::from(tokens.value(row)), document["n_continuation_tokens"][choice].as_u64().unwrap(), "{here}");
            assert_eq!(greedy.value(row), document["is_greedy"][choice].as_bool().unwrap(), "{here}");
            assert_eq!(gold.value(row), document["gold"].as_u64() == Some(choice as u64), "{here}");
            let difference = (values[row] / expected - 1.0).abs();
            assert!(difference < 1e-5, "{here}: {} {expected}", values[row]);
            worst = f64::max(worst, difference);
            row += 1;
        }
    }
    assert_eq!(row, samples.num_rows());
    worst
}

/// The accuracies of the table against the golden documents' own.
fn compare_metrics(rows: &RecordBatch, golden: &[Value]) {
    let metrics = rows["metric"].as_string::<i32>();
    assert_eq!(rows.num_rows(), 1 + usize::from(!golden[0]["acc_norm"].is_null()));
    for (i, value) in floats(rows, "value").into_iter().enumerate() {
        let hits: f64 = golden.iter().map(|document| document[metrics.value(i)].as_f64().unwrap()).sum();
        assert_eq!(value, hits / golden.len() as f64, "{}", metrics.value(i));
    }
}

fn against_the_harness(task: &str) -> Option<Vec<Table>> {
    let (folder, data) = (shared("models/stories260K")?, shared("data")?);
    let golden = lines(&shared(&format!("golden/lm_eval/{task}.jsonl"))?);
    let model = Model::load(&folder).unwrap();
    let tables = evaluate::run(&tasks(&[task], Some(golden.len())), &context(Some(data)), &model).unwrap();
    let worst = compare(&tables[1].rows, &golden);
    compare_metrics(&tables[0].rows, &golden);
    eprintln!("{task}: {} choices, largest relative difference {worst:.1e}", tables[1].rows.num_rows());
    Some(tables)
}

const ALL_BUT_PIQA: [&str; 6] = ["boolq", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"];

#[test]
fn all_documents_equal_the_harness() {
    for task in ALL_BUT_PIQA {
        let Some(tables) = against_the_harness(task) else { return };
        let summary = &json(&shared("golden/lm_eval/summary.json").unwrap())["tasks"][task];
        let rows = &tables[0].rows;
        for (i, metric) in rows["metric"].as_string::<i32>().iter().flatten().enumerate() {
            assert_eq!(floats(rows, "value")[i], summary[metric].as_f64().unwrap(), "{task} {metric}");
            let (found, expected) = (floats(rows, "stderr")[i], summary[format!("{metric}_stderr")].as_f64().unwrap());
            assert!((found / expected - 1.0).abs() < 1e-12, "{task} {metric}_stderr: {found} {expected}");
        }
    }
}

#[test]
fn all_of_piqa_equals_the_harness() {
    let (Some(folder), Some(data), Some(golden)) =
        (shared("models/stories260K"), shared("data/piqa/validation.jsonl"), shared("golden/lm_eval"))
    else {
        return;
    };
    let scored = lines(&golden.join("piqa.jsonl"));
    let rows = std::fs::read_to_string(data).unwrap();
    let rows: Vec<&str> = rows.lines().collect();
    let kept: Vec<&str> = scored.iter().map(|document| rows[document["doc_id"].as_u64().unwrap() as usize]).collect();
    let mine = tempfile::tempdir().unwrap();
    std::fs::create_dir(mine.path().join("piqa")).unwrap();
    std::fs::write(mine.path().join("piqa/validation.jsonl"), kept.join("\n")).unwrap();
    let renumbered: Vec<Value> = scored
        .into_iter()
        .enumerate()
        .map(|(i, mut document)| {
            document["doc_id"] = i.into();
            document
        })
        .collect();
    let model = Model::load(&folder).unwrap();
    let tables = evaluate::run(&tasks(&["piqa"], None), &context(Some(mine.path().to_owned())), &model).unwrap();
    eprintln!("piqa: {} documents, largest relative difference {:.1e}", renumbered.len(), compare(&tables[1].rows, &renumbered));
    compare_metrics(&tables[0].rows, &renumbered);
    let summary = &json(&golden.join("summary.json"))["tasks"]["piqa"];
    let stderr = floats(&tables[0].rows, "stderr");
    for (found, metric) in stderr.into_iter().zip(["acc_stderr", "acc_norm_stderr"]) {
        assert!((found / summary[metric].as_f64().unwrap() - 1.0).abs() < 1e-12, "{metric}: {found}");
    }
}

#[test]
fn a_choice_longer_than_the_model_names_its_row() {
    let (Some(folder), Some(data)) = (shared("models/stories260K"), shared("data")) else { return };
    let mut model = Model::load(&folder).unwrap();
    model.config.max_positions = 64;
    let error = evaluate::run(&tasks(&["piqa"], Some(3)), &context(Some(data)), &model).unwrap_err();
    assert_eq!(
        error.to_string(),
        "piqa, document 0: a choice of 90 tokens is longer than the 64 that a request may have; raise `max_length`, or set `limit`"
    );
    model.tokenizer = None;
    let error = evaluate::run(&tasks(&["tiny_piqa"], Some(3)), &context(None), &model).unwrap_err();
    assert!(matches!(error, Error::NoTokenizer));
}

#[test]
fn a_model_of_nan_makes_an_error_and_no_row() {
    let Some(folder) = shared("models/stories260K") else { return };
    let mut model = Model::load(&folder).unwrap();
    model.norm.update(|values| values[3] = f32::NAN);
    let error = evaluate::run(&tasks(&["tiny_boolq"], None), &context(None), &model).unwrap_err();
    assert_eq!(error.to_string(), "tiny_boolq, document 0: the result is NaN, the model is broken");
}

fn windowed(name: &str, text: &Path, window: usize) -> Option<f64> {
    let (folder, golden) = (shared("models/stories260K")?, shared("golden/perplexity.json")?);
    let golden = &json(&golden)["windowed"][name];
    let golden = golden["windows"].as_array().unwrap().iter().find(|w| w["seq_len"] == window).unwrap();
    let model = Model::load(&folder).unwrap();
    let tables = evaluate::run(&corpora(&[text], Some(window)), &context(None), &model).unwrap();
    assert_eq!(tables.len(), 1);
    let rows = &tables[0].rows;
    assert_eq!(rows["task"].as_string::<i32>().value(0), text.file_stem().unwrap().to_str().unwrap());
    assert_eq!(rows["metric"].as_string::<i32>().value(0), "perplexity");
    assert_eq!(rows["n"].as_primitive::<UInt64Type>().value(0), golden["n_predicted_tokens"].as_u64().unwrap());
    assert!(rows["stderr"].is_null(0));
    let difference = (floats(rows, "value")[0] / golden["perplexity"].as_f64().unwrap() - 1.0).abs();
    eprintln!("{name}, windows of {window}: relative difference {difference:.1e}");
    assert!(difference < 1e-5);
    Some(difference)
}

#[test]
fn every_perplexity_equals_transformers() {
    let (Some(stories), Some(wiki)) = (shared("data/tinystories"), shared("data/wikitext2/wiki.test.raw")) else { return };
    let folder = tempfile::tempdir().unwrap();
    // the rows as the golden numbers join them
    let raw = std::fs::read_to_string(wiki).unwrap();
    let rows: Vec<&str> = raw.split_inclusive('\n').map(|row| if row.trim().is_empty() { "" } else { row }).collect();
    let wiki = folder.path().join("wikitext2_test.txt");
    std::fs::write(&wiki, rows.join("\n\n")).unwrap();
    let raw = std::fs::read_to_string(stories.join("tinystories_train_head.txt")).unwrap();
    let mut told: Vec<&str> = raw.split("<|endoftext|>").map(str::trim).collect();
    told.pop();
    let train = folder.path().join("tinystories_train_head.txt");
    std::fs::write(&train, told.join("\n\n")).unwrap();
    for window in [128, 512] {
        windowed("tinystories_valid_head", &stories.join("tinystories_valid_head.txt"), window);
        windowed("tinystories_train_head", &train, window);
        windowed("wikitext2_test", &wiki, window);
    }
}

#[test]
fn token_rows_need_no_tokenizer_and_masked_tokens_do_not_count() {
    let Some(folder) = shared("models/stories260K") else { return };
    let mut model = Model::load(&folder).unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let measured = |model: &Model, name: &str, rows: &str| {
        let path = temporary.path().join(name);
        std::fs::write(&path, rows).unwrap();
        evaluate::run(&corpora(&[&path], Some(4)), &context(None), model)
    };
    let text = "Once upon a time there was a little girl";
    let ids = model.tokenizer.as_ref().unwrap().encode(text, true).unwrap();
    let of_text = measured(&model, "a.txt", text).unwrap();
    model.tokenizer = None;
    let of_ids = measured(&model, "a.jsonl", &format!("{{\"ids\": {ids:?}}}\n{{\"ids\": [5]}}\n")).unwrap();
    assert_eq!(of_text[0].rows, of_ids[0].rows);
    assert!(measured(&model, "a.txt", text).unwrap_err().to_string().contains("no tokenizer.json"));

    let masked = measured(&model, "m.jsonl", "{\"ids\": [1, 403, 407], \"labels\": [-100, -100, 407]}").unwrap();
    assert_eq!(masked[0].rows["n"].as_primitive::<UInt64Type>().value(0), 1);
    let nothing = measured(&model, "n.jsonl", "{\"ids\": [1]}").unwrap_err().to_string();
    assert!(nothing.ends_with("has nothing to predict: every row has one token, or none that counts"), "{nothing}");
}

#[test]
fn the_check_names_what_the_world_lacks() {
    let Some(folder) = shared("models/stories260K") else { return };
    let header = secateur::model::ModelHeader { has_tokenizer: false, ..secateur::model::ModelHeader::read(&folder).unwrap() };
    let mut world = World { model: Some(header), ..World::default() };
    let options = Options { window: Some(1000), ..tasks(&["tiny_bolq", "boolq", "tiny_piqa"], None) };
    let faults: Vec<(String, String)> = options.world(&mut world).into_iter().map(|f| (f.key, f.message)).collect();
    let said = [
        ("tasks[0]", "there is no task `tiny_bolq`; did you mean `tiny_boolq`?"),
        (
            "tasks[1]",
            "`boolq` is a published set: its rows are looked for in `boolq/validation.jsonl` under run.data, which is not given",
        ),
        ("tasks", "tasks are text, and the model's folder has no tokenizer.json"),
        ("window", "a window of 1000 tokens is longer than the model's 512 positions"),
    ];
    assert_eq!(faults.len(), said.len(), "{faults:?}");
    assert!(faults.iter().zip(said).all(|(fault, said)| fault.0 == said.0 && fault.1.starts_with(said.1)), "{faults:?}");
    let temporary = tempfile::tempdir().unwrap();
    let (text, ids) = (temporary.path().join("t.txt"), temporary.path().join("i.jsonl"));
    std::fs::write(&text, "once").unwrap();
    std::fs::write(&ids, "{\"ids\": [1, 2]}").unwrap();
    let faults = corpora(&[&text, &ids, Path::new("nowhere.txt")], None).world(&mut world);
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].message.ends_with("is text, and the model's folder has no tokenizer.json"));
    assert!(faults[1].message.starts_with("cannot read `nowhere.txt`"));
}

#[test]
fn token_ids_equal_those_of_the_tokenizer_library() {
    let (Some(folder), Some(golden)) = (shared("models/stories260K"), shared("golden/tokenizer_stories260K.json")) else {
        return;
    };
    let tokenizer = Tokenizer::load(&folder).unwrap().unwrap();
    let golden = json(&golden);
    let strings = golden["strings"].as_array().unwrap();
    assert_eq!((strings.len(), tokenizer.vocabulary()), (35, 512));
    for string in strings {
        let text = string["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, true).unwrap(), numbers::<u32>(&string["ids"]), "{text:?}");
        assert_eq!(tokenizer.encode(text, false).unwrap(), numbers::<u32>(&string["ids_without_bos"]), "{text:?}");
    }
    let names: Vec<&str> = tokenizer.files().iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"tokenizer.model") && names.contains(&"tokenizer_config.json"), "{names:?}");
    assert!(tokenizer.files().iter().all(|(name, bytes)| *bytes == std::fs::read(folder.join(name)).unwrap()));
    assert!(tokenizer.fits(511).is_err() && tokenizer.fits(512).is_ok());
}
