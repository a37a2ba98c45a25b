//! Tests of tasks that need no published data sets.

use super::*;

#[test]
fn every_built_in_task_parses_and_tiny_tasks_have_balanced_answers() {
    for name in Task::built_in_names() {
        let task = Task::find(name, Some(Path::new("data"))).expect(name);
        assert_eq!(task.name, name);
    }
    for name in ["tiny_boolq", "tiny_piqa"] {
        let task = Task::find(name, None).expect(name);
        let questions = task.questions(None, None).expect(name);
        let second_choices: usize = questions.iter().map(|question| question.gold).sum();
        assert_eq!(
            second_choices * 2,
            questions.len(),
            "{name}: the second choice is right in half of the questions"
        );
    }
}

#[test]
fn unknown_tasks_and_a_missing_data_folder_are_reported() {
    assert_eq!(
        Task::find("tiny_bool", None)
            .expect_err("no such task")
            .to_string(),
        "there is no task `tiny_bool`; did you mean `tiny_boolq`?"
    );
    let no_data = Task::find("piqa", None).expect_err("no data").to_string();
    assert_eq!(
        no_data,
        "`piqa` is a published set: its rows are looked for in `piqa/validation.jsonl` under \
         run.data, which is not given"
    );
}

/// The question that `row` becomes under the section `[question]` of a task file.
fn question_from_row(question: &str, row: &'static str) -> Result<ChoiceQuestion, String> {
    let head = "name = \"one\"\nversion = 1\nsplit = \"s\"\nmetrics = [\"acc\"]\n\
        rows = { beside = \"rows.jsonl\" }\n[question]\n";
    let task_file = InputFile::BuiltIn {
        name: "one.toml".to_owned(),
        content: "",
    };
    let task = Task::parse(format!("{head}{question}"), task_file, None, Some(row))
        .map_err(|error| error.to_string())?;
    let mut questions = task
        .questions(None, None)
        .map_err(|error| error.message())?;
    Ok(questions.remove(0))
}

#[test]
fn templates_render_fields_without_escaping() {
    let question =
        "context = \"{{ q }}: {{ n }}\\n\"\nchoices = ['{{ a }}', '{{ n }}']\ngold = 'gold'";
    let found = question_from_row(
        question,
        r#"{"q": "<b> & \"c\" {{ n }}\n", "n": 1.5, "a": " é ", "gold": "1"}"#,
    )
    .expect("it fits");
    assert_eq!(found.requests[0].context, "<b> & \"c\" {{ n }}\n: 1.5\n");
    let continuation = |i: usize| {
        (
            found.requests[i].continuation.as_str(),
            found.requests[i].choice_chars,
        )
    };
    assert_eq!(
        (continuation(0), continuation(1), found.gold),
        (("  é ", 3), (" 1.5", 3), 1)
    );
}

#[test]
fn fields_of_the_wrong_type_are_errors() {
    let question = "context = '{{ q.strip() }}'\nchoices = ['{{ a }}', 'b']\ngold = 'gold'";
    for (row, message) in [
        (
            r#"{"q": 3, "a": "a", "gold": 0}"#,
            "`context`: unknown method: number has no method named strip",
        ),
        (r#"{"q": "q", "gold": 0}"#, "it lacks the field `a`"),
        (
            r#"{"q": "q", "a": "a", "gold": -1}"#,
            "`gold` is -1, not the number of a choice",
        ),
        (
            r#"{"q": "q", "a": "a", "gold": true}"#,
            "`gold` is true, not the number of a choice",
        ),
        (
            r#"{"q": "q", "a": "a", "gold": 0.5}"#,
            "`gold` is 0.5, not the number of a choice",
        ),
        (r#"["q"]"#, "it is a list, and a JSON object is expected"),
    ] {
        assert_eq!(
            question_from_row(question, row).expect_err(row),
            format!("`rows.jsonl`, line 1: {message}")
        );
    }
}

#[test]
fn values_are_printed_as_python_prints_them() {
    let question = "context = '{{ v }}'\nchoices = 'list'\ngold = 'gold'";
    for (value, text) in [
        ("null", "None"),
        ("true", "True"),
        ("[\"it's\", 1e-5]", "[\"it's\", 1e-05]"),
        ("12345678901234567890123", "12345678901234567890123"),
    ] {
        let row = format!("{{\"v\": {value}, \"list\": [1, 2.50, \"c\"], \"gold\": \" 2 \"}}");
        let found = question_from_row(question, Box::leak(row.into_boxed_str())).expect(value);
        assert_eq!(found.requests[0].context, text);
        let continuations = found.requests.iter().map(|request| &*request.continuation);
        assert_eq!(continuations.collect::<Vec<_>>(), [" 1", " 2.5", " c"]);
        assert_eq!(found.gold, 2);
    }
}

#[test]
fn a_missing_field_is_named_in_every_use() {
    for (template, field) in [
        ("{{ x }}", "x"),
        ("{{ x.y }}", "x"),
        ("{{ q.y.z }}", "q.y"),
        ("{{ x.strip() }}", "x"),
        ("{{ x | trim }}", "x"),
        ("{{ x | regex_replace('a', 'b') }}", "x"),
        ("{{ x ~ 'a' }}", "x"),
        ("{{ x[0] }}", "x"),
        ("{% if a is defined %}{{ a }}{% endif %}{{ x }}", "x"),
        ("{{ x }}{{ a | default('') }}", "x"),
        ("{% for y in x %}{{ y }}{% endfor %}", "x"),
    ] {
        let question = format!("context = \"{template}\"\nchoices = ['a', 'b']\ngold = 'gold'");
        let message =
            question_from_row(&question, r#"{"q": {"z": 1}, "gold": 0}"#).expect_err(template);
        assert_eq!(
            message,
            format!("`rows.jsonl`, line 1: it lacks the field `{field}`"),
            "{template}"
        );
    }
}

#[test]
fn built_in_templates_give_the_prompts_of_the_harness() {
    let question_section = |name: &str| {
        let task = BuiltInTask::find(name).expect(name);
        let (_, section) = task.text.split_once("[question]\n").expect("a question");
        section
    };
    let row = r#"{"activity_label": " Roof", "ctx_a": "[header] How to roof [title] Buy [substeps] nails.  Go.", "ctx_b": "a Man ",
        "endings": ["an open [ bracket", " [a] b  c", "d [title]", "e"], "label": "2"}"#;
    let row: &'static str = Box::leak(row.replace('\n', "").into_boxed_str());
    let found = question_from_row(question_section("hellaswag"), row).expect("it fits");
    assert_eq!(
        (found.requests[0].context.as_str(), found.gold),
        ("Roof: How to roof. Buy nails. Go. A man", 2)
    );
    let continuations: Vec<&str> = found
        .requests
        .iter()
        .map(|request| request.continuation.as_str())
        .collect();
    assert_eq!(continuations, [" an open [ bracket", "  b c", " d. ", " e"]);
    let found = question_from_row(
        question_section("winogrande"),
        r#"{"sentence": "A met B, so _ ran _. ", "option1": "A", "option2": "B", "answer": "2"}"#,
    );
    let found = found.expect("it fits");
    assert_eq!(
        (
            found.requests[1].context.as_str(),
            found.requests[1].continuation.as_str()
        ),
        ("A met B, so B", " ran _.")
    );
    assert_eq!(found.gold, 1);
    let no_blank = question_from_row(
        question_section("winogrande"),
        r#"{"sentence": "A ran.", "option1": "A", "option2": "B", "answer": "2"}"#,
    );
    assert_eq!(
        no_blank.expect_err("no blank"),
        "`rows.jsonl`, line 1: `choices[0]`: undefined value: `(...)[1]` is undefined"
    );
}
