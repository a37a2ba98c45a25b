//! Tokens, log likelihoods and accuracies against lm-evaluation-harness and the tokenizers library.

use std::path::{Path, PathBuf};

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{Float64Type, UInt32Type, UInt64Type};
use secateur::stages::evaluate::{self, Error, Options, Protocol};
use secateur::stages::{Context, Environment, Stage};
use secateur_model::Model;
use secateur_model::tokenizer::Tokenizer;
use secateur_model::walk;
use secateur_store::tables::Table;
use serde_json::Value;

use crate::support::{self, json, numbers, shared};

pub(crate) fn context(data: Option<PathBuf>) -> Context {
    Context {
        data_folder: data,
        ..support::context()
    }
}

pub(crate) fn tasks(names: &[&str], limit: Option<usize>) -> Options {
    Options {
        tasks: names.iter().map(|name| (*name).to_owned()).collect(),
        limit,
        ..Options::default()
    }
}

pub(crate) fn corpora(paths: &[&Path], window: Option<usize>) -> Options {
    Options {
        corpora: paths
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
        window,
        ..Options::default()
    }
}

pub(crate) fn floats(rows: &RecordBatch, column: &str) -> Vec<f64> {
    rows[column].as_primitive::<Float64Type>().values().to_vec()
}

/// The rows of the table with this name.
pub(crate) fn rows<'t>(tables: &'t [Table], name: &str) -> &'t RecordBatch {
    &tables.iter().find(|table| table.name == name).unwrap().rows
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Compares the samples of one task with the harness's first documents. Returns the largest
/// relative difference of a log likelihood.
fn compare(samples: &RecordBatch, golden: &[Value]) -> f64 {
    let (values, tokens) = (
        floats(samples, "loglikelihood"),
        samples["tokens"].as_primitive::<UInt32Type>(),
    );
    let (docs, choices) = (
        samples["doc"].as_primitive::<UInt64Type>(),
        samples["choice"].as_primitive::<UInt32Type>(),
    );
    let (greedy, gold) = (samples["greedy"].as_boolean(), samples["gold"].as_boolean());
    let (mut worst, mut row) = (0.0, 0);
    for document in golden {
        let expected: Vec<f64> = numbers(&document["loglikelihood"]);
        for (choice, expected) in expected.iter().enumerate() {
            let label = format!(
                "{} {} choice {choice}",
                document["task"], document["doc_id"]
            );
            assert_eq!(
                (docs.value(row), choices.value(row)),
                (document["doc_id"].as_u64().unwrap(), choice as u32),
                "{label}"
            );
            assert_eq!(
                u64::from(tokens.value(row)),
                document["n_continuation_tokens"][choice].as_u64().unwrap(),
                "{label}"
            );
            assert_eq!(
                greedy.value(row),
                document["is_greedy"][choice].as_bool().unwrap(),
                "{label}"
            );
            assert_eq!(
                gold.value(row),
                document["gold"].as_u64() == Some(choice as u64),
                "{label}"
            );
            let difference = (values[row] / expected - 1.0).abs();
            assert!(difference < 1e-5, "{label}: {} {expected}", values[row]);
            worst = f64::max(worst, difference);
            row += 1;
        }
    }
    assert_eq!(row, samples.num_rows());
    worst
}

/// Compares the accuracies of the table with those of the golden documents.
fn compare_metrics(rows: &RecordBatch, golden: &[Value]) {
    let metrics = rows["metric"].as_string::<i32>();
    assert_eq!(
        rows.num_rows(),
        1 + usize::from(!golden[0]["acc_norm"].is_null())
    );
    for (row, value) in floats(rows, "value").into_iter().enumerate() {
        let hits: f64 = golden
            .iter()
            .map(|document| document[metrics.value(row)].as_f64().unwrap())
            .sum();
        assert_eq!(value, hits / golden.len() as f64, "{}", metrics.value(row));
    }
}

/// Scores a task with these options and compares samples, accuracies and standard errors with the
/// harness.
fn compare_with_the_harness(task: &str, golden: &str, options: Options) -> Vec<Table> {
    let (folder, data, golden) = (shared("models/stories260K"), shared("data"), shared(golden));
    let scored = lines(&golden.join(format!("{task}.jsonl")));
    let model = Model::load(&folder).unwrap();
    let tables = evaluate::run(&options, &context(Some(data)), &model).unwrap();
    let worst = compare(rows(&tables, "evaluate_samples"), &scored);
    compare_metrics(rows(&tables, "evaluate"), &scored);
    let summary = &json(&golden.join("summary.json"))["tasks"][task];
    let found = rows(&tables, "evaluate");
    for (row, metric) in found["metric"]
        .as_string::<i32>()
        .iter()
        .flatten()
        .enumerate()
    {
        let (value, expected) = (
            floats(found, "value")[row],
            summary[metric].as_f64().unwrap(),
        );
        // The JSON reader may round the last bit differently.
        assert!(
            (value - expected).abs() < 1e-15,
            "{task} {metric}: {value} {expected}"
        );
        let (found, expected) = (
            floats(found, "stderr")[row],
            summary[format!("{metric}_stderr")].as_f64().unwrap(),
        );
        assert!(
            (found / expected - 1.0).abs() < 1e-12,
            "{task} {metric}_stderr: {found} {expected}"
        );
    }
    let truncated = summary["documents_with_left_truncation"].as_u64().unwrap();
    assert_eq!(
        found["truncated"].as_primitive::<UInt64Type>().value(0),
        truncated,
        "{task}"
    );
    note!(
        "{task}: {} documents, largest relative difference {worst:.1e}",
        scored.len()
    );
    tables
}

const ALL_BUT_PIQA: [&str; 6] = [
    "boolq",
    "hellaswag",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
];

test!(
    all_documents_equal_the_harness,
    needs = [
        Shared("models/stories260K"),
        Shared("data"),
        Shared("golden/lm_eval")
    ]
);
fn all_documents_equal_the_harness() {
    for task in ALL_BUT_PIQA {
        let tables = compare_with_the_harness(task, "golden/lm_eval", tasks(&[task], Some(400)));
        let majority = &rows(&tables, "evaluate")["majority"];
        // 256 of the 400 questions of BoolQ have the answer yes. The choices of the other tasks
        // differ from document to document.
        if task == "boolq" {
            assert_eq!(floats(rows(&tables, "evaluate"), "majority"), [0.64]);
        } else {
            assert_eq!(majority.null_count(), majority.len(), "{task}");
        }
    }
}

test!(
    all_documents_without_bos_equal_the_harness,
    needs = [
        Shared("models/stories260K"),
        Shared("data"),
        Shared("golden/lm_eval_no_bos")
    ]
);
fn all_documents_without_bos_equal_the_harness() {
    for task in ALL_BUT_PIQA {
        let options = Options {
            add_bos_token: false,
            ..tasks(&[task], Some(400))
        };
        compare_with_the_harness(task, "golden/lm_eval_no_bos", options);
    }
}

test!(
    no_document_is_truncated_at_2048_tokens,
    needs = [
        Shared("models/stories260K"),
        Shared("data"),
        Shared("golden/lm_eval_max_length_2048")
    ]
);
fn no_document_is_truncated_at_2048_tokens() {
    let options = Options {
        max_length: Some(2048),
        ..tasks(&["piqa"], None)
    };
    let tables = compare_with_the_harness("piqa", "golden/lm_eval_max_length_2048", options);
    assert!(
        rows(&tables, "evaluate_samples")["cut"]
            .as_primitive::<UInt32Type>()
            .values()
            .iter()
            .all(|&cut| cut == 0)
    );
}

test!(
    oversized_choices_are_truncated_and_the_others_equal_the_harness,
    needs = [
        Shared("models/stories260K"),
        Shared("data"),
        Shared("golden/lm_eval"),
        Shared("golden/lm_eval_no_bos")
    ]
);
/// The harness stops with an error at documents 314 and 1554, whose choices are longer than the
/// model's 512 positions.
fn oversized_choices_are_truncated_and_the_others_equal_the_harness() {
    for (golden, add_bos_token) in [("golden/lm_eval", true), ("golden/lm_eval_no_bos", false)] {
        let (folder, data, golden) = (shared("models/stories260K"), shared("data"), shared(golden));
        let model = Model::load(&folder).unwrap();
        let options = Options {
            add_bos_token,
            ..tasks(&["piqa"], None)
        };
        let tables = evaluate::run(&options, &context(Some(data)), &model).unwrap();
        let samples = rows(&tables, "evaluate_samples");
        let is_too_long = |doc: u64| [314, 1554].contains(&doc);
        // 1 for the rows of documents that are too long, 0 for the others.
        let too_long = samples["doc"]
            .as_primitive::<UInt64Type>()
            .unary::<_, UInt64Type>(|doc| u64::from(is_too_long(doc)));
        let fits: BooleanArray = too_long
            .iter()
            .map(|too_long| Some(too_long == Some(0)))
            .collect();
        let scored = lines(&golden.join("piqa.jsonl"));
        let worst = compare(
            &arrow::compute::filter_record_batch(samples, &fits).unwrap(),
            &scored,
        );
        note!(
            "piqa: {} documents, largest relative difference {worst:.1e}",
            scored.len()
        );

        let (tokens, cut) = (
            samples["tokens"].as_primitive::<UInt32Type>(),
            samples["cut_choice"].as_primitive::<UInt32Type>(),
        );
        let docs = samples["doc"].as_primitive::<UInt64Type>();
        let oversized_rows: Vec<usize> = (0..samples.num_rows())
            .filter(|&row| cut.value(row) > 0)
            .collect();
        assert!(
            oversized_rows
                .iter()
                .all(|&row| is_too_long(docs.value(row)) && tokens.value(row) == 512)
        );
        let found = rows(&tables, "evaluate");
        assert_eq!(found["oversized"].as_primitive::<UInt64Type>().value(0), 2);
        assert_eq!(found["n"].as_primitive::<UInt64Type>().value(0), 1838);
        // The value of each document equals the harness's accuracy wherever the harness has one.
        let documents = rows(&tables, "evaluate_documents");
        let (metric, value) = (
            documents["metric"].as_string::<i32>(),
            floats(documents, "value"),
        );
        for name in ["acc", "acc_norm"] {
            let rows_of_metric = (0..documents.num_rows()).filter(|&row| metric.value(row) == name);
            let document_values: Vec<f64> = rows_of_metric.map(|row| value[row]).collect();
            assert_eq!(document_values.len(), 1838);
            for document in &scored {
                let doc = document["doc_id"].as_u64().unwrap() as usize;
                assert_eq!(
                    document_values[doc],
                    document[name].as_f64().unwrap(),
                    "{doc} {name}"
                );
            }
        }
    }
}

test!(
    few_shot_scores_equal_the_harness,
    needs = [Shared("models/stories260K"), Shared("data")]
);
/// Two examples before each question, drawn from the split of the questions with seed 1234.
fn few_shot_scores_equal_the_harness() {
    let (folder, data) = (shared("models/stories260K"), shared("data"));
    let golden = lines(&support::golden_data("few_shot_scores.jsonl"));
    let model = Model::load(&folder).unwrap();
    for golden in golden.chunk_by(|a, b| a["task"] == b["task"]) {
        let task = golden[0]["task"].as_str().unwrap();
        let options = Options {
            shots: 2,
            max_length: Some(2048),
            ..tasks(&[task], Some(golden.len()))
        };
        let tables = evaluate::run(&options, &context(Some(data.clone())), &model).unwrap();
        note!(
            "{task}, 2 shots: largest relative difference {:.1e}",
            compare(rows(&tables, "evaluate_samples"), golden)
        );
        compare_metrics(rows(&tables, "evaluate"), golden);
    }
}

test!(
    llm_pruner_protocol_encodes_context_and_choice_separately,
    needs = [Shared("models/stories260K"), Shared("data")]
);
/// LLM-Pruner's protocol, computed here step by step: context and choice are encoded separately,
/// there is no BOS, and each task has one metric.
fn llm_pruner_protocol_encodes_context_and_choice_separately() {
    let (folder, data) = (shared("models/stories260K"), shared("data"));
    let model = Model::load(&folder).unwrap();
    let options = Options {
        protocol: Protocol::LlmPruner,
        ..tasks(&["piqa", "hellaswag", "arc_challenge", "boolq"], Some(20))
    };
    let tables = evaluate::run(&options, &context(Some(data.clone())), &model).unwrap();
    let found = rows(&tables, "evaluate");
    let text = |column: &str| support::text(&found[column]);
    assert_eq!(
        text("task"),
        ["piqa", "hellaswag", "arc_challenge", "boolq", "average"]
    );
    assert_eq!(
        text("metric"),
        ["acc", "acc_norm", "acc_norm", "acc", "acc"]
    );
    assert!(
        text("protocol")
            .iter()
            .all(|protocol| protocol == "llm-pruner")
    );
    let values = floats(found, "value");
    assert!((values[4] - values[..4].iter().sum::<f64>() / 4.0).abs() < 1e-15);

    let tokenizer = model.tokenizer.as_ref().unwrap();
    let samples = rows(&tables, "evaluate_samples");
    let row: Value = lines(&data.join("piqa/validation.jsonl")).swap_remove(3);
    let context = tokenizer
        .encode(
            &format!("Question: {}\nAnswer:", row["goal"].as_str().unwrap()),
            false,
        )
        .unwrap();
    let choice = tokenizer
        .encode(&format!(" {}", row["sol2"].as_str().unwrap()), false)
        .unwrap();
    let ids: Vec<u32> = context.iter().chain(&choice).copied().collect();
    let logits = walk::logits(&model, &ids).unwrap();
    // Σ over the tokens of the choice of log softmax(z)[token] = z[token] − ln Σ exp(z), where z
    // are the 512 logits of the position before the token.
    let expected: f64 = (context.len()..ids.len())
        .map(|position| {
            let row = &logits.values()[(position - 1) * 512..position * 512];
            let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
            f64::from(row[ids[position] as usize]) - sum.ln()
        })
        .sum();
    // Document 3 of a task with two choices, its second choice.
    let sample_row = 3 * 2 + 1;
    assert_eq!(
        samples["tokens"]
            .as_primitive::<UInt32Type>()
            .value(sample_row),
        choice.len() as u32
    );
    assert!((floats(samples, "loglikelihood")[sample_row] / expected - 1.0).abs() < 1e-6);
}

test!(average_counts_each_task_once_and_names_are_unique);
fn average_counts_each_task_once_and_names_are_unique() {
    let options = Options {
        protocol: Protocol::LlmPruner,
        ..tasks(&["tiny_boolq", "tiny_piqa"], Some(5))
    };
    let tables = evaluate::run(&options, &context(None), &support::tiny()).unwrap();
    let found = rows(&tables, "evaluate");
    assert_eq!(
        support::text(&found["task"]),
        ["tiny_boolq", "tiny_piqa", "average"]
    );
    assert_eq!(support::text(&found["metric"]), ["acc", "acc", "acc"]);
    let value = floats(found, "value");
    assert_eq!(value[2], (value[0] + value[1]) / 2.0);
    assert_eq!(floats(found, "chance"), [0.5, 0.5, 0.5]);
    assert!(found["majority"].is_valid(0) && found["majority"].is_null(1));
    assert!(
        found["majority"].is_null(2),
        "only one of the two tasks has one"
    );

    let twice = Options {
        corpora: vec!["x/boolq.txt".to_owned(), "average.txt".to_owned()],
        ..tasks(&["boolq"], None)
    };
    let faults: Vec<(String, String)> = twice
        .option_faults()
        .into_iter()
        .map(|fault| (fault.key, fault.message))
        .collect();
    assert_eq!(
        faults[0],
        (
            "corpora[0]".to_owned(),
            "`boolq` is measured twice: a row of the table is known by its name".to_owned()
        )
    );
    assert_eq!(
        faults[1],
        (
            "corpora[1]".to_owned(),
            "`average` is the name of the tasks' mean".to_owned()
        )
    );
}

test!(evaluation_without_a_tokenizer_is_an_error);
fn evaluation_without_a_tokenizer_is_an_error() {
    let mut model = support::tiny();
    model.tokenizer = None;
    let error = evaluate::run(&tasks(&["tiny_piqa"], Some(3)), &context(None), &model).unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(Error::NoTokenizer)));
}

test!(
    nan_weights_give_an_error_and_no_row,
    needs = [Shared("models/stories260K")]
);
fn nan_weights_give_an_error_and_no_row() {
    let folder = shared("models/stories260K");
    let mut model = Model::load(&folder).unwrap();
    model.final_norm.update(|values| values[3] = f32::NAN);
    let error = evaluate::run(&tasks(&["tiny_boolq"], None), &context(None), &model).unwrap_err();
    let error = error.to_string();
    assert!(
        error.starts_with("tiny_boolq, document 0: the result is NaN: the weights of the model"),
        "{error}"
    );
}

test!(
    check_names_missing_tasks_data_and_tokenizer,
    needs = [Shared("models/stories260K")]
);
fn check_names_missing_tasks_data_and_tokenizer() {
    let folder = shared("models/stories260K");
    let header = secateur_model::ModelHeader {
        has_tokenizer: false,
        ..secateur_model::ModelHeader::read(&folder).unwrap()
    };
    let mut environment = Environment {
        model: Some(header),
        ..Environment::default()
    };
    let options = Options {
        window: Some(1000),
        ..tasks(&["tiny_bolq", "boolq", "tiny_piqa"], None)
    };
    let faults: Vec<(String, String)> = options
        .environment_faults(&mut environment)
        .into_iter()
        .map(|fault| (fault.key, fault.message))
        .collect();
    let expected = [
        (
            "tasks[0]",
            "there is no task `tiny_bolq`; did you mean `tiny_boolq`?",
        ),
        (
            "tasks[1]",
            "`boolq` is a published set: its rows are looked for in `boolq/validation.jsonl` under \
             run.data, which is not given",
        ),
        (
            "tasks",
            "tasks are text, and the model's folder has no tokenizer.json",
        ),
        (
            "window",
            "a window of 1000 tokens is longer than the model's 512 positions",
        ),
    ];
    assert_eq!(faults.len(), expected.len(), "{faults:?}");
    assert!(
        faults
            .iter()
            .zip(expected)
            .all(|(fault, expected)| fault.0 == expected.0 && fault.1.starts_with(expected.1)),
        "{faults:?}"
    );
    let temporary = tempfile::tempdir().unwrap();
    let (text, ids) = (
        temporary.path().join("t.txt"),
        temporary.path().join("i.jsonl"),
    );
    std::fs::write(&text, "once").unwrap();
    std::fs::write(&ids, "{\"ids\": [1, 2]}").unwrap();
    let faults = corpora(&[&text, &ids, Path::new("nowhere.txt")], None)
        .environment_faults(&mut environment);
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(
        faults[0]
            .message
            .ends_with("is text, and the model's folder has no tokenizer.json")
    );
    assert!(faults[1].message.starts_with("cannot read `nowhere.txt`"));
}

test!(
    token_ids_equal_the_tokenizer_library,
    needs = [
        Shared("models/stories260K"),
        Shared("golden/tokenizer_stories260K.json")
    ]
);
fn token_ids_equal_the_tokenizer_library() {
    let (folder, golden) = (
        shared("models/stories260K"),
        shared("golden/tokenizer_stories260K.json"),
    );
    let tokenizer = Tokenizer::load(&folder).unwrap().unwrap();
    let golden = json(&golden);
    let strings = golden["strings"].as_array().unwrap();
    assert_eq!((strings.len(), tokenizer.vocabulary_size()), (35, 512));
    for string in strings {
        let text = string["text"].as_str().unwrap();
        // A text that begins with BOS gets no second one, as in the harness; the library adds one.
        let with_bos = match text.starts_with("<s>") {
            true => "ids_without_bos",
            false => "ids",
        };
        assert_eq!(
            tokenizer.encode(text, true).unwrap(),
            numbers::<u32>(&string[with_bos]),
            "{text:?}"
        );
        assert_eq!(
            tokenizer.encode(text, false).unwrap(),
            numbers::<u32>(&string["ids_without_bos"]),
            "{text:?}"
        );
    }
    let names: Vec<&str> = tokenizer
        .files()
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert!(
        names.contains(&"tokenizer.model") && names.contains(&"tokenizer_config.json"),
        "{names:?}"
    );
    assert!(
        tokenizer
            .files()
            .iter()
            .all(|(name, bytes)| *bytes == std::fs::read(folder.join(name)).unwrap())
    );
}
