//! The documents of tasks on published data sets, against lm-evaluation-harness and the texts
//! themselves.

use std::path::Path;
use std::sync::Arc;

use arrow::array::StringArray;
use secateur_data::task::{ChoiceQuestion, FewShot, Task};

use crate::contract::task_files::{parquet, write};
use crate::support::{golden_data, json, project_root, shared};

test!(
    few_shot_examples_equal_the_harness,
    needs = [Shared("data")]
);
/// Hashes of the harness's own requests (golden/data/few_shot.json): contexts and continuations
/// with their examples.
fn few_shot_examples_equal_the_harness() {
    let data = shared("data");
    let golden = json(&golden_data("few_shot.json"));
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let name = case["task"].as_str().unwrap();
        let mut task = Task::find(name, Some(&data)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        if let Some(split) = case["examples"].as_str() {
            let path = folder.path().join(format!("{name}.toml"));
            let text =
                std::fs::read_to_string(project_root().join(format!("datasets/{name}.toml")))
                    .unwrap();
            std::fs::write(&path, format!("{text}\n[examples]\nsplit = \"{split}\"\n")).unwrap();
            task = Task::find(path.to_str().unwrap(), Some(&data)).unwrap();
            assert_eq!(task.input_files(true).len(), 3, "the examples are read too");
        }
        let shots = FewShot {
            count: case["shots"].as_u64().unwrap() as usize,
            seed: case["seed"].as_u64().unwrap() as u32,
        };
        let documents = task.questions(Some(20), Some(shots)).unwrap();
        let expected: Vec<&str> = case["documents"]
            .as_array()
            .unwrap()
            .iter()
            .map(|hash| hash.as_str().unwrap())
            .collect();
        let hash = |document: &ChoiceQuestion| {
            let parts = document
                .requests
                .iter()
                .flat_map(|request| [request.context.as_str(), request.continuation.as_str()]);
            blake3::hash(parts.collect::<Vec<_>>().join("\0").as_bytes()).to_hex()[..16].to_owned()
        };
        assert_eq!(
            documents.iter().map(hash).collect::<Vec<_>>(),
            expected,
            "{name}, {shots:?}"
        );
        // A limit on the documents does not change their examples.
        assert_eq!(
            task.questions(Some(3), Some(shots)).unwrap(),
            documents[..3],
            "{name}"
        );
    }
}

test!(
    wikitext_is_joined_like_the_references,
    needs = [Shared("data"), Shared("golden/perplexity.json")]
);
fn wikitext_is_joined_like_the_references() {
    let (data, golden) = (shared("data"), shared("golden/perplexity.json"));
    let golden = json(&golden);
    let documents = Task::find("wikitext2", Some(&data))
        .unwrap()
        .text_documents(None)
        .unwrap();
    let expected = &golden["windowed"]["wikitext2_test"];
    assert_eq!(documents.len(), 1);
    assert_eq!(
        documents[0].text.chars().count() as u64,
        expected["characters"].as_u64().unwrap()
    );
    assert_eq!(
        (documents[0].byte_count, documents[0].text.len() as u64),
        (1_296_370, 1_296_370)
    );
    let pages = Task::find("wikitext", Some(&data))
        .unwrap()
        .text_documents(None)
        .unwrap();
    let rolling = &golden["rolling"]["wikitext2"]["bos_scored"];
    let rows = rolling["document_rows"].as_array().unwrap();
    assert_eq!((pages.len(), rows.len()), (62, 62));
    for (page, row) in pages.iter().zip(rows) {
        assert_eq!(
            (Some(page.word_count), Some(page.byte_count)),
            (row[1].as_u64(), row[2].as_u64()),
            "page {}",
            page.index
        );
    }
    assert_eq!(
        pages.iter().map(|page| page.word_count).sum::<u64>(),
        241_335
    );
    assert_eq!(
        pages.iter().map(|page| page.byte_count).sum::<u64>(),
        1_290_527
    );
    // The hash of the pages as the harness's own detokeniser joins them.
    let read: Vec<&str> = pages.iter().map(|page| page.text.as_str()).collect();
    assert_eq!(
        blake3::hash(read.join("\0").as_bytes()).to_hex().as_str(),
        "7d7d3193d74ff2cb5e5f2af102bc600ca6dc8197c487af1f006cf8e63c73df0e"
    );
    assert_eq!(
        Task::find("wikitext", Some(&data))
            .unwrap()
            .text_documents(Some(2))
            .unwrap(),
        pages[..2]
    );
}

test!(
    wikitext_from_parquet_equals_the_raw_text,
    needs = [Shared("data/wikitext2/wiki.test.raw")]
);
/// The Hub's rows of WikiText: each line with its newline, an empty string for a blank line.
fn wikitext_from_parquet_equals_the_raw_text() {
    let raw = shared("data/wikitext2/wiki.test.raw");
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(&raw).unwrap();
    let row = |line: &str| {
        if line.trim().is_empty() {
            String::new()
        } else {
            format!("{line}\n")
        }
    };
    let rows = StringArray::from_iter_values(text.lines().map(row));
    assert_eq!(arrow::array::Array::len(&rows), 4358);
    let path = folder
        .path()
        .join("wikitext/wikitext-2-raw-v1/test-00000-of-00001.parquet");
    parquet(&path, vec![("text", Arc::new(rows))]);
    let data = raw.parent().unwrap().parent().unwrap();
    let read = |data: &Path| {
        Task::find("wikitext2", Some(data))
            .unwrap()
            .text_documents(None)
            .unwrap()
    };
    assert!(read(folder.path()) == read(data), "the texts differ");
    let pages = Task::find("wikitext", Some(folder.path()))
        .unwrap()
        .text_documents(None)
        .unwrap();
    assert_eq!(pages.len(), 62);
}

test!(
    stories_are_split_at_their_separators,
    needs = [Shared("data")]
);
fn stories_are_split_at_their_separators() {
    let folder = tempfile::tempdir().unwrap();
    let data = shared("data");
    let file = |joined: &str| {
        format!(
            r#"
name = "stories"
version = 1
split = "train"
metrics = ["perplexity"]

[rows]
published = ["tinystories"]
file = "tinystories_train_head.txt"
separator = "<|endoftext|>"
terminated = true

[text]
row = "{{{{ text.strip() }}}}"
{joined}
"#
        )
    };
    let path = folder.path().join("stories.toml");
    let texts = |joined: &str| {
        write(&path, &file(joined));
        Task::find(path.to_str().unwrap(), Some(&data))
            .unwrap()
            .text_documents(None)
            .unwrap()
    };
    assert_eq!(texts("").len(), 2316);
    let joined = texts("join = \"\\n\\n\"");
    assert_eq!(
        (
            joined.len(),
            joined[0].text.chars().count(),
            joined[0].byte_count
        ),
        (1, 2_062_371, 2_064_495)
    );
}
