//! Tests of corpora that need no tokenizer.

use secateur_base::random::Seed;

use super::*;

/// Writes a corpus into a temporary folder, which is removed when the returned value is dropped.
fn write_corpus(
    name: &str,
    text: &str,
    separator: Option<&str>,
) -> (tempfile::TempDir, CorpusSource) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join(name);
    std::fs::write(&path, text).expect("written");
    let source = CorpusSource {
        path,
        separator: separator.map(str::to_owned),
        field: None,
        adds_special_tokens: true,
    };
    (folder, source)
}

/// The error message on reading these lines, without the path.
fn reading_error(lines: &str) -> String {
    let (_folder, source) = write_corpus("rows.jsonl", lines, None);
    let message = read_rows(&source, None, 10)
        .expect_err("the rows are invalid")
        .to_string();
    let (_, after_path) = message.split_once("rows.jsonl").expect("it names the file");
    after_path.to_owned()
}

#[test]
fn invalid_rows_are_reported_with_their_line() {
    let valid = "{\"ids\": [1, 2]}\n\n";
    assert_eq!(
        reading_error(&format!("{valid}{{\"ids\": [1, 10]}}")),
        "`, line 3: the token id 10 lies outside the vocabulary of 10 entries"
    );
    assert_eq!(
        reading_error(&format!("{valid}{{\"ids\": [1, 2], \"labels\": [-100]}}")),
        "`, line 3: `labels` has 1 entries, `ids` has 2"
    );
    assert_eq!(
        reading_error("{\"ids\": [1, 2], \"labels\": [-100, 3]}"),
        "`, line 1: the label 3 is neither -100 nor its token id 2"
    );
    let negative_id = reading_error("{\"ids\": [1, -2]}");
    assert!(negative_id.contains("line 1: `ids` is not a list of token ids"));
    let incomplete = reading_error(&format!("{valid}{{\"ids\": [1"));
    assert!(incomplete.contains("line 3: it is not valid JSON"));
    assert_eq!(
        reading_error("{\"title\": 1}"),
        "`, line 1: it has neither `text` nor `ids`; the first row has `title`"
    );
    assert_eq!(
        reading_error("\n"),
        "` holds no document: it has no row, or only white space"
    );
    assert!(reading_error("{\"text\": \"hi\"}").contains("no tokenizer.json"));
}

#[test]
fn windows_are_inside_long_documents_and_differ() {
    let (_folder, source) = write_corpus(
        "rows.jsonl",
        "{\"ids\": [0, 1, 2, 3, 4]}\n{\"ids\": [5, 6, 7]}\n{\"ids\": [5, 6, 7, 8]}",
        None,
    );
    let draw =
        |samples| sample_windows(&source, None, 10, samples, 3, &mut Seed::from_u64(1).rng());
    let windows = draw(5).expect("there are five windows");
    let mut ids: Vec<Vec<u32>> = windows.into_iter().map(|row| row.ids).collect();
    ids.sort();
    assert_eq!(ids, [[0, 1, 2], [1, 2, 3], [2, 3, 4], [5, 6, 7], [6, 7, 8]]);
    let message = draw(6).expect_err("there are only five").to_string();
    assert!(message.contains("has 5 different windows"));
}

#[test]
fn a_text_is_divided_at_the_separator() {
    let (_folder, source) = write_corpus("stories.txt", "one\n--\ntwo\n--\n", Some("\n--\n"));
    assert_eq!(
        read_text_documents(&source).expect("a text"),
        ["one", "two"]
    );
}
