//! Special tokens in texts: BOS does not stand twice, ids beyond the vocabulary, end tokens.

use arrow::array::AsArray;
use arrow::datatypes::Float64Type;
use serde_json::json;

use crate::support::{Sandbox, table, text};

const LOAD: &str = "[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n";

const TEXT_TASK: &str = "name = \"text\"\nversion = 1\nsplit = \"x\"\n\
                         metrics = [\"byte_perplexity\"]\n[rows]\nbeside = \"text.jsonl\"\n\
                         [text]\nrow = \"{{ text }}\"\n";

const QUESTION_TASK: &str = "name = \"ask\"\nversion = 1\nsplit = \"x\"\nmetrics = [\"acc\"]\n\
                             [rows]\nbeside = \"ask.jsonl\"\n[question]\ncontext = \"{{ ctx }}\"\n\
                             choices = [\"no\", \"yes\"]\ngold = \"label\"\n";

const QUESTION: &str = "I see the red carpet. Question: do I see the red carpet? Answer:";

/// A working directory with a pipeline `p.toml` that loads the model and has these stages.
fn sandbox(stages: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("p.toml", format!("{LOAD}{stages}"));
    sandbox
}

/// Runs `p.toml`, which must succeed, and returns the folder of its variant.
fn run(sandbox: &Sandbox, options: &[&str]) -> String {
    let arguments = [&["p.toml", "--force"], options].concat();
    let ran = sandbox.run(&arguments);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    let results = sandbox.json("results/p/sweep.json");
    let id = results["variants"][0]["id"].as_str().unwrap().to_owned();
    format!("results/p/{id}")
}

fn column(sandbox: &Sandbox, file: &str, name: &str) -> Vec<f64> {
    let rows = table(&sandbox.path(file));
    rows[name].as_primitive::<Float64Type>().values().to_vec()
}

test!(a_text_that_begins_with_bos_gets_no_second_one);
fn a_text_that_begins_with_bos_gets_no_second_one() {
    let sandbox = sandbox(
        "[[stage]]\ntype = \"evaluate\"\ntasks = [\"./text.toml\", \"./ask.toml\"]\n\
         corpora = [\"led.jsonl\", \"plain.jsonl\", \"ids.jsonl\"]\n",
    );
    sandbox.write("text.toml", TEXT_TASK);
    sandbox.write(
        "text.jsonl",
        json!({"text": "<s>Anna is in the garden."}).to_string(),
    );
    sandbox.write("ask.toml", QUESTION_TASK);
    let rows = [format!("<s>{QUESTION}"), QUESTION.to_owned()]
        .map(|ctx| json!({"ctx": ctx, "label": 1}).to_string());
    sandbox.write("ask.jsonl", rows.join("\n"));
    let corpus_text = "Anna is in the garden. Bruno is in the kitchen.";
    let led = format!("<s>{corpus_text}");
    sandbox.write("led.jsonl", json!({"text": led}).to_string());
    sandbox.write("plain.jsonl", json!({"text": corpus_text}).to_string());
    let tokenizer = secateur_model::tokenizer::Tokenizer::load(&sandbox.path("models/tiny"));
    let ids = tokenizer
        .unwrap()
        .unwrap()
        .encode(corpus_text, true)
        .unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == 0).count(), 1);
    sandbox.write("ids.jsonl", json!({"ids": ids}).to_string());

    let with_bos = run(&sandbox, &[]);
    let values = column(&sandbox, &format!("{with_bos}/evaluate.parquet"), "value");
    let [text_value, _, led, plain, ids] = values[..] else {
        panic!("{values:?}")
    };
    assert_eq!((led, plain), (ids, ids), "a corpus has one BOS");
    let samples = format!("{with_bos}/evaluate_samples.parquet");
    let scores = column(&sandbox, &samples, "loglikelihood");
    assert_eq!(scores[..2], scores[2..], "a context has one BOS");
    let without_bos = run(&sandbox, &["--set", "evaluate.add_bos_token=false"]);
    let values = column(
        &sandbox,
        &format!("{without_bos}/evaluate.parquet"),
        "value",
    );
    assert_eq!(text_value, values[0], "a text has one BOS");
}

/// Adds `<pad>` to the tokenizer with the first id beyond the model's vocabulary.
fn add_token_beyond_the_vocabulary(sandbox: &Sandbox) {
    let path = "models/tiny/tokenizer.json";
    let mut tokenizer = sandbox.json(path);
    let id = sandbox.json("models/tiny/config.json")["vocab_size"].clone();
    let token = json!({
        "id": id, "content": "<pad>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    });
    tokenizer["added_tokens"]
        .as_array_mut()
        .unwrap()
        .push(token);
    sandbox.write(path, tokenizer.to_string());
}

test!(an_id_beyond_the_vocabulary_refuses_only_the_text_that_has_it);
fn an_id_beyond_the_vocabulary_refuses_only_the_text_that_has_it() {
    let stages = "[[stage]]\ntype = \"evaluate\"\ntasks = [\"./ask.toml\"]\n\
                  corpora = [\"rows.jsonl\"]\n\
                  [[stage]]\ntype = \"dependencies\"\n\
                  [[stage]]\ntype = \"importance\"\nmethod = \"taylor\"\ncorpus = \"rows.jsonl\"\n\
                  sample = \"file\"\n\
                  [[stage]]\ntype = \"generate\"\nprompts = [\"Anna\", \"Bruno PAD\"]\n";
    let write_inputs = |sandbox: &Sandbox, context: &str, document: &str| {
        let question = json!({"ctx": context, "label": 1}).to_string();
        sandbox.write("ask.toml", QUESTION_TASK);
        sandbox.write("ask.jsonl", format!("{question}\n{question}"));
        let row = |text: &str| json!({"text": text}).to_string();
        let rows = [row("Anna is in the garden."), row(document)];
        sandbox.write("rows.jsonl", rows.join("\n"));
    };
    let sandbox = sandbox(stages);
    write_inputs(&sandbox, QUESTION, "Bruno");
    let values = |sandbox: &Sandbox| {
        let folder = run(sandbox, &[]);
        let files = [("evaluate", "value"), ("importance", "score")];
        files.map(|(file, name)| column(sandbox, &format!("{folder}/{file}.parquet"), name))
    };
    let before = values(&sandbox);
    add_token_beyond_the_vocabulary(&sandbox);
    assert_eq!(values(&sandbox), before, "an unused token changes nothing");

    let outside = "the token `<pad>` with the id 950 is outside the model's vocabulary";
    let assert_fails = |sandbox: &Sandbox, place: &str| {
        let ran = sandbox.run(&["p.toml", "--force"]);
        let expected = format!("{place}: {outside}");
        assert!(
            ran.code == 1 && ran.err.contains(&expected),
            "{expected}: {}",
            ran.err
        );
    };
    write_inputs(&sandbox, "<pad>", "Bruno");
    assert_fails(&sandbox, "ask, document 0");
    write_inputs(&sandbox, QUESTION, "Bruno <pad>");
    assert_fails(&sandbox, "`rows.jsonl`, document 2");
    sandbox.write(
        "p.toml",
        format!(
            "{LOAD}{}",
            stages.replace("\ncorpora = [\"rows.jsonl\"]", "")
        ),
    );
    assert_fails(&sandbox, "`rows.jsonl`, document 2");
    write_inputs(&sandbox, QUESTION, "Bruno");
    sandbox.write(
        "p.toml",
        format!("{LOAD}{}", stages.replace("PAD", "<pad>")),
    );
    assert_fails(&sandbox, "prompt 1");
}

test!(a_special_token_beyond_the_vocabulary_is_refused_where_it_is_used);
fn a_special_token_beyond_the_vocabulary_is_refused_where_it_is_used() {
    let check = |stages: &str, change: &dyn Fn(&Sandbox)| {
        let sandbox = sandbox(stages);
        sandbox.write("text.toml", TEXT_TASK);
        sandbox.write("text.jsonl", json!({"text": "Anna"}).to_string());
        change(&sandbox);
        let ran = sandbox.run(&["check", "p.toml"]);
        (ran.code, ran.err + &ran.out)
    };
    let wrong_bos_id = |sandbox: &Sandbox| {
        let mut tokenizer = sandbox.json("models/tiny/tokenizer.json");
        tokenizer["post_processor"]["special_tokens"]["<s>"]["ids"] = json!([9999]);
        sandbox.write("models/tiny/tokenizer.json", tokenizer.to_string());
    };
    let wrong_prefix = |sandbox: &Sandbox| {
        let mut config = sandbox.json("models/tiny/tokenizer_config.json");
        config["bos_token"] = json!("<begin>");
        sandbox.write("models/tiny/tokenizer_config.json", config.to_string());
    };
    let questions = "[[stage]]\ntype = \"evaluate\"\ntasks = [\"tiny_boolq\"]\n";
    let texts = "[[stage]]\ntype = \"evaluate\"\ntasks = [\"./text.toml\"]\n";
    let prompts = "[[stage]]\ntype = \"generate\"\nprompts = [\"Anna\"]\n";
    for stages in [questions, texts, prompts] {
        let (code, output) = check(stages, &wrong_bos_id);
        let expected = "adds a special token to every text: the token id 9999 is outside";
        assert!(code == 2 && output.contains(expected), "{stages}: {output}");
    }
    let (code, output) = check(texts, &wrong_prefix);
    let expected = "is predicted from BOS or EOS: the token `<begin>` with the id 950 is outside";
    assert!(code == 2 && output.contains(expected), "{output}");
    // Nothing here uses the token.
    let without_bos = format!("{questions}add_bos_token = false\n");
    let paper = format!("{questions}protocol = \"llm-pruner\"\n");
    for stages in [&without_bos, &paper, "[[stage]]\ntype = \"dependencies\"\n"] {
        let (code, output) = check(stages, &wrong_bos_id);
        assert_eq!(code, 0, "{stages}: {output}");
    }
    let (code, output) = check(questions, &wrong_prefix);
    assert_eq!(code, 0, "{output}");
}

test!(generation_stops_at_every_end_token_of_the_configs);
fn generation_stops_at_every_end_token_of_the_configs() {
    let prompt = "Question: how do you clean the page\\nAnswer:";
    let sandbox = sandbox(&format!(
        "[[stage]]\ntype = \"generate\"\nprompts = [\"{prompt}\", \"<s>{prompt}\"]\n\
         max_new_tokens = 12\n",
    ));
    let generate = || {
        let folder = run(&sandbox, &[]);
        let rows = table(&sandbox.path(&format!("{folder}/generate.parquet")));
        let ids = rows["ids"].as_list::<i32>().value(0);
        let ids = ids
            .as_primitive::<arrow::datatypes::UInt32Type>()
            .values()
            .to_vec();
        let outputs = text(&rows["output"]);
        assert_eq!(outputs[0], outputs[1], "a prompt has one BOS");
        (ids, rows["finished"].as_boolean().value(0))
    };
    let (all, finished) = generate();
    assert!(!finished && all.len() == 12, "{all:?}");
    let third = all[2];
    let position = all.iter().position(|&id| id == third).unwrap();
    let stops_there = |file: &str, ids: serde_json::Value| {
        let path = format!("models/tiny/{file}");
        let mut config = match sandbox.path(&path).exists() {
            true => sandbox.json(&path),
            false => json!({}),
        };
        config["eos_token_id"] = ids;
        sandbox.write(&path, config.to_string());
        generate() == (all[..position].to_vec(), true)
    };
    assert!(stops_there("config.json", json!(third)));
    assert!(stops_there("config.json", json!([949, third])));
    assert!(!stops_there("config.json", json!([949])));
    assert!(stops_there("generation_config.json", json!([949, third])));
    assert!(stops_there("generation_config.json", json!(third)));
    assert!(!stops_there("generation_config.json", json!(949)));
}
