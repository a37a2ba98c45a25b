//! Task files: where rows are found, how few-shot examples are drawn (as lm-evaluation-harness
//! does), and how texts are joined.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int64Array, LargeStringArray, ListArray, RecordBatch, StringArray, StructArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};
use parquet::arrow::ArrowWriter;
use secateur_data::task::{ChoiceQuestion, FewShot, Task};
use serde_json::Value;

/// A task whose rows have the layout of ARC: `choices` is a struct of two lists.
const NESTED: &str = r#"
name = "nested"
version = 1
split = "test"
metrics = ["acc", "acc_norm"]
rows = { published = ["nested", "elsewhere/nested"] }

[question]
context = "Question: {{ question }}\nAnswer:"
choices = "choices.text"
labels = "choices.label"
gold = "answerKey"
"#;

pub(crate) fn write(path: &Path, content: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// A task whose file is in `folder`, which is also its `run.data`.
fn task(folder: &Path, content: &str) -> Task {
    let path = folder.join("task.toml");
    write(&path, content);
    Task::find(path.to_str().unwrap(), Some(folder)).unwrap()
}

fn documents(folder: &Path, content: &str) -> Result<Vec<ChoiceQuestion>, String> {
    write(&folder.join("task.toml"), content);
    let found = Task::find(folder.join("task.toml").to_str().unwrap(), Some(folder));
    found
        .and_then(|task| task.questions(None, None))
        .map_err(|error| error.to_string())
}

pub(crate) fn parquet(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer =
        ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn texts(rows: &[Value], field: &str) -> ArrayRef {
    Arc::new(StringArray::from_iter(
        rows.iter().map(|row| row[field].as_str()),
    ))
}

/// A column with a list of strings in every row.
fn lists(rows: &[Value], field: &str) -> ArrayRef {
    let lists: Vec<&Vec<Value>> = rows
        .iter()
        .map(|row| row["choices"][field].as_array().unwrap())
        .collect();
    let values = StringArray::from_iter_values(
        lists
            .iter()
            .flat_map(|list| list.iter().map(|item| item.as_str().unwrap())),
    );
    let offsets = OffsetBuffer::from_lengths(lists.iter().map(|list| list.len()));
    Arc::new(ListArray::new(
        Arc::new(Field::new("item", DataType::Utf8, true)),
        offsets,
        Arc::new(values),
        None,
    ))
}

/// Writes rows of ARC in the layout of the Hub: `choices` is a struct of two lists.
fn write_nested(path: &Path, rows: &[Value]) {
    let field = |name| {
        Arc::new(Field::new(
            name,
            DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))),
            true,
        ))
    };
    let choices = StructArray::from(vec![
        (field("text"), lists(rows, "text")),
        (field("label"), lists(rows, "label")),
    ]);
    let columns = vec![
        ("question", texts(rows, "question")),
        ("choices", Arc::new(choices) as ArrayRef),
        ("answerKey", texts(rows, "answerKey")),
    ];
    parquet(path, columns);
}

/// The row of question `number`, which has two to four choices.
fn question(number: usize) -> Value {
    let choices: Vec<String> = (0..2 + number % 3)
        .map(|choice| format!("choice {choice} of {number}"))
        .collect();
    let labels: Vec<&str> = ["A", "B", "C", "D"][..choices.len()].to_vec();
    serde_json::json!({
        "question": format!("number {number}"),
        "choices": { "text": choices, "label": labels },
        "answerKey": "B",
    })
}

fn jsonl(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

test!(a_missing_file_beside_a_task_file_is_named);
fn a_missing_file_beside_a_task_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let published = r#"published = ["nested", "elsewhere/nested"]"#;
    let content = NESTED.replace(published, r#"beside = "nowhere.jsonl""#);
    let error = documents(folder.path(), &content).unwrap_err();
    assert!(
        error.contains("nowhere.jsonl`: there is no such file; `beside` is relative to the folder"),
        "{error}"
    );
}

test!(parquet_and_json_lines_give_the_same_documents);
fn parquet_and_json_lines_give_the_same_documents() {
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<Value> = (0..2500).map(question).collect();
    write(&folder.path().join("nested/test.jsonl"), &jsonl(&rows));
    let from_lines = documents(folder.path(), NESTED).unwrap();
    assert_eq!(
        (
            from_lines.len(),
            from_lines[1].requests.len(),
            from_lines[1].gold
        ),
        (2500, 3, 1)
    );
    assert_eq!(from_lines[7].requests[2].continuation, " choice 2 of 7");
    std::fs::remove_file(folder.path().join("nested/test.jsonl")).unwrap();
    write_nested(&folder.path().join("nested/test.parquet"), &rows);
    assert_eq!(documents(folder.path(), NESTED).unwrap(), from_lines);
    // The limit counts rows over all shards.
    std::fs::remove_file(folder.path().join("nested/test.parquet")).unwrap();
    for (shard, part) in rows.chunks(1000).enumerate() {
        write_nested(
            &folder
                .path()
                .join(format!("nested/data/test-0000{shard}-of-00003.parquet")),
            part,
        );
    }
    let task = task(folder.path(), NESTED);
    assert_eq!(
        task.questions(Some(1700), None).unwrap(),
        from_lines[..1700]
    );
    assert_eq!(task.questions(None, None).unwrap(), from_lines);
    assert_eq!(
        task.input_files(false).len(),
        4,
        "the task file and three shards"
    );
    // Labels that are integers, and strings with 64-bit offsets.
    let built_in = include_str!("../../datasets/boolq.toml");
    let labels = Int64Array::from(vec![1, 0]);
    let columns = vec![
        (
            "question",
            Arc::new(StringArray::from(vec!["is it", "is it not"])) as ArrayRef,
        ),
        (
            "passage",
            Arc::new(LargeStringArray::from(vec!["It is.", "It is not."])),
        ),
        ("label", Arc::new(labels)),
    ];
    parquet(
        &folder
            .path()
            .join("super_glue/boolq/validation-00000-of-00001.parquet"),
        columns,
    );
    let found = documents(folder.path(), built_in).unwrap();
    assert_eq!((found[0].gold, found[1].gold), (1, 0));
    assert_eq!(
        found[1].requests[0].context,
        "It is not.\nQuestion: is it not?\nAnswer:"
    );
    // A row that does not fit is named by its number.
    let columns = vec![
        (
            "question",
            Arc::new(StringArray::from(vec!["is it", "is it not"])) as ArrayRef,
        ),
        (
            "passage",
            Arc::new(StringArray::from(vec!["It is.", "It is not."])),
        ),
        ("label", Arc::new(Int64Array::from(vec![Some(1), None]))),
    ];
    parquet(&folder.path().join("boolq/validation.parquet"), columns);
    let refused = documents(folder.path(), built_in)
        .unwrap_err()
        .replace(&format!("{}/", folder.path().display()), "");
    assert_eq!(
        refused,
        "`boolq/validation.parquet`, row 2: `label` is null, not the number of a choice \
         (task.toml:14:8)"
    );
}

test!(rows_are_found_in_hub_layouts);
fn rows_are_found_in_hub_layouts() {
    let rows = [question(0), question(1)];
    for path in [
        "nested/test.jsonl",
        "nested/data/test.jsonl",
        "nested/plain_text/test.jsonl",
        "elsewhere/nested/test.jsonl",
        "elsewhere/nested/ARC-Easy/data/test.jsonl",
    ] {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join(path), &jsonl(&rows));
        assert_eq!(documents(folder.path(), NESTED).unwrap().len(), 2, "{path}");
    }
    for path in [
        "nested/test.parquet",
        "nested/test-00000-of-00001.parquet",
        "nested/test-00000-of-00001-0a1b2c3d4e5f6789.parquet",
        "nested/ARC-Easy/test-00000-of-00001.parquet",
        "nested/ARC-Easy/test/0000.parquet",
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_nested(&folder.path().join(path), &rows);
        assert_eq!(documents(folder.path(), NESTED).unwrap().len(), 2, "{path}");
    }
    // The first folder of `published` that has the split is used; in a folder, a file directly in
    // it before one in a subfolder.
    let folder = tempfile::tempdir().unwrap();
    write(
        &folder.path().join("nested/ARC-Easy/test.jsonl"),
        &jsonl(&rows),
    );
    write(
        &folder.path().join("nested/ARC-Challenge/test.jsonl"),
        &jsonl(&rows),
    );
    let with_short_paths =
        |folder: &Path, message: String| message.replace(&folder.display().to_string(), "data");
    assert_eq!(
        with_short_paths(folder.path(), documents(folder.path(), NESTED).unwrap_err()),
        "the split `test` is in several folders of `data/nested`: `data/nested/ARC-Challenge`, \
         `data/nested/ARC-Easy`; name one of them in `published`"
    );
    write(
        &folder.path().join("elsewhere/nested/test.jsonl"),
        &jsonl(&rows[..1]),
    );
    assert_eq!(documents(folder.path(), NESTED).unwrap().len(), 1);
    write(&folder.path().join("nested/test.jsonl"), &jsonl(&rows));
    assert_eq!(documents(folder.path(), NESTED).unwrap().len(), 2);
    // Missing splits, missing shards and damaged files.
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(
        with_short_paths(folder.path(), documents(folder.path(), NESTED).unwrap_err()),
        "cannot read `data/nested/test.jsonl`: the file does not exist, and the split `test` is \
         not in `data/nested`, `data/elsewhere/nested`"
    );
    write_nested(
        &folder.path().join("nested/test-00001-of-00003.parquet"),
        &rows,
    );
    write_nested(
        &folder.path().join("nested/test-00002-of-00003.parquet"),
        &rows,
    );
    assert_eq!(
        with_short_paths(folder.path(), documents(folder.path(), NESTED).unwrap_err()),
        "cannot read `data/nested/test-00000-of-00003.parquet`: the file does not exist, but \
         other parts of the split do"
    );
    write(
        &folder.path().join("nested/test.parquet"),
        "PAR1 is not all of it",
    );
    assert!(
        documents(folder.path(), NESTED)
            .unwrap_err()
            .starts_with("cannot read `")
    );
}

/// A task with two choices, whose rows are beside the task file.
pub(crate) const FEW: &str = r#"
name = "few"
version = 1
split = "test"
metrics = ["acc"]
rows = { beside = "rows.jsonl" }

[question]
context = "{{ q }}"
choices = ["no", "yes"]
gold = "a"
"#;

test!(no_question_is_its_own_example);
fn no_question_is_its_own_example() {
    let folder = tempfile::tempdir().unwrap();
    // Rows 0 to 3 have the same question; rows 0 and 2 are equal, and rows 1 and 3. A row that
    // equals the question is never drawn as its example.
    let mut rows: Vec<Value> = (0..9)
        .map(|index| serde_json::json!({"q": format!("q{}", index.max(3)), "a": index % 2}))
        .collect();
    rows[1] = rows[3].clone();
    write(&folder.path().join("rows.jsonl"), &jsonl(&rows));
    let few = task(folder.path(), FEW);
    for seed in 0..40 {
        for (document, row) in few
            .questions(None, Some(FewShot { count: 3, seed }))
            .unwrap()
            .iter()
            .zip(&rows)
        {
            let example = |row: &Value| {
                format!(
                    "{} {}",
                    row["q"].as_str().unwrap(),
                    ["no", "yes"][row["a"].as_u64().unwrap() as usize]
                )
            };
            let shown: Vec<&str> = document.requests[0].context.split("\n\n").collect();
            assert_eq!(shown.len(), 4);
            assert!(
                !shown[..3].contains(&example(row).as_str()),
                "{seed}: {shown:?}"
            );
        }
    }
    let too_many = few
        .questions(None, Some(FewShot { count: 9, seed: 0 }))
        .unwrap_err();
    assert_eq!(
        too_many.to_string(),
        "9 examples are drawn for each question, and there are only 8 rows to draw from"
    );
    assert_eq!(
        few.questions(None, Some(FewShot { count: 0, seed: 0 }))
            .unwrap(),
        few.questions(None, None).unwrap()
    );
    // Examples from another file, with another delimiter.
    write(
        &folder.path().join("others.jsonl"),
        "{\"q\": \"other\", \"a\": 1}\n",
    );
    let with_other_file =
        format!("{FEW}\n[examples]\nbeside = \"others.jsonl\"\ndelimiter = \" | \"\n");
    let context = |task: &Task| {
        task.questions(Some(1), Some(FewShot { count: 1, seed: 5 }))
            .unwrap()[0]
            .requests[0]
            .context
            .clone()
    };
    assert_eq!(
        context(&task(folder.path(), &with_other_file)),
        "other yes | q3"
    );
}

test!(ptb_rows_are_joined);
fn ptb_rows_are_joined() {
    let folder = tempfile::tempdir().unwrap();
    let ptb = StringArray::from(vec![
        "no it was n't black monday",
        "but while the new york stock exchange",
    ]);
    parquet(
        &folder
            .path()
            .join("ptb_text_only/penn_treebank/validation-00000-of-00001.parquet"),
        vec![("sentence", Arc::new(ptb))],
    );
    let text = &Task::find("ptb", Some(folder.path()))
        .unwrap()
        .text_documents(None)
        .unwrap()[0];
    assert_eq!(
        text.text,
        "no it was n't black monday\n\nbut while the new york stock exchange"
    );
    assert_eq!((text.word_count, text.byte_count), (13, 65));
}

test!(documents_begin_where_a_row_matches);
fn documents_begin_where_a_row_matches() {
    let folder = tempfile::tempdir().unwrap();
    let file = "name = \"t\"\nversion = 1\nsplit = \"s\"\nmetrics = [\"byte_perplexity\"]\n\
                rows = { beside = \"t.txt\", separator = \"\\n\" }\n\n\
                [text]\nbegins = '^#'\njoin = \"\\n\"\n";
    for (text, documents) in [
        ("\n \n# a\nb\n# c\n", vec!["# a\nb", "# c"]),
        ("intro\n# a", vec!["intro", "# a"]),
        ("no heading\nat all\n", vec!["no heading\nat all"]),
    ] {
        write(&folder.path().join("t.txt"), text);
        let found = task(folder.path(), file).text_documents(None).unwrap();
        assert_eq!(
            found
                .iter()
                .map(|text| text.text.as_str())
                .collect::<Vec<_>>(),
            documents
        );
    }
}
