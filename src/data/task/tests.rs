//! Tests of tasks that need no data.

use super::*;

#[test]
fn every_built_in_task_reads_and_ours_has_balanced_rows() {
    for name in Task::built_in() {
        let task = Task::find(name, Some(Path::new("data"))).expect(name);
        assert_eq!(task.name, name);
    }
    for name in ["tiny_boolq", "tiny_piqa"] {
        let documents = Task::find(name, None).expect(name).documents(None, None).expect(name);
        let gold: usize = documents.iter().map(|d| d.gold).sum();
        assert_eq!(gold * 2, documents.len(), "{name}: half of the answers are the second choice");
    }
}

#[test]
fn mistakes_are_named() {
    assert_eq!(
        Task::find("tiny_bool", None).expect_err("no such task").to_string(),
        "there is no task `tiny_bool`; did you mean `tiny_boolq`?"
    );
    let no_data = Task::find("piqa", None).expect_err("no data").to_string();
    assert_eq!(
        no_data,
        "`piqa` is a published set: its rows are looked for in `piqa/validation.jsonl` under run.data, which is not given"
    );
}
