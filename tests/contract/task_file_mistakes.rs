//! Mistakes in task files and their rows, each with its position.

use std::path::Path;

use secateur_data::task::Task;
use serde_json::Value;

use super::task_files::{FEW, write};
use crate::support::Sandbox;

/// The message for a task file or its rows, with paths relative to the folder.
fn message_for(folder: &Path, content: &str) -> String {
    write(&folder.join("task.toml"), content);
    let found = Task::find(folder.join("task.toml").to_str().unwrap(), Some(folder));
    let result = found.and_then(|task| {
        if task.is_text() {
            task.text_documents(None).map(drop)
        } else {
            task.questions(None, None).map(drop)
        }
    });
    match result {
        Ok(()) => "nothing is wrong".to_owned(),
        Err(error) => error
            .to_string()
            .replace(&format!("{}/", folder.display()), ""),
    }
}

/// A text task, whose rows are beside the task file.
const WORDS: &str = r#"
name = "words"
version = 1
split = "test"
metrics = ["perplexity"]
rows = { beside = "t.txt", separator = "\n" }

[text]
join = "\n"
"#;

test!(task_file_mistakes_name_their_position);
fn task_file_mistakes_name_their_position() {
    let folder = tempfile::tempdir().unwrap();
    write(
        &folder.path().join("rows.jsonl"),
        "{\"q\": \"is it\", \"a\": 1}\n",
    );
    write(&folder.path().join("t.txt"), "some words\n");
    assert_eq!(message_for(folder.path(), FEW), "nothing is wrong");
    assert_eq!(message_for(folder.path(), WORDS), "nothing is wrong");
    let mut all = String::new();
    for (file, from, to) in [
        (FEW, "name = ", "name == "),
        (FEW, "version = 1", "version = \"one\""),
        (FEW, "split", "splt"),
        (FEW, "gold", "golden"),
        (FEW, "metrics = [\"acc\"]", "metrics = []"),
        (FEW, "\"acc\"", "\"acc\", \"accuracy\""),
        (FEW, "\"acc\"", "\"acc\", \"acc\""),
        (FEW, "\"acc\"", "\"acc\", \"perplexity\""),
        (
            FEW,
            "metrics = [\"acc\"]",
            "metrics = [\"acc\"]\npaper_metric = \"acc_norm\"",
        ),
        (
            FEW,
            "beside = \"rows.jsonl\"",
            "beside = \"rows.jsonl\", published = [\"rows\"]",
        ),
        (FEW, "beside = \"rows.jsonl\"", "published = []"),
        (
            FEW,
            "beside = \"rows.jsonl\"",
            "beside = \"rows.jsonl\", file = \"x\"",
        ),
        (
            FEW,
            "beside = \"rows.jsonl\"",
            "beside = \"rows.jsonl\", separator = \"\\n\"",
        ),
        (WORDS, "separator = \"\\n\"", "separator = \"\""),
        (WORDS, "separator = \"\\n\"", "terminated = true"),
        (FEW, "{{ q }}", "{{ q "),
        (FEW, "{{ q }}", "{{ q | shout }}"),
        (FEW, "{{ q }}", "{{ q.shout() }}"),
        (FEW, "{{ q }}", "{{ q | regex_replace('(', '') }}"),
        (FEW, "\"{{ q }}\"", "[\"{{ q }}\", \"{% if %}\"]"),
        (FEW, "\"{{ q }}\"", "[\"{{ q }}\"]"),
        (FEW, "\"{{ q }}\"", "[\"{{ q }}\", \"b\", \"c\"]"),
        (FEW, "\"{{ q }}\"", "3"),
        (FEW, "[\"no\", \"yes\"]", "[\"no\"]"),
        (FEW, "gold = \"a\"", "gold = \"a a\""),
        (
            FEW,
            "[question]",
            "[examples]\nsplit = \"train\"\n\n[question]",
        ),
        (
            FEW,
            "[question]",
            "[examples]\nbeside = \"x\"\nsplit = \"train\"\n\n[question]",
        ),
        (
            FEW,
            "[question]",
            "[examples]\npublished = []\n\n[question]",
        ),
        (FEW, "[question]", "[text]\n\n[question]"),
        (WORDS, "[text]\njoin = \"\\n\"", ""),
        (WORDS, "[text]", "[examples]\n\n[text]"),
        (WORDS, "\"perplexity\"", "\"acc\""),
        (WORDS, "join = \"\\n\"", "begins = \"^=\""),
        (WORDS, "join = \"\\n\"", "join = \"\"\nbegins = \"(\""),
        (
            WORDS,
            "join = \"\\n\"",
            "document = \"{{ text | upper2 }}\"",
        ),
        // Mistakes that show only with a row.
        (FEW, "{{ q }}", "{{ question }}"),
        (FEW, "gold = \"a\"", "gold = \"answer.key\""),
        (FEW, "gold = \"a\"", "gold = \"q\""),
        (FEW, "gold = \"a\"", "gold = \"a + 1\""),
        (FEW, "gold = \"a\"", "gold = \"a\"\nlabels = [\"A\", \"B\"]"),
        (FEW, "[\"no\", \"yes\"]", "\"q\""),
        (FEW, "[\"no\", \"yes\"]", "\"[q, [a]]\""),
        (FEW, "[\"no\", \"yes\"]", "\"[q]\""),
        (FEW, "[\"no\", \"yes\"]", "[\"no\", \"{{ ' ' }}\"]"),
        (WORDS, "join = \"\\n\"", "row = \"{{ sentence }}\""),
    ] {
        let wrong = file.replace(from, to);
        assert_ne!(wrong, file, "{from}");
        all.push_str(&format!(
            "{to}\n    {}\n",
            message_for(folder.path(), &wrong).replace('\n', "\n    ")
        ));
    }
    insta::assert_snapshot!("mistakes_of_task_files", all);
    // No word of the TOML library's types.
    for (from, to, expected) in [
        (
            "version = 1",
            "version = -1",
            "the number -1, and a whole number from 0 to",
        ),
        (
            "version = 1",
            "version = 99999999999999999999",
            "the number 99999999999999999999, and",
        ),
        (
            "version = 1",
            "version = 2020-01-01",
            "a date or a time, and",
        ),
        (
            "rows = {",
            "rows = [\"rows.jsonl\"] # {",
            "a list, and a table is expected",
        ),
    ] {
        let message = message_for(folder.path(), &FEW.replace(from, to));
        assert!(message.contains(expected), "{message}");
    }
    let message = message_for(folder.path(), "{\"q\": \"is it\"}\n");
    assert!(
        message.contains("a task file is TOML, and this is JSON"),
        "{message}"
    );
    // Rows that are invalid in themselves.
    let rows = |content: &str| {
        write(&folder.path().join("rows.jsonl"), content);
        message_for(folder.path(), FEW)
    };
    assert_eq!(
        rows("{\"q\": \"\", \"a\": 1}\n\n{\"q\": "),
        "`rows.jsonl`, line 3: it is not valid JSON: EOF while parsing a value at column 6"
    );
    assert!(rows("\n").starts_with("`rows.jsonl` holds no row: "));
}

test!(check_reports_a_task_file_mistake_once_for_all_variants);
fn check_reports_a_task_file_mistake_once_for_all_variants() {
    let sandbox = Sandbox::new();
    sandbox.write("rows.jsonl", "{\"q\": \"is it\", \"a\": 1}\n");
    sandbox.write("unfit.toml", FEW.replace("{{ q }}", "{{ question }}?"));
    sandbox.write("unknown.toml", FEW.replace("split", "splt"));
    sandbox.write(
        "pipeline.toml",
        "[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n\n\
         [[stage]]\ntype = \"evaluate\"\ntasks = [\"unfit.toml\", \"unknown.toml\", \
         \"tiny_bolq\"]\n\n[sweep]\n\"evaluate.limit\" = [1, 2, 3]\n",
    );
    let ran = sandbox.run(&["check", "pipeline.toml"]);
    assert_eq!((ran.code, ran.out.as_str()), (2, ""));
    insta::assert_snapshot!("task_files_in_a_check", ran.err);
    let ran = sandbox.run(&["check", "pipeline.toml", "--format", "json"]);
    let records: Vec<Value> = serde_json::from_str(&ran.out).unwrap();
    let places: Vec<(&str, u64, u64)> = records
        .iter()
        .map(|record| {
            (
                record["file"].as_str().unwrap(),
                record["line"].as_u64().unwrap(),
                record["column"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        places,
        [
            ("pipeline.toml", 7, 40),
            ("unfit.toml", 9, 11),
            ("unknown.toml", 4, 1)
        ]
    );
    // A run gives the same message as plain text.
    sandbox.write(
        "pipeline.toml",
        "[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n\n\
         [[stage]]\ntype = \"evaluate\"\ntasks = [\"unfit.toml\"]\n",
    );
    assert!(
        sandbox
            .run(&["pipeline.toml"])
            .err
            .contains("`rows.jsonl`, line 1: it lacks the field `question`")
    );
}
