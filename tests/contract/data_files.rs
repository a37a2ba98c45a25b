//! Data files: corpora, rows of tasks and prompts are read as what they are, or refused in the
//! check; an error blames the data where the data is to blame.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BinaryArray, Date32Array, StringArray};
use arrow::datatypes::Float64Type;
use secateur_data::task::Task;

use super::task_files::{FEW, parquet, write};
use crate::support::{ProgramOutput, Sandbox, table};

const LOAD: &str = "[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n\n";

/// Runs `command` on the model and one more stage.
fn run_stage(sandbox: &Sandbox, command: &[&str], stage: &str) -> ProgramOutput {
    sandbox.write("p.toml", format!("{LOAD}[[stage]]\n{stage}\n"));
    sandbox.run(&[command, &["p.toml"]].concat())
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

test!(a_corpus_has_one_perplexity_in_every_format);
fn a_corpus_has_one_perplexity_in_every_format() {
    let sandbox = Sandbox::new();
    let texts = [
        "Anna is in the garden. Tom is in the barn.",
        "I see \"the\" red carpet.",
    ];
    let objects = texts.map(|text| serde_json::json!({ "text": text, "id": 1 }).to_string());
    let lines = objects.join("\n");
    sandbox.write("a.jsonl", &lines);
    sandbox.write("b.json", &lines);
    sandbox.write("c.ndjson", &lines);
    sandbox.write("d.json", format!("[\n{}\n]", objects.join(",\n")));
    sandbox.write(
        "e.csv",
        format!(
            "id,text\n1,{}\n1,\"I see \"\"the\"\" red carpet.\"\n",
            texts[0]
        ),
    );
    sandbox.write("f.json.gz", gzip(lines.as_bytes()));
    sandbox.write("g.txt", format!("\u{feff}{lines}\n"));
    let images: ArrayRef = Arc::new(BinaryArray::from(vec![&b"\xff"[..], b"\0"]));
    let dates: ArrayRef = Arc::new(Date32Array::from(vec![1, 2]));
    let column: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
    let columns = vec![("image", images), ("date", dates), ("text", column)];
    parquet(&sandbox.path("h.parquet"), columns);
    let corpora = "\"a.jsonl\", \"b.json\", \"c.ndjson\", \"d.json\", \"e.csv\", \"f.json.gz\", \
                   \"g.txt\", \"h.parquet\"";
    let ran = run_stage(
        &sandbox,
        &[],
        &format!("type = \"evaluate\"\ncorpora = [{corpora}]"),
    );
    assert_eq!(ran.code, 0, "{}", ran.err);
    let folder = sandbox.variant("p", "base-");
    let rows = table(&sandbox.path(&format!("{folder}/evaluate.parquet")));
    let names: Vec<&str> = rows["task"].as_string::<i32>().iter().flatten().collect();
    assert_eq!(names, ["a", "b", "c", "d", "e", "f", "g", "h"]);
    let values = rows["value"].as_primitive::<Float64Type>().values();
    assert!(values.iter().all(|value| *value == values[0]), "{values:?}");

    // The same files as prompts.
    for file in ["b.json", "e.csv", "f.json.gz", "h.parquet"] {
        let stage = format!("type = \"generate\"\nmax_new_tokens = 1\nfile = \"{file}\"");
        let results = format!("results-{file}");
        let ran = run_stage(&sandbox, &["--results", &results], &stage);
        assert_eq!(ran.code, 0, "{}", ran.err);
        let folder = sandbox.variant_in(&results, "p", "base-");
        let rows = table(&sandbox.path(&format!("{folder}/generate.parquet")));
        let inputs: Vec<&str> = rows["input"].as_string::<i32>().iter().flatten().collect();
        assert_eq!(inputs, texts, "{file}");
    }
}

test!(files_without_a_known_format_are_refused_in_the_check);
fn files_without_a_known_format_are_refused_in_the_check() {
    let sandbox = Sandbox::new();
    let utf16: Vec<u8> = "\u{feff}text"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    sandbox.write("utf16.txt", utf16);
    sandbox.write("latin1.txt", b"caf\xe9 au lait");
    sandbox.write("image.txt", b"\x89PNG\r\n\x1a\n\0\0");
    sandbox.write("archive.zip", b"PK\x03\x04\0");
    sandbox.write("prose.json", "Anna is in the garden.");
    sandbox.write("blank.txt", " \n\u{a0}\u{1c}\n");
    sandbox.write("other.jsonl", "{\"content\": \"a\", \"url\": \"b\"}\n");
    sandbox.write("number.json", "[{\"text\": 3}]");
    for (file, message) in [
        (
            "utf16.txt",
            "`utf16.txt` is UTF-16 text, and UTF-8 is needed",
        ),
        (
            "latin1.txt",
            "`latin1.txt` is not UTF-8 text from byte 3 on",
        ),
        ("image.txt", "`image.txt` is neither text nor Parquet"),
        ("archive.zip", "`archive.zip` is compressed with zip"),
        ("prose.json", "`prose.json` is not JSON, as its name says"),
        ("blank.txt", "`blank.txt` holds no document"),
        (
            "other.jsonl",
            "it has neither `text` nor `ids`; the first row has `content`, `url`",
        ),
        (
            "number.json",
            "`number.json`, row 1: `text` is 3, not a text",
        ),
        ("models", "`models` is a folder, not a file"),
        ("/dev/zero", "`/dev/zero` is a device, not a file"),
        ("nowhere.txt", "cannot read `nowhere.txt`"),
    ] {
        for stage in [
            format!("type = \"evaluate\"\ncorpora = [\"{file}\"]"),
            format!("type = \"generate\"\nfile = \"{file}\""),
        ] {
            let ran = run_stage(&sandbox, &["check", "--format", "json"], &stage);
            assert_eq!(ran.code, 2, "{file}: {}", ran.out);
            let problems: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
            let found = problems[0]["message"].as_str().unwrap();
            assert!(found.contains(message), "{found}");
        }
    }
}

test!(rows_of_a_task_are_read_in_every_format);
fn rows_of_a_task_are_read_in_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let questions = |rows: &str| {
        write(
            &path("task.toml"),
            &FEW.replace("beside = \"rows.jsonl\"", rows),
        );
        let task = Task::find(path("task.toml").to_str().unwrap(), Some(folder.path()));
        let questions = task.and_then(|task| task.questions(None, None));
        questions.map_err(|error| error.message())
    };
    let lines = "{\"q\": \"is it\", \"a\": 1}\n{\"q\": \"is it not\", \"a\": 0}\n";
    write(&path("rows.jsonl"), lines);
    let expected = questions("beside = \"rows.jsonl\"").unwrap();
    write(&path("rows.json"), lines);
    write(&path("rows.csv"), "a,q\n1,is it\n0,is it not\n");
    let column = |values: [&str; 2]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let images: ArrayRef = Arc::new(BinaryArray::from(vec![&b"\xff"[..], b"\0"]));
    let columns = vec![
        ("image", images),
        ("q", column(["is it", "is it not"])),
        ("a", column(["1", "0"])),
    ];
    parquet(&path("rows.parquet"), columns);
    for file in ["rows.json", "rows.csv", "rows.parquet"] {
        assert_eq!(
            questions(&format!("beside = \"{file}\"")),
            Ok(expected.clone()),
            "{file}"
        );
    }
    for file in [
        "set/test.json",
        "set/test.csv",
        "set/data/test-00000-of-00001.jsonl",
        "set/test.00000-of-00001.json.gz",
        "set/default/test/0000.jsonl.gz",
    ] {
        let content = match file {
            file if file.ends_with(".gz") => gzip(lines.as_bytes()),
            "set/test.csv" => b"q;a\nis it;1\nis it not;0\n".to_vec(),
            _ => lines.as_bytes().to_vec(),
        };
        let file = path(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, content).unwrap();
        assert_eq!(
            questions("published = [\"set\"]"),
            Ok(expected.clone()),
            "{file:?}"
        );
        std::fs::remove_dir_all(path("set")).unwrap();
    }
    // A column that is used and has no text is named.
    let dates: ArrayRef = Arc::new(Date32Array::from(vec![1, 2]));
    parquet(
        &path("dates.parquet"),
        vec![("q", dates), ("a", column(["1", "0"]))],
    );
    let error = questions("beside = \"dates.parquet\"").unwrap_err();
    assert!(
        error.contains("row 1: `context`: a template cannot print a date"),
        "{error}"
    );
    // A separator is for texts, whatever the file is called.
    write(&path("rows.txt"), lines);
    let error = questions("beside = \"rows.txt\", separator = \"\\n\"").unwrap_err();
    assert!(
        error.contains("`separator` is for text files, and the rows are JSON Lines"),
        "{error}"
    );
}

test!(misspelt_tasks_name_the_likely_one);
fn misspelt_tasks_name_the_likely_one() {
    let sandbox = Sandbox::new();
    write(&sandbox.path("tasks/colours.toml"), "");
    sandbox.write("mine.toml", FEW);
    std::os::unix::fs::symlink("gone.toml", sandbox.path("link.toml")).unwrap();
    for (name, words) in [
        ("tiny_piqua", "did you mean `tiny_piqa`?"),
        ("tasks/colors.toml", "did you mean `tasks/colours.toml`?"),
        (
            "datasets/tiny_boolq",
            "did you mean `datasets/tiny_boolq.toml`?",
        ),
        ("mine", "did you mean `./mine.toml`?"),
        ("elsewhere/boolq.toml", "did you mean `boolq`?"),
        (
            "link.toml",
            "it is a link to `gone.toml`, which does not exist",
        ),
        ("models/", "`models/` is a folder, not a file"),
        ("/dev/null", "`/dev/null` is a device, not a file"),
    ] {
        let stage = format!("type = \"evaluate\"\ntasks = [\"{name}\"]");
        let ran = run_stage(&sandbox, &["check"], &stage);
        assert_eq!(ran.code, 2, "{name}");
        let message = ran.err.replace("\n  │ ", " ");
        assert!(message.contains(words), "{name}: {message}");
    }
    let ran = run_stage(
        &sandbox,
        &["check", "--set", "run.data=nowhere"],
        "type = \"evaluate\"\ntasks = [\"boolq\"]",
    );
    assert!(
        ran.err
            .contains("`run.data` is `nowhere`, which is not a folder"),
        "{}",
        ran.err
    );
}

test!(data_with_nothing_to_measure_is_blamed);
fn data_with_nothing_to_measure_is_blamed() {
    let sandbox = Sandbox::new();
    let error = |stage: &str| {
        let ran = run_stage(&sandbox, &[], stage);
        assert_eq!(ran.code, 1, "{}", ran.err);
        let folder = sandbox.variant("p", "base-");
        let manifest = sandbox.json(&format!("{folder}/manifest.json"));
        std::fs::remove_dir_all(sandbox.path("results")).unwrap();
        manifest["error"].as_str().unwrap().to_owned()
    };
    let text_task = |metric: &str, rows: &str| {
        sandbox.write("rows.jsonl", rows);
        sandbox.write(
            "t.toml",
            format!(
                "name = \"t\"\nversion = 1\nsplit = \"s\"\nmetrics = [\"{metric}\"]\n\
                 rows = {{ beside = \"rows.jsonl\" }}\n[text]\n"
            ),
        );
        error("type = \"evaluate\"\ntasks = [\"./t.toml\"]")
    };
    let blank = "{\"text\": \"\"}\n{\"text\": \" \\u001c\"}\n";
    for metric in ["word_perplexity", "byte_perplexity", "perplexity"] {
        let message = text_task(metric, blank);
        assert!(
            message.ends_with("`t` has nothing to measure: every text of `./rows.jsonl` is blank"),
            "{message}"
        );
    }
    // One word of very many tokens: the perplexity of a word is beyond the numbers.
    let message = text_task(
        "word_perplexity",
        &format!("{{\"text\": \"{}\"}}\n", "Q~x".repeat(400)),
    );
    assert!(message.contains("the word_perplexity of "), "{message}");
    assert!(message.contains("measure byte_perplexity"), "{message}");
    sandbox.write("empty.jsonl", "{\"text\": \"\"}\n{\"text\": \"\"}\n");
    let message = error("type = \"evaluate\"\ncorpora = [\"empty.jsonl\"]");
    assert!(
        message.contains("`empty.jsonl` has nothing to predict"),
        "{message}"
    );
    sandbox.write(
        "masked.jsonl",
        "{\"ids\": [1, 2, 3], \"labels\": [-100, -100, -100]}\n",
    );
    let message = error("type = \"evaluate\"\ncorpora = [\"masked.jsonl\"]");
    assert!(
        message.contains("`masked.jsonl` has nothing to predict"),
        "{message}"
    );
}

test!(options_beyond_the_data_are_reported);
fn options_beyond_the_data_are_reported() {
    let sandbox = Sandbox::new();
    sandbox.write("short.txt", "Anna is in the garden.");
    sandbox.write(
        "ids.jsonl",
        "{\"ids\": [1, 2, 3, 4, 5]}\n{\"ids\": [1, 2, 3]}\n",
    );
    let importance = |options: &str| {
        let stage = format!(
            "type = \"dependencies\"\n[[stage]]\ntype = \"importance\"\nmethod = \"taylor\"\n{options}"
        );
        run_stage(&sandbox, &["check"], &stage)
    };
    let ran = importance("corpus = \"short.txt\"");
    assert_eq!(ran.code, 2);
    assert!(
        ran.err
            .contains("no document of `short.txt` is longer than 64 tokens"),
        "{}",
        ran.err
    );
    let ran = importance("corpus = \"ids.jsonl\"\nlength = 3\nsamples = 5");
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.contains("at most 4 different windows of 3 tokens"),
        "{}",
        ran.err
    );
    let ran = importance("corpus = \"ids.jsonl\"\nsample = \"file\"\nsamples = 3");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.err
            .contains("`ids.jsonl` has 2 documents, and 3 are asked for"),
        "{}",
        ran.err
    );
    let ran = importance("corpus = \"ids.jsonl\"\nsample = \"file\"");
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (0, ""),
        "the default number is no promise"
    );

    let evaluate = |options: &str| {
        run_stage(
            &sandbox,
            &["check"],
            &format!("type = \"evaluate\"\n{options}"),
        )
    };
    let ran = evaluate("corpora = [\"short.txt\"]\nwindow = 100");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.err
            .contains("every text of `short.txt` is shorter than 100 tokens"),
        "{}",
        ran.err
    );
}
